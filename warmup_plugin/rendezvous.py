# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one session meet.

Owns every message that crosses ranks and every wait of the package. One primitive, `meet`: each
rank hands in its word, rank 0 decides from all of them, and the decision is **one record, written
by compare-and-set**, which every rank reads before it acts. Bodies (tables, plans) travel apart,
addressed by their sha256 and checked against it. Bytes only, never pickle.

Refuses to wait for ever: a rank that has gone silent or stuck is given up by name (`pulse.py` has
the rule), by a record too, so that all ranks that are left raise the same `RankLostError`, and so
does the one given up, should it wake. No collective of the engine's process group is used, but for
one broadcast of the store's address at the beginning; so rank 0 may tune for hours under a group
timeout of seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from warmup_plugin import wire
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.pulse import BYE, FAILED, ForwardGuard, Pulse, Watch
from warmup_plugin.table import digest
from warmup_plugin.waiting import wait_until, within

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings
    from warmup_plugin.storelink import Link

Word = dict[str, Any]
Words = Mapping[int, Word]
#: From every rank's word to the record all ranks act on.
Decide = Callable[[Words], Word]

logger = logging.getLogger("warmup_plugin")

_RECORD = "record"
_LOST = "lost"
_OFFER = "offer"  # the sha256 of a body that the next meeting will most likely agree on
_PARTS = "parts: "  # in place of a body: it is found in so many
#: Decisions upon which every rank raises by itself.
_ENDS = ("refuse", "abort", "retry")
#: How often rank 0 says whom it waits for, seconds.
_TELL_S = 30.0
#: All waiting ranks together ask the store about this often, seconds, in the first second.
_EACH_ASKS_S = 0.001
#: How long a rank that was stopped gives the store to read what arrived meanwhile, seconds.
_CATCH_UP_S = 0.5


class Rendezvous(Protocol):
    """What the nine steps need from the other ranks."""

    rank: int
    size: int
    bytes_sent: int
    bytes_received: int
    #: Of each meeting: its name, when this rank came (monotonic), how long until the record.
    waits: list[tuple[str, float, float]]

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word, return the one record all ranks act on."""
        ...

    def put(self, body: bytes, sha256: str = "") -> str:
        """Offer a body to all ranks; return its sha256, by which they get it, unless known here."""
        ...

    def offer(self, body: bytes, sha256: str) -> None:
        """Put, on rank 0, a body that the next meeting will most likely agree on."""
        ...

    def expect(self) -> None:
        """Take such a body while this rank waits in the next meeting."""
        ...

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256, checked."""
        ...

    def take(self, name: str) -> int:
        """Count one more of something that is given once; return how many before; as `confirm`."""
        ...

    def note(self, step: str, task: str = "") -> None:
        """Tell the others, through the heartbeat, what this rank is at; find out as `confirm`."""
        ...

    def confirm(self) -> None:
        """Make sure, before this rank writes or installs, that the others have not gone on."""
        ...

    def follow(self, listener: Callable[[int, dict[str, Any]], None] | None) -> None:
        """Have the other ranks' heartbeats told from now on, on another thread; None ends it."""
        ...

    def in_forward(self) -> contextlib.AbstractContextManager[None]:
        """Look after the engine's forward in the body, and tell the others if it raises."""
        ...

    def abandon(self, reason: str) -> None:
        """Tell the others that this rank leaves without having finished."""
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
        self.waits: list[tuple[str, float, float]] = []
        self._bodies: dict[str, bytes] = {}
        self._taken: Counter[str] = Counter()

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Decide from the only word there is."""
        del step
        return decide({0: word})

    def put(self, body: bytes, sha256: str = "") -> str:
        """Keep the body for `get`."""
        name = sha256 or digest(body)
        self._bodies[name] = body
        return name

    def offer(self, body: bytes, sha256: str) -> None:
        """Nobody lacks it."""

    def expect(self) -> None:
        """Nobody offers anything."""

    def get(self, sha256: str) -> bytes:
        """Return a body put before; raises `KeyError` for another."""
        return self._bodies[sha256]

    def take(self, name: str) -> int:
        """Count one more; nobody else does."""
        self._taken[name] += 1
        return self._taken[name] - 1

    def note(self, step: str, task: str = "") -> None:
        """Nobody is listening."""

    def confirm(self) -> None:
        """Nobody else decides."""

    def follow(self, listener: Callable[[int, dict[str, Any]], None] | None) -> None:
        """There are no others."""

    def in_forward(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else waits."""
        return contextlib.nullcontext()

    def abandon(self, reason: str) -> None:
        """Nobody else is left."""

    def close(self) -> None:
        """Forget the bodies."""
        self._bodies.clear()


class Meeting:
    """The rendezvous of several ranks over one key-value store.

    Raises `RankLostError` from any call once a rank is given up, by this rank or another.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        *,
        watch: Watch | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.rank = link.rank
        self.size = link.size
        self.bytes_sent = 0
        self.bytes_received = 0
        self.waits: list[tuple[str, float, float]] = []
        self._link = link
        self._settings = settings
        self._forwards = 0
        self._is_over = self._expects = False
        self._offered = ""
        self._taken = "", b""
        self._parts: dict[str, list[bytes]] = {}
        self._watch = watch or Watch(link, settings)
        self._pulse = pulse or Pulse(link, settings)

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word, return the one record all ranks act on.

        Rank 0 gathers and decides; the others wait for the record. Whoever stops waiting records
        that instead: the first record of a step is the only one.
        """
        self.note(step)
        body, key = json.dumps(word, sort_keys=True).encode(), f"{step}/{_RECORD}"
        if len(body) > wire.MOST_WORD_BYTES:
            raise SessionError(f"word at step {step}: {len(body)} bytes, too large to be sent")
        self.bytes_sent += len(body)
        self._link.set(f"{step}/{self.rank}", body)
        came = time.monotonic()
        try:
            if self.rank == 0:
                found = self._propose(key, self._lead(step, decide))
            else:
                look_after = {0, (self.rank + 1) % self.size}
                self._wait([key], waits_for=look_after, meanwhile=self._take_offered)
                found = self._read(key)
        except RankLostError as error:
            found = self._propose(key, _lost(error))
        self._expects = False
        self.waits.append((step, came, time.monotonic() - came))
        record = wire.word(found, 0, f"record of step {step}")
        if "lost" in record:
            self._end(record)
        self.confirm()  # a record of which nobody was left to hear does not count
        self._is_over = record.get("go") in _ENDS
        return record

    def _lead(self, step: str, decide: Decide) -> Word:
        words: dict[int, Word] = {}
        for rank in range(self.size):
            key = f"{step}/{rank}"
            self._wait([key], waits_for={rank})
            words[rank] = wire.word(self._read(key), rank, f"word at step {step}")
        try:
            return decide(words)
        except RankLostError:
            raise
        except Exception as error:  # noqa: BLE001  # our own bug: nobody may wait for a record for ever
            return {"lost": 0, "reason": f"cannot decide step {step}: {error!r}"}

    def _propose(self, key: str, record: Word) -> bytes:
        """Write the record of a step unless there is one; return the one in force."""
        body = json.dumps(record, sort_keys=True)
        self.bytes_sent += len(body)
        return self._link.compare_set(key, body)

    def _end(self, record: Word) -> NoReturn:
        """End the session, for ranks at another step too: they find this before they act."""
        body = self._link.compare_set(_LOST, json.dumps(record, sort_keys=True))
        raise _as_error(body)

    def abandon(self, reason: str) -> None:
        """Tell the others that this rank leaves without having finished, unless all do."""
        if not self._is_over:
            self._tell_lost(self.rank, reason)

    def _tell_lost(self, rank: int, reason: str) -> None:
        try:
            self._link.compare_set(_LOST, json.dumps({"lost": rank, "reason": reason}))
        except RankLostError as gone:
            with contextlib.suppress(RankLostError):  # rank 0 may only be stopped, and wake up
                self._link.set(_LOST, json.dumps(_lost(gone)).encode())

    def _tell_last(self, rank: int, reason: str) -> None:
        """Tell that a rank is lost before this process ends, with the store if it is rank 0's."""
        self._tell_lost(rank, reason)
        if self.rank == 0:
            byes = [f"{BYE}/{other}" for other in range(1, self.size)]
            with contextlib.suppress(TimeoutError, RankLostError):
                wait_until(lambda: self._link.has(byes), within(_CATCH_UP_S))

    def confirm(self) -> None:
        """Make sure, before this rank writes or installs, that the others have not gone on.

        A process that was stopped wakes up where it was; by then it may have been given up. Raises
        `RankLostError` if so. A stop between this call and the write is not found out; what is
        written then is what all had agreed on.
        """
        self._obey()
        while self.rank == 0 and self._pulse.overslept():
            # Its store was stopped with it, and has the others' last words still to read.
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self._link.has([_LOST]), within(_CATCH_UP_S))
            self._obey()

    def _obey(self) -> None:
        if (body := self._link.get_now(_LOST)) is not None:
            raise _as_error(body)

    @contextlib.contextmanager
    def in_forward(self) -> Iterator[None]:
        """Look after the engine's forward in the body, and tell the others if it raises."""
        self._forwards += 1  # an op that fails everywhere makes another one, which has not failed
        key, guard = f"{FAILED}/{self._forwards}", None
        if self._settings.forward_failure == "end":
            guard = ForwardGuard(
                self.rank, self.size, self._settings.grace_s, key, tell=self._tell_last
            )
        with self._pulse.idle(guard):
            try:
                yield
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"[:1000]
                with contextlib.suppress(RankLostError):  # the forward's error is the one to raise
                    self._link.set(key, json.dumps({"rank": self.rank, "reason": reason}).encode())
                raise

    def put(self, body: bytes, sha256: str = "") -> str:
        """Offer a body; it crosses to the store once, whichever ranks offer it."""
        name = sha256 or digest(body)
        if self._link.add(f"body/{name}/claim") == 1:
            self.bytes_sent += len(body)
            starts = range(0, len(body), wire.PART_BYTES)
            for index, start in enumerate(starts if len(starts) > 1 else ()):
                part = body[start : start + wire.PART_BYTES]
                self._link.set(f"body/{name}/{index}", part)
            whole = body if len(starts) <= 1 else f"{_PARTS}{len(starts)}".encode()
            self._link.set(f"body/{name}", whole)
        return name

    def offer(self, body: bytes, sha256: str) -> None:
        """Put, on rank 0, a body that the next meeting will most likely agree on."""
        self._link.set(_OFFER, sha256.encode())
        self.put(body, sha256)

    def expect(self) -> None:
        """Take such a body while this rank waits in the next meeting."""
        self._expects = True

    def _take_offered(self) -> None:
        if self._expects and not self._offered and self._link.has([_OFFER]):
            self._offered = self._read(_OFFER).decode(errors="replace")
        if not (self._expects and self._offered):
            return
        self._take_parts(self._offered)
        if self._link.has([f"body/{self._offered}"]):
            self._expects = False
            with contextlib.suppress(SessionError):  # damaged: who needs it finds that out again
                self._taken = self._offered, self.get(self._offered)

    def _take_parts(self, sha256: str) -> None:
        """Take those parts of a body that are there, while the others are on their way."""
        taken = self._parts.setdefault(sha256, [])
        while self._link.has([f"body/{sha256}/{len(taken)}"]):
            taken.append(self._read(f"body/{sha256}/{len(taken)}"))

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256.

        Raises `SessionError` when the bytes that arrive are others.
        """
        if self._taken[0] == sha256:
            return self._taken[1]
        key = f"body/{sha256}"
        try:
            everybody = set(range(self.size))
            self._wait([key], waits_for=everybody, meanwhile=lambda: self._take_parts(sha256))
        except RankLostError as error:
            self._end(_lost(error))
        body = self._read(key)
        if body.startswith(_PARTS.encode()):
            body = self._in_parts(key, body, self._parts.pop(sha256, []))
        if digest(body) != sha256:
            raise SessionError(f"body {sha256}: arrived with sha256 {digest(body)}")
        return body

    def take(self, name: str) -> int:
        """Count one more of something that each is given once; return how many there were."""
        self.confirm()
        return self._link.add(f"take/{name}") - 1

    def _in_parts(self, key: str, told: bytes, taken: list[bytes]) -> bytes:
        """Return a body that is too large for one value of the store; the first parts are taken."""
        number = told[len(_PARTS) :]
        most = wire.MOST_BODY_BYTES // wire.PART_BYTES
        if not number.isdigit() or len(number) > len(str(most)) or int(number) > most:
            raise SessionError(f"{key}: {number[:20]!r} parts, {most} at most")
        left = [f"{key}/{index}" for index in range(len(taken), int(number))]
        if left and not self._link.has(left):  # they were there before their number was
            raise SessionError(f"{key}: a part of it is not there")
        return b"".join([*taken, *map(self._read, left)])

    def _read(self, key: str) -> bytes:
        body = self._link.get(key)
        self.bytes_received += len(body)
        return body

    def note(self, step: str, task: str = "") -> None:
        """Tell the others what this rank is at; raises as `confirm` does."""
        self._pulse.note(step, task)
        self.confirm()
        if task:  # at work for hours perhaps, and nobody else watches its neighbour
            try:
                self._watch.look({(self.rank + 1) % self.size} - {self.rank})
            except RankLostError as error:
                self._end(_lost(error))

    def follow(self, listener: Callable[[int, dict[str, Any]], None] | None) -> None:
        """Have the other ranks' heartbeats told from now on, on another thread; None ends it."""
        self._pulse.listener = listener

    def _wait(
        self,
        keys: list[str],
        waits_for: set[int],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until all keys exist: the one place where this package waits for another rank.

        ``meanwhile``: what to do each time they do not.
        Raises `RankLostError` once a rank waited for is given up, or another rank has given one up.
        """
        others = sorted(waits_for - {self.rank})
        told_s = 0.0

        def look(waited_s: float) -> None:
            nonlocal told_s
            self._obey()
            self._watch.look(set(others))
            if self.rank == 0 and waited_s - told_s > _TELL_S:
                told_s = waited_s
                for rank in others:
                    where = self._watch.describe(rank)
                    logger.info("waiting for rank %d for %.0f s: %s", rank, waited_s, where)

        def is_there() -> bool:
            found = self._link.has(keys)
            if not found:
                meanwhile()
            return found

        with self._pulse.idle():
            wait_until(is_there, look, brief_pause_s=_EACH_ASKS_S * self.size)

    def close(self) -> None:
        """Stop the heartbeat and let go of the store.

        Rank 0 holds the store, so it leaves last: see `_see_off`.
        """
        if self.rank:  # else its next beat might find the store gone
            self._pulse.stop()
        try:
            self._link.set(f"{BYE}/{self.rank}", b"1")
            if self.rank == 0:
                self._see_off()
        except (RankLostError, TimeoutError):
            pass  # the session is over either way, and its outcome is recorded already
        finally:
            self._pulse.stop()
            self._link.close()

    def _see_off(self) -> None:
        """Wait until every rank has said goodbye or is lost, for one silence at most."""
        missing, limit = set(range(1, self.size)), within(self._settings.silence_s)

        def look(waited_s: float) -> None:
            limit(waited_s)
            for rank in sorted(missing):
                try:
                    self._watch.look({rank})
                except RankLostError:
                    missing.discard(rank)

        def is_done() -> bool:
            return not missing or self._link.has([f"{BYE}/{rank}" for rank in sorted(missing)])

        wait_until(is_done, look)


def _as_error(body: bytes) -> RankLostError:
    """Return the error by which a session ends."""
    found = wire.read(wire.Lost, body, 0, "record of the session's end")
    return RankLostError(found["lost"], found["reason"])


def _lost(error: RankLostError) -> Word:
    """Return the record that a rank is given up."""
    return {"lost": error.rank, "reason": error.reason}
