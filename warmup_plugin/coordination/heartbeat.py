# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: what each rank says of itself, and what the others make of its silence.

Owns the thread that beats and the rule by which a rank is given up. A rank whose process is stopped
or gone is given up after ``silence_s``; one that no rank can see from its own machine after five
silences; one that is silent while its process runs (a compile that holds the interpreter lock), or
beats and does not get on, after ``task_limit_s``; one that has left, at once. A rank that itself
waits need not get on, nor one in the engine's forward, unless the watcher is back from its own.
Clocks are monotonic and local: no rank's clock is compared with another's.

While the engine's forward runs the same thread looks after it, because a rank stuck in the model's
collective cannot: see `ForwardGuard`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.failure_detector import CONNECTING_S, FailureDetector
from warmup_plugin.coordination.forward_guard import ForwardGuard
from warmup_plugin.coordination.reconnecting import RenewedLink
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import View, own_card
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from warmup_plugin.coordination.base import Listener
    from warmup_plugin.coordination.links import Link
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")


def announce(link: Link) -> None:
    """Say whose process this rank is, which is how its silence is judged."""
    card = {**own_card().to_json(), "host": host_name()[:64], "end": link.end}
    link.set(f"card/{link.rank}", json.dumps(card).encode())


class Heartbeat:
    """This rank's heartbeat: a thread that counts, with what the rank is at."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = RenewedLink(link)
        self._settings = settings
        self._interval_s = min(5.0, settings.silence_s / 8)
        self._detector = FailureDetector(self._link, settings)
        self._state: tuple[str, str, int] = ("open", "", 0)
        self._idle = False
        self._guard: ForwardGuard | None = None
        self._last = time.monotonic()
        self._overslept = False
        self._mates: dict[str, View] = {}
        #: Told what every rank is at, on this thread, after each of this rank's own beats.
        self.listener: Listener | None = None
        self._stop, self._is_needed = threading.Event(), threading.Event()
        announce(link)
        self._thread = threading.Thread(target=self._run, name="warmup-pulse", daemon=True)
        self._thread.start()

    def note(self, step: str, task: str = "") -> None:
        """Say what the rank is at; the count of notes tells a stuck task from a new one."""
        self._state = (step, task, self._state[2] + 1)

    @contextlib.contextmanager
    def idle(self, guard: ForwardGuard | None = None) -> Iterator[None]:
        """In the body this rank waits, or runs the engine's forward, looked after by ``guard``."""
        step, task, _ = self._state
        self._idle, self._guard = True, guard
        if guard is not None:
            self._is_needed.set()
        try:
            yield
        finally:
            self._idle, self._guard = False, None
            self.note(step, task)  # what it does now it does from now on

    def overslept(self) -> bool:
        """Return, once, whether there has been a silence: this process was stopped, most likely."""
        is_late = time.monotonic() - self._last > self._settings.silence_s
        if is_late:  # said once a beat: a heartbeat that has no store may never beat again
            self._last = math.inf
        was_late, self._overslept = self._overslept, False
        return is_late or was_late

    def _run(self) -> None:
        # Nobody misses the first beat for as long as the next; many a warm start is over by then.
        self._is_needed.wait(self._interval_s)
        if not self._stop.is_set():
            self._connect()
        beats = 0
        while not self._stop.is_set():
            try:
                self._beat(beats)
                self._listen()
                if (guard := self._guard) is not None:
                    guard.look(self._detector)
            except RankLostError as error:
                # The store is gone, or was slow to answer once. A rank in a step of ours finds out
                # itself; one in the engine's forward cannot.
                if (guard := self._guard) is not None:
                    guard.miss_store(error)
            if guard is not None and guard.is_over:
                return
            beats += 1
            left_s = self._interval_s if guard is None else guard.left_s()
            self._stop.wait(min(self._interval_s, left_s))

    def _connect(self) -> None:
        """Make the first connection: on a busy machine that takes longer than an answer."""
        self._link.connect()
        until = time.monotonic() + self._settings.silence_s
        while self._link.is_connecting and time.monotonic() < until:
            if self._stop.wait(CONNECTING_S):
                return

    def _beat(self, beats: int) -> None:
        step, task, notes = self._state
        if beats % 4 == 0:
            self._mates = self._detector.mates()
        beat = messages.Beat(beats, step, task, notes, self._idle, {**self._mates})
        self._link.set(f"beat/{self._link.rank}", messages.text(msgspec.to_builtins(beat)).encode())
        now = time.monotonic()
        self._overslept |= now - self._last > self._settings.silence_s
        self._last = now
        self._link.restore()

    def _listen(self) -> None:
        listener = self.listener
        for rank in range(self._link.size) if listener is not None else ():
            if rank != self._link.rank and (body := self._link.get_now(f"beat/{rank}")) is not None:
                assert listener is not None
                beat = messages.read(messages.Beat, body, rank, "heartbeat")
                listener(rank, beat.step, beat.task)

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stop.set()
        self._is_needed.set()
        self._thread.join(timeout=5.0)
        self._link.close()
