# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: what each rank says of itself, and what the others make of its silence.

Owns the thread that beats and the rule by which a rank is given up. A rank whose process is stopped
or gone is given up after ``silence_s``; one that nobody can see from its own machine after five
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
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.reconnecting import RenewedLink
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import ProcessCard, View, own_card, view
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from warmup_plugin.coordination.kv_client import BeatLink, Link
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

#: A process that ended itself because another rank's forward failed leaves with this status.
EXIT_ABANDONED = 79
#: Silences after which a rank is given up that nobody sees from its own machine.
_UNSEEN_SILENCES = 5
#: How often is asked whether the first connection is there, seconds.
_CONNECTING_S = 0.01
#: The step of a heartbeat whose rank is in the forward; back from it, it says "survey0".
FORWARD = "survey"
#: Keys of the store: a rank's forward has failed; a rank has left.
FAILED, BYE = "failed", "bye"


class Watch:
    """What this rank makes of the others' heartbeats. Used by one thread, over its own link."""

    def __init__(self, link: BeatLink, settings: Settings) -> None:
        self._link = link
        self._silence_s = settings.silence_s
        self._task_limit_s = settings.task_limit_s
        self._began = time.monotonic()
        self._beats: dict[int, tuple[int, float]] = {}
        self._tasks: dict[int, tuple[int, float]] = {}
        self._cards: dict[int, ProcessCard] = {}
        self._hosts: dict[int, str] = {}
        self._bounds_forward = settings.forward_failure == "end"
        #: Whether this rank is back from a forward in which the others may still be.
        self.is_back = False

    @property
    def is_cut_off(self) -> bool:
        """Return whether it was the store that failed, where a link can tell (`RenewedLink`)."""
        return bool(getattr(self._link, "is_cut_off", False))

    def look(self, ranks: set[int]) -> None:
        """Read the heartbeats of these ranks; raises `RankLostError` for one that is given up."""
        for rank in sorted(ranks):
            self._look(rank, time.monotonic())

    def describe(self, rank: int) -> str:
        """Return what a rank was at when it was last heard of."""
        state = self._state(rank)
        if state is None:
            return "has not joined"
        if self._is_alone_in_forward(state):
            return "in its forward, from which this rank is back"
        return f"in step {state['step']}" + (f", at {state['task']}" if state["task"] else "")

    def _state(self, rank: int) -> dict[str, Any] | None:
        body = self._link.get_now(f"beat/{rank}")
        return None if body is None else messages.read(messages.Beat, body, rank, "heartbeat")

    def _look(self, rank: int, now: float) -> None:
        state = self._state(rank)
        beats, notes = (-1, -1) if state is None else (state["beats"], state["notes"])
        if self._link.has([f"{BYE}/{rank}"]):
            raise RankLostError(rank, f"{self.describe(rank)}, has left")
        if self._beats.get(rank, (-2, 0.0))[0] != beats:
            self._beats[rank] = (beats, now if state is not None else self._began)
        if self._tasks.get(rank, (-2, 0.0))[0] != notes:
            self._tasks[rank] = (notes, now)
        silence_s, at_task_s = now - self._beats[rank][1], now - self._tasks[rank][1]
        if silence_s > self._silence_s and (seen := self.view(rank)) != "runs":
            limit = self._silence_s * (_UNSEEN_SILENCES if seen == "unseen" else 1)
            if silence_s > limit:
                raise RankLostError(
                    rank, f"{self.describe(rank)}, process {seen}, silent for {silence_s:.1f} s"
                )
        is_alone = self._is_alone_in_forward(state)
        stuck_s = silence_s if state is None or state["idle"] else at_task_s
        if is_alone and at_task_s > self._task_limit_s:
            raise RankLostError(
                rank, f"still in its forward {at_task_s:.0f} s after another rank is back from its "
                "own (a collective that others do not enter?): task_limit_s",
            )  # fmt: skip
        if stuck_s > self._task_limit_s:
            raise RankLostError(rank, f"{self.describe(rank)} for {stuck_s:.0f} s: task_limit_s")

    def _is_alone_in_forward(self, state: dict[str, Any] | None) -> bool:
        """Return whether a rank is in a forward from which this one is back.

        It may be compiling what the others had at hand, so it gets as long as a task.
        """
        is_there = state is not None and state["idle"] and state["step"] == FORWARD
        return self.is_back and is_there and self._bounds_forward

    def view(self, rank: int) -> View:
        """Return what is seen of a rank's process, from here or by a rank of its machine."""
        card = self._card(rank)
        if card is None:
            return "unseen"
        seen = view(card)
        if seen != "unseen":
            return seen
        for mate in range(self._link.size):
            other = self._card(mate)
            if mate != rank and other is not None and other.place == card.place:
                state = self._state(mate)
                if state is not None and self._is_fresh(mate, state["beats"]):
                    found: View = state["mates"].get(str(rank), "unseen")
                    return found
        return "unseen"

    def _is_fresh(self, rank: int, beats: int) -> bool:
        now = time.monotonic()
        if self._beats.get(rank, (-2, 0.0))[0] != beats:
            self._beats[rank] = (beats, now)
        return now - self._beats[rank][1] <= self._silence_s

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's machine, empty where the rank has not joined."""
        self._card(rank)
        return self._hosts.get(rank, "")

    def mates(self) -> dict[str, View]:
        """Return what this process sees of the other ranks on its machine."""
        others = (rank for rank in range(self._link.size) if rank != self._link.rank)
        cards = {rank: card for rank in others if (card := self._card(rank)) is not None}
        seen = {str(rank): view(card) for rank, card in cards.items()}
        return {rank: found for rank, found in seen.items() if found != "unseen"}

    def _card(self, rank: int) -> ProcessCard | None:
        if rank not in self._cards:
            body = self._link.get_now(f"card/{rank}")
            if body is None:
                return None
            card = messages.read(messages.Card, body, rank, "process card")
            self._hosts[rank] = card.pop("host")
            self._cards[rank] = ProcessCard(**card)
        return self._cards[rank]


def announce(link: BeatLink) -> None:
    """Say whose process this rank is, which is how its silence is judged."""
    card = {**own_card().to_json(), "host": host_name()[:64]}
    link.set(f"card/{link.rank}", json.dumps(card).encode())


class Pulse:
    """This rank's heartbeat: a thread that counts, with what the rank is at."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = RenewedLink(link)
        self._settings = settings
        self._interval_s = min(5.0, settings.silence_s / 8)
        self._watch = Watch(self._link, settings)
        self._state: tuple[str, str, int] = ("open", "", 0)
        self._idle = False
        self._guard: ForwardGuard | None = None
        self._last = time.monotonic()
        self._overslept = False
        self._mates: dict[str, View] = {}
        #: Told every rank's heartbeat, on this thread, after each of this rank's own.
        self.listener: Callable[[int, dict[str, Any]], None] | None = None
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
                    guard.look(self._watch)
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
        until = time.monotonic() + self._settings.silence_s + self._interval_s
        while self._link.is_connecting and time.monotonic() < until:
            if self._stop.wait(_CONNECTING_S):
                return

    def _beat(self, beats: int) -> None:
        step, task, notes = self._state
        if beats % 4 == 0:
            self._mates = self._watch.mates()
        body = {
            "beats": beats, "step": step, "task": task, "notes": notes, "idle": self._idle,
            "mates": self._mates,
        }  # fmt: skip
        self._link.set(f"beat/{self._link.rank}", json.dumps(body).encode())
        now = time.monotonic()
        self._overslept |= now - self._last > self._settings.silence_s
        self._last = now

    def _listen(self) -> None:
        listener = self.listener
        for rank in range(self._link.size) if listener is not None else ():
            if rank != self._link.rank and (body := self._link.get_now(f"beat/{rank}")) is not None:
                assert listener is not None
                listener(rank, json.loads(body))

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stop.set()
        self._is_needed.set()
        self._thread.join(timeout=5.0)
        self._link.close()


class ForwardGuard:
    """Ends this process when it is stuck in a forward that cannot come back.

    A rank whose forward failed says so under a key of the store, one for each forward; a rank that
    died or was stopped is found by its heartbeat. The others may be in a collective with it, where
    nothing of ours runs but this. They get ``grace_s`` to come back; then each logs rank and error
    and leaves with `EXIT_ABANDONED`, so that the engine sees a dead worker in seconds and not after
    its collective's time-out.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        grace_s: float,
        key: str = FAILED,
        *,
        leave: Callable[[int], None] = os._exit,
        tell: Callable[[int, str], None] = lambda _rank, _reason: None,
        host_of: Callable[[int], str] = lambda _rank: "",
    ) -> None:
        self._others = set(range(size)) - {rank}
        self._grace_s = grace_s
        self._key = key
        self._leave, self._tell, self._host_of = leave, tell, host_of
        self._failed: tuple[int, str, float] | None = None
        self._misses_store = False
        self.is_over = False

    def look(self, watch: Watch) -> None:
        """See whether a forward has failed anywhere; leave once the grace period is over."""
        if self._failed is None or self._misses_store:
            body = watch._link.get_now(self._key)  # noqa: SLF001  # one file, one concept
            self._find_store()
            if body is not None:
                self._fail_as_told(watch, body)
            try:
                watch.look(self._others)
            except RankLostError as error:
                fail = self.miss_store if watch.is_cut_off else self.give_up
                fail(error)
        self._maybe_leave()

    def _fail_as_told(self, watch: Watch, body: bytes) -> None:
        try:
            found = messages.read(messages.Failed, body, 0, "word of a failed forward")
        except RankLostError as error:
            self.fail(error.rank, error.reason)
        else:
            self.fail(*self._culprit(watch, found))

    def _culprit(self, watch: Watch, word: dict[str, Any]) -> tuple[int, str]:
        """Return the rank at fault: one that has died, rather than one whose collective noticed."""
        for rank in sorted(self._others - {word["rank"]}):
            if watch.view(rank) == "gone":
                return rank, f"process gone, hence rank {word['rank']}: {word['reason']}"
        return word["rank"], word["reason"]

    def give_up(self, error: RankLostError) -> None:
        """Take a rank for lost."""
        self.fail(error.rank, error.reason)

    def miss_store(self, error: RankLostError) -> None:
        """Take the store's rank for lost, unless it answers again within the grace period."""
        self._misses_store |= self._failed is None
        self.fail(error.rank, error.reason)

    def _find_store(self) -> None:
        if self._misses_store:
            logger.warning("warmup-plugin: rank 0's store answers again")
            self._failed, self._misses_store = None, False

    def fail(self, rank: int, reason: str) -> None:
        """Start the grace period, once."""
        if self._failed is None:
            self._failed = (rank, reason, time.monotonic())
            logger.error(
                "warmup-plugin: the forward cannot complete: rank %d%s: %s; waiting %.0f s for it "
                "to come back",
                rank, self._where(rank), reason, self._grace_s,
            )  # fmt: skip
        self._maybe_leave()

    def left_s(self) -> float:
        """Return the seconds until the grace period is over, for ever where none has begun."""
        if self._failed is None:
            return math.inf
        return max(0.0, self._failed[2] + self._grace_s - time.monotonic())

    def _where(self, rank: int) -> str:
        host = self._host_of(rank)
        return f" (host {host})" if host else ""

    def _maybe_leave(self) -> None:
        if self._failed is None or time.monotonic() - self._failed[2] < self._grace_s:
            return
        if not self.is_over:
            rank, reason, _ = self._failed
            logger.critical(
                "warmup-plugin: this process ends (status %d): rank %d's forward failed%s and this "
                "one has not come back for %.0f s: %s",
                EXIT_ABANDONED, rank, self._where(rank), self._grace_s, reason,
            )  # fmt: skip
            self.is_over = True
            self._tell(rank, reason)  # else who is waiting elsewhere would name this process
            self._leave(EXIT_ABANDONED)
