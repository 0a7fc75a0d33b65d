# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one session meet.

Owns every message that crosses ranks and every wait of the package. One primitive, `meet`: each
rank hands in its word, rank 0 decides from all of them, and the decision is **one record, written
by compare-and-set**, which every rank reads before it acts. Bodies (tables, plans) travel apart,
addressed by their sha256 and checked against it. Bytes only, never pickle.

Refuses to wait for ever: a rank whose heartbeat has stopped for ``silence_s``, or that has been at
one task for longer than ``task_limit_s``, is given up by name (`RankLostError`). No collective of
the engine's process group is used, but for one broadcast of the store's address at the beginning;
so rank 0 may tune for hours under a group timeout of seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.table import digest

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings
    from warmup_plugin.storelink import StoreLink

Word = dict[str, Any]
Words = Mapping[int, Word]
#: From every rank's word to the record all ranks act on.
Decide = Callable[[Words], Word]

_RECORD = "record"
#: A waiting rank asks again after this long, seconds: at first, and at most.
_POLL_S = (0.0005, 0.05)
#: How often a waiting rank looks at the heartbeats of those it waits for, seconds.
_LOOK_S = 0.25


class Rendezvous(Protocol):
    """What the nine steps need from the other ranks."""

    rank: int
    size: int
    bytes_sent: int
    bytes_received: int

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word, return the one record all ranks act on."""
        ...

    def put(self, body: bytes) -> str:
        """Offer a body to all ranks; return its sha256, by which they get it."""
        ...

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256, checked."""
        ...

    def note(self, step: str, task: str = "") -> None:
        """Tell the others, through the heartbeat, what this rank is at."""
        ...

    def close(self) -> None:
        """Leave; nothing of the session stays behind."""
        ...


class Alone:
    """The rendezvous of a single process."""

    rank = 0
    size = 1
    bytes_sent = 0
    bytes_received = 0

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Decide from the only word there is."""
        del step
        return decide({0: word})

    def put(self, body: bytes) -> str:
        """Keep the body for `get`."""
        name = digest(body)
        self._bodies[name] = body
        return name

    def get(self, sha256: str) -> bytes:
        """Return a body put before; raises `KeyError` for another."""
        return self._bodies[sha256]

    def note(self, step: str, task: str = "") -> None:
        """Nobody is listening."""

    def close(self) -> None:
        """Forget the bodies."""
        self._bodies.clear()


class Meeting:
    """The rendezvous of several ranks over one key-value store.

    Built by `open_meeting`; raises `RankLostError` from any call once a rank is given up.
    """

    def __init__(self, link: StoreLink, settings: Settings) -> None:
        self.rank = link.rank
        self.size = link.size
        self.bytes_sent = 0
        self.bytes_received = 0
        self._link = link
        self._watch = Watch(link, settings)
        self._pulse = Pulse(link, interval_s=min(5.0, settings.silence_s / 8))

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word, return the one record all ranks act on.

        Rank 0 gathers and decides; the others wait for the record. Whoever stops waiting records
        that instead: the first record of a step is the only one.
        """
        self._pulse.note(step)
        body = json.dumps(word, sort_keys=True).encode()
        self.bytes_sent += len(body)
        self._link.set(f"{step}/{self.rank}", body)
        if self.rank == 0:
            return self._record(step, self._lead(step, decide))
        try:
            self._wait([f"{step}/{_RECORD}"], waits_for={0})
        except RankLostError as error:
            return self._record(step, _lost(error))
        return self._checked(self._read(f"{step}/{_RECORD}"))

    def _lead(self, step: str, decide: Decide) -> Word:
        words: dict[int, Word] = {}
        try:
            for rank in range(self.size):
                key = f"{step}/{rank}"
                self._wait([key], waits_for={rank})
                words[rank] = json.loads(self._read(key))
        except RankLostError as error:
            return _lost(error)
        try:
            return decide(words)
        except Exception as error:  # noqa: BLE001  # our own bug: the others must not wait for a record for ever
            return {"lost": 0, "reason": f"cannot decide step {step}: {error!r}"}

    def _record(self, step: str, record: Word) -> Word:
        """Write the record of a step unless there is one; return the one in force."""
        body = json.dumps(record, sort_keys=True)
        self.bytes_sent += len(body)
        return self._checked(self._link.compare_set(f"{step}/{_RECORD}", body))

    def _checked(self, body: bytes) -> Word:
        record: Word = json.loads(body)
        if "lost" in record:
            raise RankLostError(record["lost"], record["reason"])
        return record

    def put(self, body: bytes) -> str:
        """Offer a body; it crosses to the store once, whichever ranks offer it."""
        name = digest(body)
        if self._link.add(f"body/{name}/claim") == 1:
            self.bytes_sent += len(body)
            self._link.set(f"body/{name}", body)
        return name

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256.

        Raises `SessionError` when the bytes that arrive are others.
        """
        key = f"body/{sha256}"
        self._wait([key], waits_for=set(range(self.size)))
        body = self._read(key)
        if digest(body) != sha256:
            raise SessionError(f"body {sha256}: arrived with sha256 {digest(body)}")
        return body

    def _read(self, key: str) -> bytes:
        body = self._link.get(key)
        self.bytes_received += len(body)
        return body

    def note(self, step: str, task: str = "") -> None:
        """Tell the others what this rank is at."""
        self._pulse.note(step, task)

    def _wait(self, keys: list[str], waits_for: set[int]) -> None:
        """Wait until all keys exist: the one place where this package waits for another rank.

        Raises `RankLostError` once a rank waited for is silent or stuck.
        """
        pause_s, looked = _POLL_S[0], time.monotonic()
        while not self._link.has(keys):
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S[1])
            if time.monotonic() - looked > _LOOK_S:
                self._watch.look(waits_for - {self.rank})
                looked = time.monotonic()

    def close(self) -> None:
        """Stop the heartbeat and let go of the store.

        Rank 0 holds the store, so it leaves last: when every rank has said goodbye or is lost.
        """
        try:
            self._link.set(f"bye/{self.rank}", b"1")
            if self.rank == 0:
                for rank in range(1, self.size):
                    self._wait([f"bye/{rank}"], waits_for={rank})
        except RankLostError:
            pass  # the session is over either way, and its outcome is recorded already
        finally:
            self._pulse.stop()
            self._link.close()


def _lost(error: RankLostError) -> Word:
    return {"lost": error.rank, "reason": error.reason}


class Pulse:
    """This rank's heartbeat: a thread that counts, with what the rank is at."""

    def __init__(self, link: StoreLink, interval_s: float) -> None:
        self._link = link.clone()
        self._interval_s = interval_s
        self._state: tuple[str, str, int] = ("open", "", 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="warmup-pulse", daemon=True)
        self._thread.start()

    def note(self, step: str, task: str = "") -> None:
        """Say what the rank is at; the count of notes tells a stuck task from a new one."""
        self._state = (step, task, self._state[2] + 1)

    def _beat(self) -> None:
        beats = 0
        while not self._stop.is_set():
            step, task, notes = self._state
            body = json.dumps({"beats": beats, "step": step, "task": task, "notes": notes})
            try:
                self._link.set(f"beat/{self._link.rank}", body.encode())
            except RankLostError:
                return  # the store is gone: the rank's own next call says so, with the reason
            beats += 1
            self._stop.wait(self._interval_s)

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._link.close()


class Watch:
    """What this rank knows of the others' heartbeats, by its own clock only."""

    def __init__(self, link: StoreLink, settings: Settings) -> None:
        self._link = link
        self._silence_s = settings.silence_s
        self._task_limit_s = settings.task_limit_s
        self._seen: dict[int, tuple[int, float]] = {}
        self._task: dict[int, tuple[int, float]] = {}
        self._began = time.monotonic()

    def look(self, ranks: set[int]) -> None:
        """Read the heartbeats of ``ranks``; raises `RankLostError` for one that is given up."""
        now = time.monotonic()
        for rank in sorted(ranks):
            beat = self._link.get_now(f"beat/{rank}")
            if beat is None:
                self._judge(rank, now - self._began, "has not joined")
                continue
            state = json.loads(beat)
            where = f"in step {state['step']}" + (f", at {state['task']}" if state["task"] else "")
            if self._seen.get(rank, (-1, 0.0))[0] != state["beats"]:
                self._seen[rank] = (state["beats"], now)
            if self._task.get(rank, (-1, 0.0))[0] != state["notes"]:
                self._task[rank] = (state["notes"], now)
            self._judge(rank, now - self._seen[rank][1], f"silent {where}")
            at_task = now - self._task[rank][1]
            if state["task"] and at_task > self._task_limit_s:
                raise RankLostError(rank, f"{where} for {at_task:.0f} s, over task_limit_s")

    def _judge(self, rank: int, silence_s: float, what: str) -> None:
        if silence_s > self._silence_s:
            raise RankLostError(rank, f"{what} for {silence_s:.1f} s, over silence_s")
