# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one session meet.

Owns every vote that crosses ranks and every wait of the package. One primitive, `meet`: each
rank hands in its vote, rank 0 decides from all of them, and the decision is **one record, written
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
from typing import TYPE_CHECKING

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.blobs import Bodies, Traffic
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.forward_guard import ForwardGuard
from warmup_plugin.coordination.heartbeat import Heartbeat
from warmup_plugin.coordination.messages import FAILED, FORWARD, Head, Lost, said
from warmup_plugin.coordination.rounds import D, Round, V, VoteError
from warmup_plugin.coordination.session_end import SessionEnd, lost_by, unable
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.polling import wait_until

if TYPE_CHECKING:
    from warmup_plugin.coordination.base import Listener
    from warmup_plugin.coordination.links import Link
    from warmup_plugin.coordination.rounds import Decide
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

_RECORD = "record"
#: Decisions upon which every rank raises by itself.
_ENDS = ("refuse", "abort", "retry")
#: How often rank 0 says whom it waits for, seconds.
_TELL_S = 30.0
#: All waiting ranks together ask the store about this often, seconds, in the first second.
_EACH_ASKS_S = 0.001


class Coordinator(SessionEnd):
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
        detector = detector or FailureDetector(link, settings, hears=True)
        super().__init__(link, settings, detector, heartbeat or Heartbeat(link, settings))
        self.way = link.way
        self.waits: list[tuple[str, float, float]] = []
        #: Told which ranks this one waits for, and nobody when it waits no more.
        self.on_wait: Callable[[Iterable[int]], None] = lambda _ranks: None
        self._forwards = 0
        self._hosts: dict[int, str] = {0: link.leader} if link.leader else {}
        self._expects = False
        self._places: dict[str, int] = {}
        self._traffic = Traffic(link)
        self._bodies = Bodies(self._traffic, self._wait_for_body)

    @property
    def bytes_sent(self) -> int:
        """How much this rank has handed to the store; heartbeats are not counted."""
        return self._traffic.sent

    @property
    def bytes_received(self) -> int:
        """How much it has taken from it."""
        return self._traffic.received

    def meet(self, held: Round[V, D], vote: V, decide: Decide[V, D]) -> D:
        """Hand in this rank's vote, return the one decision all ranks act on.

        Rank 0 gathers and decides; the others wait for the record. Whoever stops waiting records
        that instead: the first record of a step is the only one.
        """
        step = held.name
        self.note(step)
        self._detector.is_back = step.startswith(FORWARD)
        body, key = said(step, vote).encode(), f"{step}/{_RECORD}"
        if len(body) > messages.MOST_WORD_BYTES:
            raise SessionError(f"vote at step {step}: {len(body)} bytes, too large to be sent")
        self._traffic.sent += len(body)
        self._link.set(f"{step}/{self.rank}", body)
        came = time.monotonic()
        try:
            if self.rank == 0:
                found = self._propose(key, said(step, self._lead(held, decide)))
            else:
                look_after = {0, (self.rank + 1) % self.size}
                found = self._wait(key, look_after, self._take_offered)
        except RankLostError as error:
            found = self._propose(key, said(step, lost_by(error)))
        self._expects = False
        self.waits.append((step, came, time.monotonic() - came))
        decision = self._read(held, found)
        self.confirm()  # a record of which nobody was left to hear does not count
        self._is_over = decision.go in _ENDS
        return decision

    def _lead(self, held: Round[V, D], decide: Decide[V, D]) -> D | Lost:
        bodies: dict[int, bytes] = {}
        for rank in range(self.size):
            bodies[rank] = self._wait(f"{held.name}/{rank}", {rank})
        try:
            return decide({r: messages.read_vote(held, body, r) for r, body in bodies.items()})
        except RankLostError:
            raise
        except VoteError as error:
            return unable(error.rank, error.reason)
        except Exception as error:  # noqa: BLE001  # our own bug: nobody may wait for a record for ever
            return unable(0, f"cannot decide step {held.name}: {error!r}")

    def _read(self, held: Round[V, D], body: bytes) -> D:
        """Return the decision in a record; the session ends where it is none."""
        what = f"record of step {held.name}"
        head = messages.read(Head, body, 0, what)
        if head.lost is not None:
            self._end(messages.read(Lost, body, 0, what))
        try:
            return messages.read_decision(held, body, head)
        except VoteError as error:
            self._end(unable(error.rank, error.reason))

    def _propose(self, key: str, body: str) -> bytes:
        """Write the record of a step unless there is one; return the one in force."""
        self._traffic.sent += len(body)
        return self._link.compare_set(key, body)

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

    def _wait_for_body(self, key: str, meanwhile: Callable[[], None]) -> bytes:
        try:
            return self._wait(key, set(range(self.size)), meanwhile)
        except RankLostError as error:
            self._end(lost_by(error))

    def take(self, name: str) -> int:
        """Count one more of something that each is given once; return how many there were.

        Each place is a claim, which no stranger can make; a counter could be set back unseen. A
        rank that finds a place taken goes on behind the last place that is known to be taken.
        """
        self.confirm()
        following, place = f"take/{name}/next", self._places.get(name, 0)
        while not self._link.claim(f"take/{name}/{place}"):
            place = max(place + 1, int(self._link.get_now(following) or 0))
        self._places[name] = place + 1
        self._link.set(following, str(place + 1).encode())
        return place

    def note(self, step: str, task: str = "") -> None:
        """Tell the others what this rank is at; raises as `confirm` does."""
        self._heartbeat.note(step, task)
        self.confirm()
        if task:  # at work for hours perhaps, and nobody else watches its neighbour
            try:
                self._detector.look({(self.rank + 1) % self.size} - {self.rank})
            except RankLostError as error:
                self._end(lost_by(error))

    def follow(self, listener: Listener | None) -> None:
        """Have the other ranks' heartbeats told from now on, on another thread; None ends it."""
        self._heartbeat.listener = listener

    def _wait(
        self, key: str, waits_for: set[int], meanwhile: Callable[[], None] = lambda: None
    ) -> bytes:
        """Return what a rank writes there: the one place where this package waits for another rank.

        ``meanwhile``: what to do each time it is not there.
        Raises `RankLostError` once a rank waited for is given up, or another rank has given one up.
        """
        others, found = sorted(waits_for - {self.rank}), b""
        told_s = 0.0

        def look(waited_s: float) -> None:
            nonlocal told_s
            self._obey()
            self._detector.look(set(others))  # first: without it none goes on
            self._withstand()
            self.on_wait(others)
            if waited_s - told_s > _TELL_S and (telling := self._telling(others)):
                told_s = waited_s
                for rank in telling:
                    where = self._detector.describe(rank)
                    logger.info("waiting for rank %d for %.0f s: %s", rank, waited_s, where)

        def is_there() -> bool:
            nonlocal found
            if (body := self._traffic.read(key)) is None:
                meanwhile()
                return False
            found = body
            return True

        try:
            with self._heartbeat.idle():
                wait_until(is_there, look, brief_pause_s=_EACH_ASKS_S * self.size)
        finally:
            self.on_wait(())
        return found

    def _telling(self, others: list[int]) -> list[int]:
        """Return the ranks of which this one logs that all wait for them.

        Rank 0 logs it of every rank. Rank 1 logs it of rank 0, which cannot while it is stuck in
        its own forward.
        """
        if self.rank == 0:
            return others
        is_rank_0s_voice = self.rank == 1 and self._detector.is_back
        return [0] if is_rank_0s_voice and 0 in others else []
