# SPDX-License-Identifier: Apache-2.0
"""One rank's part in a session as a tree: what it has heard, and what it asks next.

A rank's program is run against given answers of the store until it asks for one more: that question
is its next move. So a tree of moves is grown by running the real `Coordinator` and `StoreLink`,
once for each answer there is to each question. Owns the models that stand below the real code:
torch's store, `FailureDetector`, `Heartbeat`, `wait_until`. Rounds of a wait in which nothing
happened are forgotten, since they leave the code where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import msgspec

from warmup_plugin.coordination import coordinator as coordinator_module
from warmup_plugin.coordination import session_end
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.messages import said
from warmup_plugin.coordination.rounds import Decision, Round, Vote
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from warmup_plugin.coordination.forward_guard import ForwardGuard

LOST = "lost"
SIZE = 3
SETTINGS = Settings()
#: What the store may say instead of an answer: its process is gone; it is stopped.
GONE, SILENT = "gone", "silent"
_FAILURES = {GONE: "Connection reset by peer", SILENT: "Socket Timeout"}
#: Seconds waited, as a wait is told: more than any pause, less than any limit; more than any limit.
A_WHILE, TOO_LONG = 1.0, 1e9
WRITES = ("set", "compare_set")
#: What a round of a wait hears when nothing has happened.
_NOTHING = {("check", False), ("get", None), ("look", None), ("waited", A_WHILE)}


class Said(Vote, frozen=True):
    """What a program hands in at any of its rounds."""

    word: str | None = None


class Decided(Decision, frozen=True):
    """What is decided at any of them: names of bodies."""

    what: dict[str, str] = msgspec.field(default_factory=dict)


class _Paused(BaseException):
    """A run has used its answers up."""


class Move(NamedTuple):
    """What a rank asks next."""

    kind: str
    argument: Any = None
    value: Any = None


class Player:
    """One run of a rank's program, fed with answers; what it asks and does is kept."""

    def __init__(self, answers: tuple[Hashable, ...]) -> None:
        self._answers = list(answers)
        self.kept: list[tuple[str, Hashable]] = []
        self.move: Move | None = None
        self.waits = False
        self.is_at_start = False
        self.in_round = False
        self.is_fresh = True
        self.is_sure = False
        self.acts: list[str] = []
        self.records: list[tuple[str, str]] = []

    def ask(self, kind: str, argument: Any = None, value: Any = None) -> Any:
        """Return the next answer; without one, end the run and remember the question."""
        if self.move is None and not self._answers:
            self.move, self.waits = Move(kind, argument, value), self.is_at_start
        if self.move is not None:
            raise _Paused
        self.is_at_start = False
        self.is_fresh = kind in WRITES
        answer = self._answers.pop(0)
        self.is_sure = argument in (LOST, (LOST,)) or (kind == "overslept" and self.is_sure)
        self.kept.append((kind, answer))
        if isinstance(answer, str) and answer in _FAILURES:
            raise RuntimeError(_FAILURES[answer])
        return answer

    def wait_until(
        self,
        is_there: Callable[[], bool],
        look: Callable[[float], None],
        *,
        brief_pause_s: float = 0.0,
    ) -> None:
        """Stand in for `waiting.wait_until`, without the time that passes."""
        del brief_pause_s
        begin, was_fresh = len(self.kept), self.is_fresh
        before = list[tuple[str, Hashable]]()
        while self._asks_first(is_there):
            self.in_round = True
            try:
                look(self.ask("waited"))
            finally:
                self.in_round = self.move is not None
            heard = self.kept[begin:]
            if set(heard) <= _NOTHING or heard == before:  # as where one key is a stranger's
                del self.kept[begin:]
                self.is_fresh, self.is_sure = was_fresh, False
            else:
                begin, was_fresh, before = len(self.kept), self.is_fresh, heard

    def _asks_first(self, is_there: Callable[[], bool]) -> bool:
        self.is_at_start = True
        is_missing = not is_there()
        self.is_at_start = False
        return is_missing


class _Store:
    """What `StoreLink` needs of torch's store; every call is a question of the player's."""

    def __init__(self, player: Player) -> None:
        self._player = player

    def set(self, key: str, value: bytes) -> None:
        self._player.ask("set", key, value)

    def compare_set(self, key: str, expected: bytes, value: bytes) -> Any:
        if not expected:
            return self._player.ask("compare_set", key, value)
        found = self._player.ask("get", key)
        return expected if found is None else found

    def check(self, keys: list[str]) -> Any:
        return self._player.ask("check", tuple(keys))

    def look(self, ranks: frozenset[int]) -> Any:
        return self._player.ask("look", ranks)


class _Detector:
    """A model of `Watch`: which rank it gives up, if any, is the scheduler's to say."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link

    def look(self, ranks: set[int]) -> None:
        found = self._link._ask("look", frozenset(ranks)) if ranks else None
        if found is not None:
            raise RankLostError(found, "given up")

    def describe(self, rank: int) -> str:
        return f"rank {rank}"


class _Heartbeat:
    """A model of `Heartbeat`: nobody hears it; the scheduler says whether it has overslept."""

    def __init__(self, link: StoreLink, player: Player, *, may_stop: bool) -> None:
        self._asks = player if may_stop and link.rank == 0 else None

    def note(self, step: str, task: str = "") -> None:
        pass

    def idle(self, guard: ForwardGuard | None = None) -> contextlib.AbstractContextManager[None]:
        del guard
        return contextlib.nullcontext()

    def overslept(self) -> bool:
        return bool(self._asks is not None and self._asks.ask("overslept"))

    def stop(self) -> None:
        pass


class Seat:
    """What a program is given: the meeting, and where to say what it did."""

    def __init__(self, coordinator: Coordinator, player: Player) -> None:
        self.coordinator = coordinator
        self.rank = coordinator.rank
        self._player = player

    def meet(self, step: str, word: Any = None, decide: Callable[[Any], Any] | None = None) -> Any:
        """Meet, and remember which record this rank has acted on."""

        def lead(votes: Mapping[int, Said]) -> Decided:
            if decide is None:
                return Decided(go=step)
            words = {rank: {"word": vote.word} for rank, vote in votes.items()}
            return Decided(go="on", what=decide(words))

        found = self.coordinator.meet(Round(step, Said, Decided), Said(word=word), lead)
        self._player.records.append((step, said(step, found)))
        self._player.is_fresh = True
        return found.what

    def act(self, what: str) -> None:
        """Install or write."""
        self._player.acts.append(what)
        self._player.is_fresh = True


#: What one rank does in a session, from opening it to its last step.
Program = Callable[[Seat], None]
MakeMeeting = Callable[..., Coordinator]


@dataclass(slots=True)
class Node:
    """A point in a rank's program: all it has heard so far, and its next move; None at the end."""

    history: tuple[Hashable, ...] = ()
    move: Move | None = None
    #: What came before is to be seen from outside: a death here differs from one before.
    is_fresh: bool = False
    #: The last thing heard is that the session has not ended.
    is_sure: bool = False
    #: At the first question of a wait; at a later one of a round of it.
    waits: bool = False
    in_round: bool = False
    acts: tuple[str, ...] = ()
    records: tuple[tuple[str, str], ...] = ()
    outcome: str = ""
    next: dict[Hashable, int] = field(default_factory=dict)


class Tree:
    """The program of one rank, grown by running it."""

    def __init__(
        self, rank: int, program: Program, make: MakeMeeting, *, may_stop: bool, outlives: bool
    ) -> None:
        """``outlives``: the store is not rank 0's own."""
        self.nodes: list[Node] = []
        self.runs = 0
        self._rank, self._program, self._make, self._may_stop = rank, program, make, may_stop
        self._sweeps = outlives and rank == 0
        self._index: dict[Hashable, int] = {}
        self._run(())

    def after(self, number: int, answer: Hashable) -> int:
        """Return the node that an answer leads to."""
        node = self.nodes[number]
        found = node.next.get(answer)
        if found is None:
            found = node.next[answer] = self._run((*node.history, answer))
        return found

    def tomb(self, number: int) -> int:
        """Return a node for a rank that died here: what it has acted on is all that is left."""
        records = self.nodes[number].records
        return self._number(("dead", records), Node(records=records, outcome="dead"))

    def _run(self, answers: tuple[Hashable, ...]) -> int:
        self.runs += 1
        player = Player(answers)
        link = StoreLink(_Store(player), self._rank, SIZE)  # type: ignore[arg-type]  # a model of it
        link.sweeps = self._sweeps
        outcome = ""
        with contextlib.ExitStack() as stack:
            for module in (coordinator_module, session_end):
                stack.enter_context(mock.patch.object(module, "wait_until", player.wait_until))
            heartbeat = _Heartbeat(link, player, may_stop=self._may_stop)
            coordinator = self._make(link, SETTINGS, detector=_Detector(link), heartbeat=heartbeat)
            try:
                self._program(Seat(coordinator, player))
                outcome = "done"
            except RankLostError as error:
                outcome = f"lost {error.rank}"
            except SessionError as error:
                outcome = f"unable {str(error).split()[1]}"
            except _Paused:
                pass
        acts, records = tuple(player.acts), tuple(player.records)
        if player.move is None:  # how it came to its end makes no difference any more
            node = Node(acts=acts, records=records, outcome=outcome)
            return self._number(("end", outcome, acts, records), node)
        history = tuple(answer for _, answer in player.kept)
        node = Node(
            history, player.move, player.is_fresh, player.is_sure, player.waits, player.in_round,
            acts, records,
        )  # fmt: skip
        return self._number(history, node)

    def _number(self, key: Hashable, node: Node) -> int:
        if key not in self._index:
            self._index[key] = len(self.nodes)
            self.nodes.append(node)
        return self._index[key]
