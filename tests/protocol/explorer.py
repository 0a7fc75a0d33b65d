# SPDX-License-Identifier: Apache-2.0
"""Every schedule of a session: the real `Meeting` and `StoreLink` over a model of the store.

A rank's program is run against given answers of the store until it asks for one more; what it asks
then is its next move. So the moves of a rank are a tree that is grown by running the real code, once
for each answer it can get, and a schedule is a walk through the trees of all ranks and one store.
The explorer takes every walk, in which any rank may at any point

    be killed         for good; rank 0 takes the store along
    be given up       by a rank that watches it, though it is only late; it goes on when it likes
    be stopped        rank 0 only: its store stops too, others get no answer, and it wakes up later;
                      for the others being stopped is being late

and checks in every state and at every end what `docs/protocol.md` promises. A wait costs one round:
rounds in which nothing happened are forgotten, since they leave the code where it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from unittest import mock

from warmup_plugin import rendezvous
from warmup_plugin.errors import RankLostError
from warmup_plugin.pulse import BYE
from warmup_plugin.rendezvous import Meeting
from warmup_plugin.settings import Settings
from warmup_plugin.storelink import StoreLink

if TYPE_CHECKING:
    from warmup_plugin.pulse import ForwardGuard

LOST = "lost"
SIZE = 3
SETTINGS = Settings()
#: What the store may say instead of an answer: its process is gone; it is stopped.
GONE, SILENT = "gone", "silent"
_FAILURES = {GONE: "Connection reset by peer", SILENT: "Socket Timeout"}
#: Seconds waited, as a wait is told: more than any pause, less than any limit; more than any limit.
_A_WHILE, _TOO_LONG = 1.0, 1e9
_OPEN: Any = object()
_WRITES = ("set", "add", "compare_set")
#: What a round of a wait hears when nothing has happened.
_NOTHING = {("check", False), ("look", None), ("waited", _A_WHILE)}
#: A killed or stopped rank; a rank given up wrongly; rank 0 with its store stopped.
FAULTS = ("kill", "late", "stop")


class _Paused(BaseException):
    """A run has used its answers up."""


class Move(NamedTuple):
    """What a rank asks next."""

    kind: str
    argument: Any = None
    value: Any = None


class Player:
    """One run of a rank's program, fed with answers. ``said``: what the code did so far."""

    def __init__(self, answers: tuple[Hashable, ...]) -> None:
        self._answers = list(answers)
        self.kept: list[tuple[str, Hashable]] = []
        self.move: Move | None = None
        self.waits = False
        self.is_at_start = False
        self.is_fresh = True
        self.acts: list[str] = []
        self.records: list[tuple[str, str]] = []

    def ask(self, kind: str, argument: Any = None, value: Any = None) -> Any:
        """Return the next answer; without one, end the run and remember the question."""
        if self.move is None and not self._answers:
            self.move, self.waits = Move(kind, argument, value), self.is_at_start
        if self.move is not None:
            raise _Paused
        self.is_at_start = False
        self.is_fresh = kind in _WRITES
        answer = self._answers.pop(0)
        self.kept.append((kind, answer))
        if isinstance(answer, str) and answer in _FAILURES:
            raise RuntimeError(_FAILURES[answer])
        return answer

    def wait_until(self, is_there: Callable[[], bool], look: Callable[[float], None]) -> None:
        """Stand in for `waiting.wait_until`, without the time that passes."""
        begin, was_fresh = len(self.kept), self.is_fresh
        while self._asks_first(is_there):
            look(self.ask("waited"))
            if set(self.kept[begin:]) <= _NOTHING:
                del self.kept[begin:]
                self.is_fresh = was_fresh
            else:
                begin, was_fresh = len(self.kept), self.is_fresh

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

    def get(self, key: str) -> Any:
        return self._player.ask("get", key)

    def add(self, key: str, _one: int) -> Any:
        return self._player.ask("add", key)

    def compare_set(self, key: str, _expected: str, value: str) -> Any:
        return self._player.ask("compare_set", key, value.encode())

    def check(self, keys: list[str]) -> Any:
        return self._player.ask("check", tuple(keys))

    def look(self, ranks: frozenset[int]) -> Any:
        return self._player.ask("look", ranks)


class _Watch:
    """A model of `Watch`: which rank it gives up, if any, is the scheduler's to say."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link

    def look(self, ranks: set[int]) -> None:
        found = self._link._ask("look", frozenset(ranks)) if ranks else None
        if found is not None:
            raise RankLostError(found, "given up")

    def describe(self, rank: int) -> str:
        return f"rank {rank}"


class _Pulse:
    """A model of `Pulse`: nobody hears it; whether it has overslept is the scheduler's to say."""

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

    def __init__(self, meeting: Meeting, player: Player) -> None:
        self.meeting = meeting
        self.rank = meeting.rank
        self._player = player

    def meet(self, step: str, word: Any = None, decide: Callable[[Any], Any] | None = None) -> Any:
        """Meet, and remember which record this rank has acted on."""
        record = self.meeting.meet(step, {"word": word}, decide or (lambda _words: {"go": step}))
        self._player.records.append((step, json.dumps(record, sort_keys=True)))
        self._player.is_fresh = True
        return record

    def act(self, what: str) -> None:
        """Install or write."""
        self._player.acts.append(what)
        self._player.is_fresh = True


#: What one rank does in a session, from opening it to its last step.
Program = Callable[[Seat], None]
MakeMeeting = Callable[..., Meeting]


@dataclass(slots=True)
class Node:
    """A point in a rank's program: all it has heard so far, and its next move; None at the end."""

    history: tuple[Hashable, ...]
    move: Move | None
    #: What came before is to be seen from outside: a death here differs from one before.
    is_fresh: bool
    waits: bool
    acts: tuple[str, ...]
    records: tuple[tuple[str, str], ...]
    outcome: str
    next: dict[Hashable, int] = field(default_factory=dict)


class Tree:
    """The program of one rank, grown by running it."""

    def __init__(self, rank: int, program: Program, make: MakeMeeting, *, may_stop: bool) -> None:
        self.nodes: list[Node] = []
        self.runs = 0
        self._rank, self._program, self._make, self._may_stop = rank, program, make, may_stop
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
        return self._number(("dead", records), Node((), None, False, False, (), records, "dead"))

    def _run(self, answers: tuple[Hashable, ...]) -> int:
        self.runs += 1
        player = Player(answers)
        link = StoreLink(_Store(player), self._rank, SIZE)  # type: ignore[arg-type]  # a model of it
        outcome = ""
        with mock.patch.object(rendezvous, "wait_until", player.wait_until):
            pulse = _Pulse(link, player, may_stop=self._may_stop)
            meeting = self._make(link, SETTINGS, watch=_Watch(link), pulse=pulse)
            try:
                self._program(Seat(meeting, player))
                outcome = "done"
            except RankLostError as error:
                outcome = f"lost {error.rank}"
            except _Paused:
                pass
        acts, records = tuple(player.acts), tuple(player.records)
        if player.move is None:  # how it came to its end makes no difference any more
            node = Node((), None, False, False, acts, records, outcome)
            return self._number(("end", outcome, acts, records), node)
        history = tuple(answer for _, answer in player.kept)
        node = Node(history, player.move, player.is_fresh, player.waits, acts, records, "")
        return self._number(history, node)

    def _number(self, key: Hashable, node: Node) -> int:
        if key not in self._index:
            self._index[key] = len(self.nodes)
            self.nodes.append(node)
        return self._index[key]


class State(NamedTuple):
    """Everything that can differ between two points of two schedules. Ranks as bits of a number."""

    store: int
    at: tuple[int, ...]
    dead: int = 0
    #: Given up by somebody and only late.
    late: int = 0
    faults: int = 0
    #: runs | stopped | woken, with mail unread | gone
    store_is: str = "runs"
    #: Rank 0 was stopped and has not asked yet whether it was.
    overslept: bool = False
    #: Somebody got no answer in time, or rank 0 left before a late one: these two may differ.
    is_cut: bool = False
    #: What was sent to a stopped store: (rank, move).
    mail: tuple[tuple[int, Move], ...] = ()


class BrokenPromiseError(AssertionError):
    """A schedule that ends in what must not happen, with the way there."""


@dataclass
class Explored:
    """How much there was to see. ``ends``: how often all ranks ended in these ways."""

    states: int = 0
    transitions: int = 0
    runs: int = 0
    ends: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.states} states, {self.transitions} transitions, {self.runs} runs of the code"


class Explorer:
    """All schedules of a program with so many faults of these kinds."""

    def __init__(
        self,
        program: Program,
        *,
        faults: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        make: MakeMeeting = Meeting,
    ) -> None:
        self._kinds = kinds
        may_stop = "stop" in kinds and faults > 0
        self._trees = [Tree(r, program, make, may_stop=may_stop) for r in range(SIZE)]
        self._stores: list[dict[str, Any]] = [{}]
        self._store_index: dict[tuple[tuple[str, Any], ...], int] = {(): 0}
        self._written: dict[tuple[int, str, Any], int] = {}
        self._began = State(0, (0,) * SIZE, faults=faults)
        self._from: dict[State, tuple[State, str] | None] = {}
        self.explored = Explored()

    def run(self) -> Explored:
        """Take every schedule; raises `BrokenPromiseError` at the first that breaks a promise."""
        began = self._settle(self._began)
        self._from[began] = None
        pending = [began]
        while pending:
            state = pending.pop()
            moved = False
            for label, after in self._successors(state):
                moved = True
                found = self._settle(after)
                self.explored.transitions += 1
                if found not in self._from:
                    self._from[found] = (state, label)
                    pending.append(found)
            if not moved:
                self._check_end(state)
            elif self._is_stuck(state):
                self._fail(state, "these ranks wait for ever")
        self.explored.states = len(self._from)
        self.explored.runs = sum(tree.runs for tree in self._trees)
        return self.explored

    # -- moves -------------------------------------------------------------------------------------

    def _successors(self, state: State) -> Iterator[tuple[str, State]]:
        for rank in range(SIZE):
            move = self._move(state, rank)
            if move is None or state.dead >> rank & 1:
                continue
            if rank == 0 and state.store_is == "stopped":
                pass
            elif move.kind == "waited":
                yield from self._time_passes(state, rank)
            elif state.store_is == "gone":
                yield self._answer(state, rank, GONE)
            elif state.store_is == "stopped":
                yield self._unanswered(state, rank, move)
            elif any(sender == rank for sender, _ in state.mail):
                if move.kind == "set":  # a question waits until what was sent before it is read
                    yield self._send(state, rank, move)
            else:
                yield from self._ask(state, rank, move)
            if state.faults:
                yield from self._faults(state, rank)
        if state.store_is == "stopped":
            woken = "woken" if state.mail else "runs"
            yield "rank 0 wakes up", state._replace(store_is=woken)
        elif state.store_is == "woken":
            yield "the store reads its mail", self._deliver(state)

    def _settle(self, state: State) -> State:
        """Take all moves whose answer is certain and will stay so, and which nobody else can see."""
        rank = 0
        while rank < SIZE:
            answer = self._certain(state, rank)
            if answer is _OPEN:
                rank += 1
            else:
                _, state = self._answer(state, rank, answer)
                rank = 0
        return state

    def _certain(self, state: State, rank: int) -> Any:
        move = self._move(state, rank)
        if move is None or state.dead >> rank & 1 or (rank == 0 and state.store_is == "stopped"):
            return _OPEN
        held = self._stores[state.store]
        if move.kind == "waited":
            is_open = rank == 0 and (state.store_is == "woken" or f"{BYE}/0" in held)
            return _OPEN if is_open else _A_WHILE
        if state.store_is == "gone":
            return GONE
        if state.store_is == "stopped" or any(sender == rank for sender, _ in state.mail):
            return _OPEN
        if move.kind == "get":
            return held[move.argument]
        if move.kind == "check" and all(key in held for key in move.argument):
            return True
        if move.kind == "overslept" and not (state.faults and "stop" in self._kinds):
            return state.overslept
        return _OPEN

    def _move(self, state: State, rank: int) -> Move | None:
        return self._trees[rank].nodes[state.at[rank]].move

    def _faults(self, state: State, rank: int) -> Iterator[tuple[str, State]]:
        node = self._trees[rank].nodes[state.at[rank]]
        fewer = state._replace(faults=state.faults - 1)
        if "kill" in self._kinds and node.is_fresh:
            at = list(state.at)
            at[rank] = self._trees[rank].tomb(at[rank])
            killed = fewer._replace(dead=state.dead | 1 << rank, at=tuple(at))
            yield f"rank {rank} is killed", self._without_store(killed) if rank == 0 else killed
        if rank == 0 and "stop" in self._kinds and state.store_is == "runs":
            yield "rank 0 is stopped", fewer._replace(store_is="stopped", overslept=True)

    def _ask(self, state: State, rank: int, move: Move) -> Iterator[tuple[str, State]]:
        """Yield what comes of a question that the store answers."""
        held = self._stores[state.store]
        match move.kind:
            case "set" | "add" | "compare_set":
                written, answer = self._write(state.store, move)
                yield self._answer(state._replace(store=written), rank, answer)
            case "get":
                yield self._answer(state, rank, held[move.argument])
            case "check":
                yield self._answer(state, rank, all(key in held for key in move.argument))
            case "overslept":
                yield self._answer(state, rank, state.overslept)
            case "look":
                yield from self._look(state, rank, move.argument, held)

    def _time_passes(self, state: State, rank: int) -> Iterator[tuple[str, State]]:
        if rank == 0 and state.store_is == "woken":
            return  # a pause of rank 0 is what its store needs to read its mail
        yield self._answer(state, rank, _A_WHILE)
        if rank == 0 and f"{BYE}/0" in self._stores[state.store]:  # it waits for the others' goodbye, and not for ever
            others = [r for r in range(1, SIZE) if not self._rests(state, r)]
            if not others or ("late" in self._kinds and state.faults):
                faults = state.faults - bool(others)
                cut = state._replace(faults=faults, is_cut=True)
                yield self._answer(cut, rank, _TOO_LONG)

    def _look(
        self, state: State, rank: int, ranks: frozenset[int], held: dict[str, Any]
    ) -> Iterator[tuple[str, State]]:
        for other in sorted(ranks):
            if f"{BYE}/{other}" in held:
                yield self._answer(state, rank, other)
                return
            if state.dead >> other & 1:
                yield self._answer(state, rank, other)
            elif state.faults and "late" in self._kinds:
                late = state._replace(faults=state.faults - 1, late=state.late | 1 << other)
                yield self._answer(late, rank, other)
        yield self._answer(state, rank, None)

    def _unanswered(self, state: State, rank: int, move: Move) -> tuple[str, State]:
        """Return what comes of a question to a stopped store: no answer, for longer than allowed."""
        if move.kind == "set":
            return self._send(state, rank, move)
        if move.kind in ("add", "compare_set"):
            state = state._replace(mail=(*state.mail, (rank, move)))
        return self._answer(state._replace(is_cut=True), rank, SILENT)

    def _send(self, state: State, rank: int, move: Move) -> tuple[str, State]:
        return self._answer(state._replace(mail=(*state.mail, (rank, move))), rank, None)

    def _deliver(self, state: State) -> State:
        store = state.store
        for _, move in state.mail:
            store, _ = self._write(store, move)
        return state._replace(store=store, mail=(), store_is="runs")

    def _answer(self, state: State, rank: int, answer: Hashable) -> tuple[str, State]:
        tree, at = self._trees[rank], list(state.at)
        before = tree.nodes[at[rank]]
        at[rank] = tree.after(at[rank], answer)
        after = tree.nodes[at[rank]]
        found = state._replace(at=tuple(at))
        if len(after.acts) > len(before.acts):
            self._check_act(state, rank, after.acts[-1])
        if rank == 0 and after.move is None:
            found = self._without_store(found)
        if before.move is not None and before.move.kind == "overslept":
            found = found._replace(overslept=False)
        return f"rank {rank}: {_said(before.move)} -> {answer!r}", found

    def _without_store(self, state: State) -> State:
        return state._replace(store=0, store_is="gone", overslept=False, mail=())

    def _write(self, store: int, move: Move) -> tuple[int, Hashable]:
        held = self._stores[store]
        key, value = move.argument, move.value
        if move.kind == "compare_set" and key in held:
            return store, held[key]
        if move.kind == "add":
            value = held.get(key, 0) + 1
        answer = None if move.kind == "set" else value
        written = self._written.get((store, key, value))
        if written is None:
            content = {**held, key: value}
            name = tuple(sorted(content.items()))
            written = self._store_index.setdefault(name, len(self._stores))
            if written == len(self._stores):
                self._stores.append(content)
            self._written[store, key, value] = written
        return written, answer

    # -- promises ----------------------------------------------------------------------------------

    def _rests(self, state: State, rank: int) -> bool:
        """Return whether this rank can only wait on: it has ended, or a round changes nothing."""
        number = at = state.at[rank]
        held, tree = self._stores[state.store], self._trees[rank]
        while (move := tree.nodes[at].move) is not None:
            if move.kind == "check" and not all(key in held for key in move.argument):
                at = tree.after(at, False)  # noqa: FBT003  # the store's answer
            elif move.kind == "waited" and not (rank == 0 and f"{BYE}/0" in held):
                at = tree.after(at, _A_WHILE)
            elif move.kind == "look" and not self._sees_any(state, move.argument, held):
                at = tree.after(at, None)
            else:
                return False
            if at == number:
                return True
        return True

    def _sees_any(self, state: State, ranks: frozenset[int], held: dict[str, Any]) -> bool:
        return any(state.dead >> rank & 1 or f"{BYE}/{rank}" in held for rank in ranks)

    def _is_stuck(self, state: State) -> bool:
        if state.store_is != "runs":
            return False
        for tree, at in zip(self._trees, state.at, strict=True):
            node = tree.nodes[at]
            if node.move is not None and not node.waits:
                return False
        return all(self._rests(state, rank) for rank in range(SIZE))

    def _check_act(self, state: State, rank: int, act: str) -> None:
        """No rank installs, writes or finishes once the end of the session is announced."""
        is_sent = any(move.argument == LOST for _, move in state.mail)
        if LOST in self._stores[state.store] or (rank == 0 and is_sent):
            self._fail(state, f"rank {rank}: {act}, after the end of the session")

    def _check_end(self, state: State) -> None:
        nodes = [tree.nodes[at] for tree, at in zip(self._trees, state.at, strict=True)]
        said = ", ".join(node.outcome for node in nodes)
        self.explored.ends[said] = self.explored.ends.get(said, 0) + 1
        decided: dict[str, str] = {}
        for node in nodes:
            for step, record in node.records:
                if decided.setdefault(step, record) != record:
                    self._fail(state, f"two records of step {step}")
        # Who was late, or lost the store, cannot know how it ended for the others.
        alone = 0b111 if state.dead & 1 or state.is_cut else state.dead | state.late
        outcomes = {node.outcome for rank, node in enumerate(nodes) if not alone >> rank & 1}
        if len(outcomes) > 1:
            self._fail(state, f"these ranks end differently: {said}")
        culprits = state.dead | state.late | state.is_cut
        for outcome in outcomes:
            if outcome.startswith("lost ") and not culprits >> int(outcome[5:]) & 1:
                self._fail(state, f"{outcome}, which is alive and in time: {said}")

    def _fail(self, state: State, what: str) -> NoReturn:
        way: list[str] = []
        step: tuple[State, str] | None = (state, what)
        while step is not None:
            way.append(step[1])
            step = self._from.get(step[0])
        raise BrokenPromiseError("\n  ".join(reversed(way)))


def _said(move: Move | None) -> str:
    if move is None:
        return "ends"
    argument = move.argument[0] if isinstance(move.argument, tuple) else move.argument
    return move.kind if argument is None else f"{move.kind} {argument}"
