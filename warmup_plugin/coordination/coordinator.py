# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one session meet.

Owns every word that crosses ranks and every wait of the package. One primitive, `meet`: each
rank hands in its word, rank 0 decides from all of them, and the decision is **one record, written
by compare-and-set**, which every rank reads before it acts. Tables and plans travel apart
(`blobs.py`). Bytes only, never pickle.

Refuses to wait for ever: a rank that has gone silent or stuck is given up by name (`heartbeat.py`
has the rule), by a record too, so that all ranks that are left raise the same `RankLostError`, and
so does the one given up, should it wake. No collective of the engine's process group is used, but
for one broadcast of the store's address at the beginning; so rank 0 may tune for hours under a
group timeout of seconds.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.blobs import Bodies, Traffic
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.forward_guard import ForwardGuard
from warmup_plugin.coordination.heartbeat import Heartbeat
from warmup_plugin.coordination.messages import BYE, FAILED, FORWARD, LOST
from warmup_plugin.coordination.votes import VoteError
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from warmup_plugin.coordination.base import Decide, Word
    from warmup_plugin.coordination.kv_client import Link
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

_RECORD = "record"
#: In every word and record: of which step it is.
_STEP = "step"
#: Decisions upon which every rank raises by itself.
_ENDS = ("refuse", "abort", "retry")
#: How often rank 0 says whom it waits for, seconds.
_TELL_S = 30.0
#: All waiting ranks together ask the store about this often, seconds, in the first second.
_EACH_ASKS_S = 0.001
#: How long a rank that was stopped gives the store to read what arrived meanwhile, seconds.
_CATCH_UP_S = 0.5


class Coordinator:
    """The rendezvous of several ranks over one key-value store.

    Raises `RankLostError` from any call once a rank is given up, by this rank or another.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        *,
        detector: FailureDetector | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.rank = link.rank
        self.size = link.size
        self.way = link.way
        self.waits: list[tuple[str, float, float]] = []
        #: Told which ranks this one waits for, and nobody when it waits no more.
        self.on_wait: Callable[[Iterable[int]], None] = lambda _ranks: None
        self._link = link
        self._settings = settings
        self._forwards = 0
        self._hosts: dict[int, str] = {0: link.leader} if link.leader else {}
        self._is_over = self._expects = False
        self._traffic = Traffic(link)
        self._bodies = Bodies(self._traffic, self._wait_for_body)
        self._detector = detector or FailureDetector(link, settings)
        self._heartbeat = heartbeat or Heartbeat(link, settings)

    @property
    def bytes_sent(self) -> int:
        """How much this rank has handed to the store; heartbeats are not counted."""
        return self._traffic.sent

    @property
    def bytes_received(self) -> int:
        """How much it has taken from it."""
        return self._traffic.received

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word, return the one record all ranks act on.

        Rank 0 gathers and decides; the others wait for the record. Whoever stops waiting records
        that instead: the first record of a step is the only one.
        """
        self.note(step)
        self._detector.is_back = step.startswith(FORWARD)
        body, key = _said(step, word).encode(), f"{step}/{_RECORD}"
        if len(body) > messages.MOST_WORD_BYTES:
            raise SessionError(f"word at step {step}: {len(body)} bytes, too large to be sent")
        self._traffic.sent += len(body)
        self._link.set(f"{step}/{self.rank}", body)
        came = time.monotonic()
        try:
            if self.rank == 0:
                found = self._propose(key, _said(step, self._lead(step, decide)))
            else:
                look_after = {0, (self.rank + 1) % self.size}
                self._wait([key], waits_for=look_after, meanwhile=self._take_offered)
                found = self._traffic.read(key)
        except RankLostError as error:
            found = self._propose(key, _said(step, _lost(error)))
        self._expects = False
        self.waits.append((step, came, time.monotonic() - came))
        record = messages.word(found, 0, f"record of step {step}")
        its_step = record.pop(_STEP, step)
        if "lost" in record:
            self._end(record)
        if its_step != step:
            self._end(_unable(0, f"its record of step {step} is of step {its_step!r:.80}"))
        self.confirm()  # a record of which nobody was left to hear does not count
        self._is_over = record.get("go") in _ENDS
        return record

    def _lead(self, step: str, decide: Decide) -> Word:
        words: dict[int, Word] = {}
        for rank in range(self.size):
            key = f"{step}/{rank}"
            self._wait([key], waits_for={rank})
            words[rank] = messages.word(self._traffic.read(key), rank, f"word at step {step}")
        try:
            for rank, word in words.items():
                if (its_step := word.pop(_STEP, step)) != step:
                    reason = f"its vote at step {step} is one of step {its_step!r:.80}"
                    raise VoteError(rank, reason)  # noqa: TRY301  # as those that `decide` finds
            return decide(words)
        except RankLostError:
            raise
        except VoteError as error:
            return _unable(error.rank, error.reason)
        except Exception as error:  # noqa: BLE001  # our own bug: nobody may wait for a record for ever
            return _unable(0, f"cannot decide step {step}: {error!r}")

    def _propose(self, key: str, body: str) -> bytes:
        """Write the record of a step unless there is one; return the one in force."""
        self._traffic.sent += len(body)
        return self._link.compare_set(key, body)

    def _end(self, record: Word) -> NoReturn:
        """End the session, for ranks at another step too: they find this before they act."""
        body = self._link.compare_set(LOST, messages.text(record))
        raise _as_error(body)

    def abandon(
        self, reason: str, *, of: int | None = None, lives: bool = False
    ) -> RankLostError | None:
        """Tell the others that this rank leaves without having finished, unless all do.

        ``of``: since that other one is lost. ``lives``: this one goes on without this package, and
        so may they. Returns the loss by which the session ends, where that has been recorded
        before, or the store is not there any more: then this rank must not go on either.
        """
        if self._is_over:
            return None
        try:
            found = _as_error(self._tell_lost(self.rank if of is None else of, reason, lives=lives))
        except RankLostError as error:  # a record that cannot be read
            return error
        return found if isinstance(found, RankLostError) else None

    def name_hosts(self, nodes: list[list[int]], hosts: list[str]) -> None:
        """Say on which machines the ranks are, node by node."""
        pairs = zip(nodes, hosts, strict=True)
        self._hosts = {rank: host for ranks, host in pairs for rank in ranks}
        if len(nodes) > 1:  # while all are there: who is not connected later has been
            self._detector.look_at_connections()

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's machine; before the first record, as its card has it."""
        if rank in self._hosts:
            return self._hosts[rank]
        with contextlib.suppress(RankLostError):
            return self._detector.host_of(rank)
        return ""

    def _tell_lost(self, rank: int, reason: str, *, lives: bool = False) -> bytes:
        """Record the end of the session unless it has ended; return the record in force."""
        record = _unable(rank, reason) if lives else {"lost": rank, "reason": reason}
        try:
            return self._link.compare_set(LOST, messages.text(record))
        except RankLostError as gone:
            body = messages.text(_lost(gone)).encode()
            with contextlib.suppress(RankLostError):  # rank 0 may only be stopped, and wake up
                self._link.set(LOST, body)
            return body

    def _tell_last(self, rank: int, reason: str) -> None:
        """Tell that a rank is lost before this process ends, with the store if it is rank 0's."""
        self._tell_lost(rank, reason)
        if self.rank == 0:
            byes = [f"{BYE}/{other}" for other in range(1, self.size)]
            with contextlib.suppress(TimeoutError, RankLostError):  # it ends either way
                wait_until(lambda: self._link.has(byes), within(_CATCH_UP_S))

    def confirm(self) -> None:
        """Make sure, before this rank writes or installs, that the others have not gone on.

        A process that was stopped wakes up where it was; by then it may have been given up. Raises
        `RankLostError` if so. A stop between this call and the write is not found out; what is
        written then is what all had agreed on.
        """
        self._obey()
        while self.rank == 0 and self._heartbeat.overslept():
            # Its store was stopped with it, and has the others' last words still to read.
            with contextlib.suppress(TimeoutError):  # nobody has given it up
                wait_until(lambda: self._link.has([LOST]), within(_CATCH_UP_S))
            self._obey()

    def _obey(self) -> None:
        if (body := self._link.get_now(LOST)) is not None:
            raise _as_error(body)

    @contextlib.contextmanager
    def in_forward(self) -> Iterator[None]:
        """Look after the engine's forward in the body, and tell the others if it raises."""
        self._forwards += 1  # an op that fails everywhere makes another one, which has not failed
        key, guard = f"{FAILED}/{self._forwards}", None
        if self._settings.forward_failure == "end":
            guard = ForwardGuard(
                self.rank, self.size, self._settings.grace_s, key, tell=self._tell_last,
                host_of=self.host_of,
            )  # fmt: skip
        with self._heartbeat.idle(guard):
            try:
                yield
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"[:1000]
                with contextlib.suppress(RankLostError):  # the forward's error is the one to raise
                    self._link.set(
                        key, messages.text({"rank": self.rank, "reason": reason}).encode()
                    )
                raise

    def put(self, body: bytes, sha256: str = "") -> str:
        """Offer a body to all ranks; return its sha256, by which they get it, unless known here."""
        return self._bodies.put(body, sha256)

    def offer(self, body: bytes, sha256: str) -> None:
        """Put, on rank 0, a body that the next meeting will most likely agree on."""
        self._bodies.offer(body, sha256)

    def expect(self) -> None:
        """Take such a body while this rank waits in the next meeting."""
        self._expects = True

    def _take_offered(self) -> None:
        if self._expects and self._bodies.take_offered():
            self._expects = False

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256, checked."""
        return self._bodies.get(sha256)

    def _wait_for_body(self, key: str, meanwhile: Callable[[], None]) -> None:
        try:
            self._wait([key], waits_for=set(range(self.size)), meanwhile=meanwhile)
        except RankLostError as error:
            self._end(_lost(error))

    def take(self, name: str) -> int:
        """Count one more of something that each is given once; return how many there were."""
        self.confirm()
        return self._link.add(f"take/{name}") - 1

    def note(self, step: str, task: str = "") -> None:
        """Tell the others what this rank is at; raises as `confirm` does."""
        self._heartbeat.note(step, task)
        self.confirm()
        if task:  # at work for hours perhaps, and nobody else watches its neighbour
            try:
                self._detector.look({(self.rank + 1) % self.size} - {self.rank})
            except RankLostError as error:
                self._end(_lost(error))

    def follow(self, listener: Callable[[int, dict[str, Any]], None] | None) -> None:
        """Have the other ranks' heartbeats told from now on, on another thread; None ends it."""
        self._heartbeat.listener = listener

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
            self._detector.look(set(others))
            self.on_wait(others)
            if waited_s - told_s > _TELL_S and (telling := self._telling(others)):
                told_s = waited_s
                for rank in telling:
                    where = self._detector.describe(rank)
                    logger.info("waiting for rank %d for %.0f s: %s", rank, waited_s, where)

        def is_there() -> bool:
            found = self._link.has(keys)
            if not found:
                meanwhile()
            return found

        try:
            with self._heartbeat.idle():
                wait_until(is_there, look, brief_pause_s=_EACH_ASKS_S * self.size)
        finally:
            self.on_wait(())

    def _telling(self, others: list[int]) -> list[int]:
        """Return the ranks of which this one logs that all wait for them.

        Rank 0 logs it of every rank. Rank 1 logs it of rank 0, which cannot while it is stuck in
        its own forward.
        """
        if self.rank == 0:
            return others
        is_rank_0s_voice = self.rank == 1 and self._detector.is_back
        return [0] if is_rank_0s_voice and 0 in others else []

    def close(self) -> None:
        """Stop the heartbeat and let go of the store.

        Rank 0 holds the store, so it leaves last: see `_see_off`.
        """
        if self.rank:  # else its next beat might find the store gone
            self._heartbeat.stop()
        try:
            self._link.set(f"{BYE}/{self.rank}", b"1")
            if self.rank == 0:
                self._see_off()
        except (RankLostError, TimeoutError):
            pass  # the session is over either way, and its outcome is recorded already
        finally:
            self._heartbeat.stop()
            if (
                self._link.sweeps
            ):  # else the store goes with this rank, and a late one hears of it so
                self._tell_lost(0, "has left")
            self._link.close()

    def _see_off(self) -> None:
        """Wait until every rank has said goodbye or is lost, for one silence at most."""
        missing, limit = set(range(1, self.size)), within(self._settings.silence_s)

        def look(waited_s: float) -> None:
            limit(waited_s)
            for rank in sorted(missing):
                try:
                    self._detector.look({rank})
                except RankLostError:
                    missing.discard(rank)

        def is_done() -> bool:
            return not missing or self._link.has([f"{BYE}/{rank}" for rank in sorted(missing)])

        wait_until(is_done, look)


def turn_away(link: Link, reason: str, limit_s: float) -> None:
    """Tell the others that this rank lives and cannot take part, before it has a `Coordinator`.

    Lets go of the store, on rank 0 when the others have, ``limit_s`` later at the latest.
    """
    try:
        link.compare_set(LOST, messages.text(_unable(link.rank, reason)))
        link.set(f"{BYE}/{link.rank}", b"1")
        if link.rank == 0:
            byes = [f"{BYE}/{rank}" for rank in range(1, link.size)]
            wait_until(lambda: link.has(byes), within(limit_s))
    except (RankLostError, TimeoutError):
        pass  # there is nobody left to tell
    finally:
        link.close()


def _said(step: str, word: Word) -> str:
    return messages.text({**word, _STEP: step})


def _as_error(body: bytes) -> RankLostError | SessionError:
    """Return the error by which a session ends."""
    found = messages.read(messages.Lost, body, 0, "record of the session's end")
    if found["lives"]:
        return SessionError(f"rank {found['lost']} cannot go on: {found['reason']}")
    return RankLostError(found["lost"], found["reason"])


def _unable(rank: int, reason: str) -> Word:
    """Return the record that a rank lives and cannot go on."""
    return {"lost": rank, "reason": reason, "lives": True}


def _lost(error: RankLostError) -> Word:
    """Return the record that a rank is given up."""
    return {"lost": error.rank, "reason": error.reason}
