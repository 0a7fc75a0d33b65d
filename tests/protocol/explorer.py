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
import re
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
#: A count that is not the first one: nobody asks for more.
_SEVERAL = 2
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
        self.is_fresh = kind in _WRITES
        answer = self._answers.pop(0)
        self.is_sure = argument == (LOST,) or (kind == "overslept" and self.is_sure)
        self.kept.append((kind, answer))
        if isinstance(answer, str) and answer in _FAILURES:
            raise RuntimeError(_FAILURES[answer])
        return answer

    def wait_until(self, is_there: Callable[[], bool], look: Callable[[float], None]) -> None:
        """Stand in for `waiting.wait_until`, without the time that passes."""
        begin, was_fresh = len(self.kept), self.is_fresh
        while self._asks_first(is_there):
            self.in_round = True
            look(self.ask("waited"))
            self.in_round = False
            if set(self.kept[begin:]) <= _NOTHING:
                del self.kept[begin:]
                self.is_fresh, self.is_sure = was_fresh, False
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
        return self._number(("dead", records), Node(records=records, outcome="dead"))

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


#: What the store is: it runs; it is stopped; and somebody got no answer; it is woken, with mail
#: unread; it is gone.
RUNS, STOPPED, MISSED, WOKEN, AWAY = range(5)


class State(NamedTuple):
    """Everything that can differ between two points of two schedules. Ranks as bits of a number."""

    store: int
    at: tuple[int, ...]
    dead: int
    #: Given up by somebody and only late.
    late: int
    faults: int
    store_is: int
    #: Rank 0 was stopped and has not asked yet whether it was.
    overslept: bool
    #: Somebody got no answer in time, or rank 0 left before a late one: these two may differ.
    is_cut: bool
    #: What was sent to a stopped store: (rank, move).
    mail: tuple[tuple[int, Move], ...]


#: A rank's answer, or what befell it.
Event = tuple[int, Any] | str


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
    """All schedules of a program with so many faults of these kinds.

    Moves that nobody else can see and whose answer is certain are taken at once; that leaves out no
    end. Unless ``fine``, the questions of one round of a wait are one move too: what the others do
    in between they do before the round then, or after it.
    """

    def __init__(
        self,
        program: Program,
        *,
        faults: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        make: MakeMeeting = Meeting,
        fine: bool = False,
    ) -> None:
        self._kinds, self._fine = kinds, fine
        may_stop = "stop" in kinds and faults > 0
        self._trees = [Tree(r, program, make, may_stop=may_stop) for r in range(SIZE)]
        self._stores: list[dict[str, Any]] = [{}]
        self._store_index: dict[tuple[tuple[str, Any], ...], int] = {(): 0}
        self._written: dict[tuple[int, str, Any], int] = {}
        self._settled: list[dict[tuple[int, int], int]] = [{} for _ in range(SIZE)]
        self._began = State(0, (0,) * SIZE, 0, 0, faults, RUNS, False, False, ())  # noqa: FBT003
        self._from: dict[State, tuple[State, Event]] = {}
        self.explored = Explored()

    def run(self) -> Explored:
        """Take every schedule; raises `BrokenPromiseError` at the first that breaks a promise."""
        began = self._settle(self._began)
        seen: set[State] = {began}
        pending = [began]
        transitions = 0
        while pending:
            state = pending.pop()
            moved = False
            for event, after in self._successors(state):
                moved = True
                transitions += 1
                found = self._settle(after)
                if found not in seen:
                    seen.add(found)
                    self._from[found] = (state, event)
                    pending.append(found)
            if not moved:
                self._check_end(state)
            elif self._is_stuck(state):
                self._fail(state, "these ranks wait for ever")
        runs = sum(tree.runs for tree in self._trees)
        self.explored.states, self.explored.transitions = len(seen), transitions
        self.explored.runs = runs
        return self.explored

    # -- moves -------------------------------------------------------------------------------------

    def _successors(self, state: State) -> Iterator[tuple[Event, State]]:
        for rank in range(SIZE):
            node = self._trees[rank].nodes[state.at[rank]]
            if node.move is None or state.store_is == AWAY:
                continue
            if rank != 0 or state.store_is not in (STOPPED, MISSED):
                yield from self._moves(state, rank, node.move)
            if state.faults and node.is_fresh and "kill" in self._kinds:
                yield f"rank {rank} is killed", self._killed(state, rank)
        can_stop = state.faults and "stop" in self._kinds and state.store_is == RUNS
        if can_stop and self._trees[0].nodes[state.at[0]].move is not None:
            fewer = state.faults - 1
            yield "rank 0 is stopped", state._replace(faults=fewer, store_is=STOPPED, overslept=True)
        # A stop in which nobody misses an answer is a delay, and delays are everywhere.
        others = (self._trees[r].nodes[state.at[r]].move for r in range(1, SIZE))
        if state.store_is == MISSED or (state.store_is == STOPPED and not any(others)):
            yield "rank 0 wakes up", state._replace(store_is=WOKEN if state.mail else RUNS)
        elif state.store_is == WOKEN:
            yield "the store reads its mail", self._deliver(state)

    def _moves(self, state: State, rank: int, move: Move) -> Iterator[tuple[Event, State]]:
        held = self._stores[state.store]
        if move.kind == "waited":  # of rank 0, which lets the others go or reads its mail
            if state.store_is != WOKEN:
                yield self._answer(state, rank, _A_WHILE)
                yield from self._leave(state)
        elif state.store_is in (STOPPED, MISSED):
            yield self._unanswered(state, rank, move)
        elif any(sender == rank for sender, _ in state.mail):
            if move.kind == "set":  # a question waits until what was sent before it is read
                yield self._send(state, rank, move)
        elif move.kind in _WRITES:
            written, answer = self._write(state.store, move)
            yield self._answer(state._replace(store=written), rank, answer)
        elif move.kind == "look":
            yield from self._look(state, rank, move.argument, held)
        elif move.kind == "get":
            yield self._answer(state, rank, held[move.argument])
        else:
            assert move.kind == "check", move
            yield self._answer(state, rank, all(key in held for key in move.argument))

    def _killed(self, state: State, rank: int) -> State:
        at = list(state.at)
        at[rank] = self._trees[rank].tomb(at[rank])
        killed = state._replace(
            faults=state.faults - 1, dead=state.dead | 1 << rank, at=tuple(at)
        )  # fmt: skip
        return self._without_store(killed) if rank == 0 else killed

    def _leave(self, state: State) -> Iterator[tuple[Event, State]]:
        """Yield that rank 0 has waited long enough for the others' goodbye."""
        others = [r for r in range(1, SIZE) if not self._rests(state, r)]
        if not others or ("late" in self._kinds and state.faults):
            cut = state._replace(faults=state.faults - bool(others), is_cut=True)
            yield self._answer(cut, 0, _TOO_LONG)

    def _look(
        self, state: State, rank: int, ranks: frozenset[int], held: dict[str, Any]
    ) -> Iterator[tuple[Event, State]]:
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

    def _unanswered(self, state: State, rank: int, move: Move) -> tuple[Event, State]:
        """Return what comes of a question to a stopped store: nothing, for longer than allowed."""
        if move.kind == "set":
            return self._send(state, rank, move)
        if move.kind in _WRITES:
            state = state._replace(mail=(*state.mail, (rank, move)))
        return self._answer(state._replace(store_is=MISSED, is_cut=True), rank, SILENT)

    def _send(self, state: State, rank: int, move: Move) -> tuple[Event, State]:
        return self._answer(state._replace(mail=(*state.mail, (rank, move))), rank, None)

    def _deliver(self, state: State) -> State:
        store = state.store
        for _, move in state.mail:
            store, _ = self._write(store, move)
        return state._replace(store=store, mail=(), store_is=RUNS)

    def _answer(self, state: State, rank: int, answer: Hashable) -> tuple[Event, State]:
        tree, at = self._trees[rank], list(state.at)
        before = tree.nodes[at[rank]]
        at[rank] = tree.after(at[rank], answer)
        after = tree.nodes[at[rank]]
        if len(after.acts) > len(before.acts):
            self._check_act(state, rank, after.acts[-1])
        found = state._replace(at=tuple(at))
        return (rank, answer), self._without_store(found) if rank == 0 and after.move is None else found

    def _without_store(self, state: State) -> State:
        return state._replace(store=0, store_is=AWAY, overslept=False, mail=(), faults=0)

    def _write(self, store: int, move: Move) -> tuple[int, Hashable]:
        held = self._stores[store]
        key, value = move.argument, move.value
        if move.kind == "compare_set" and key in held:
            return store, held[key]
        if move.kind == "add":
            value = min(held.get(key, 0) + 1, _SEVERAL)
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

    # -- moves that nobody else can see --------------------------------------------------------------

    def _settle(self, state: State) -> State:
        """Take all moves whose answer is certain, will stay so, and changes nothing for others."""
        is_plain = not state.mail and not state.overslept
        if state.store_is == AWAY or (state.store_is == RUNS and is_plain):
            store = -1 if state.store_is == AWAY else state.store
            at = []
            for rank, number in enumerate(state.at):
                if state.dead >> rank & 1:
                    at.append(number)
                    continue
                found = self._settled[rank].get((number, store))
                if found is None:
                    found = self._settled_at(state, rank)[1].at[rank]
                    self._settled[rank][number, store] = found
                at.append(found)
            settled = state._replace(at=tuple(at))
        else:
            settled = state
            for rank in range(SIZE):
                if not state.dead >> rank & 1:
                    _, settled = self._settled_at(settled, rank)
        ends = self._trees[0].nodes[settled.at[0]].move is None and settled.store_is != AWAY
        return self._settle(self._without_store(settled)) if ends else settled

    def _settled_at(self, state: State, rank: int) -> tuple[Event, State]:
        tree = self._trees[rank]
        while (answer := self._certain(state, rank)) is not _OPEN:
            before = tree.nodes[state.at[rank]]
            after = tree.nodes[tree.after(state.at[rank], answer)]
            assert before.move is not None
            is_own = before.move.kind == "overslept"
            if len(after.acts) > len(before.acts) and not is_own:
                break  # when it acts is to be seen
            _, state = self._answer(state, rank, answer)
            if is_own:
                state = state._replace(overslept=False)
        return "", state

    def _certain(self, state: State, rank: int) -> Any:
        node = self._trees[rank].nodes[state.at[rank]]
        move, store_is = node.move, state.store_is
        if move is None or (rank == 0 and store_is in (STOPPED, MISSED)):
            return _OPEN
        held = self._stores[state.store]
        if move.kind == "overslept":
            return state.overslept
        if move.kind == "waited":
            is_open = rank == 0 and (store_is == WOKEN or f"{BYE}/0" in held)
            return _OPEN if is_open else _A_WHILE
        if store_is == AWAY:
            return GONE
        if store_is in (STOPPED, MISSED) or any(sender == rank for sender, _ in state.mail):
            return _OPEN
        if move.kind == "get":
            return held[move.argument]
        if move.kind == "add" and held.get(move.argument) == _SEVERAL:
            return _SEVERAL
        if move.kind == "check":
            if all(key in held for key in move.argument):
                return True
            if node.is_sure and move.argument == (LOST,):
                return False  # asked twice in a row: what comes in between is found out next time
            if node.in_round and not self._fine:
                return False
        return _OPEN

    # -- promises ------------------------------------------------------------------------------------

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
        if state.store_is != RUNS:
            return False
        for rank, tree in enumerate(self._trees):
            node = tree.nodes[state.at[rank]]
            if node.move is not None and not node.waits:
                return False
        return all(self._rests(state, rank) for rank in range(SIZE))

    def _check_act(self, state: State, rank: int, act: str) -> None:
        """No rank installs, writes or finishes once the end of the session is announced."""
        is_sent = rank == 0 and any(move.argument == LOST for _, move in state.mail)
        if LOST in self._stores[state.store] or is_sent:
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
        culprits = state.dead | state.late
        for outcome in outcomes:
            if outcome.startswith("lost ") and not culprits >> int(outcome[5:]) & 1:
                self._fail(state, f"{outcome}, which is alive and in time: {said}")

    def _fail(self, state: State, what: str) -> NoReturn:
        way = [what]
        while state in self._from:
            state, event = self._from[state]
            way.append(event if isinstance(event, str) else self._said(state, *event))
        raise BrokenPromiseError("\n  ".join(reversed(way)))

    def _said(self, state: State, rank: int, answer: Hashable) -> str:
        move = self._trees[rank].nodes[state.at[rank]].move
        assert move is not None
        argument = move.argument[0] if isinstance(move.argument, tuple) else move.argument
        return re.sub(r"([0-9a-f]{8})[0-9a-f]{56}", r"\1", f"rank {rank}: {move.kind} {argument} -> {answer!r}")
