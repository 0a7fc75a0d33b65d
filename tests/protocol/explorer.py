# SPDX-License-Identifier: Apache-2.0
"""Every schedule of a session of three ranks: walks through their trees and one store.

`tree.py` knows what a rank asks next; here is who is answered first. The explorer takes every walk,
in which a rank may at any point

    kill    die; rank 0 takes the store along
    late    be given up by a rank that watches it, though it is only late, and go on when it likes
    stop    rank 0 only: be stopped together with its store, so that the others get no answer, and
            wake up later; any other rank that is stopped is late

or in which a stranger who reaches the store's port may at any point

    take    take a value away
    forge   write over a value, or under a key that has none yet

and checks at every move and at every end what `docs/protocol.md` promises.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from tests.protocol.tree import (
    A_WHILE,
    GONE,
    LOST,
    SILENT,
    SIZE,
    TOO_LONG,
    WRITES,
    MakeMeeting,
    Move,
    Node,
    Program,
    Tree,
)
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.messages import BYE

FAULTS = ("kill", "late", "stop")
STRANGERS = ("take", "forge")
#: What a stranger writes. It has no digest, so to who reads it nothing is there.
FORGED = b"a stranger's"
#: Instead of an answer: which one it is, or when, makes a difference to somebody.
_OPEN: Any = object()

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
    #: What strangers have taken away or written over, and its rank will write again: (key, value).
    taken: tuple[tuple[str, Any], ...]


def _moved(state: State, at: tuple[int, ...]) -> State:
    """Return the state with the ranks there; most of all that is done, so not by `_replace`."""
    return State(
        state.store, at, state.dead, state.late, state.faults, state.store_is, state.overslept,
        state.is_cut, state.mail, state.taken,
    )  # fmt: skip


def _real(held: Mapping[str, Any], key: str) -> Any:
    """Return what a rank has written under a key, None where none has."""
    return None if (value := held.get(key)) == FORGED else value


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

    Moves that nobody else can see and whose answer is certain are taken at once, and a rank dies
    only after a move that others can see: that leaves out no end. Unless ``fine``, the questions of
    one round of a wait are one move too, where nobody is to be given up, and so are the last words
    to a stopped store: what the others do in between they do before or after.
    """

    def __init__(
        self,
        program: Program,
        *,
        faults: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        make: MakeMeeting = Coordinator,
        fine: bool = False,
        outlives: bool = False,
    ) -> None:
        """``outlives``: the store is the job's, and does not go or stop with rank 0."""
        assert not (outlives and "stop" in kinds), "rank 0 that is stopped is late, as any other"
        self._has_strangers = not {*kinds}.isdisjoint(STRANGERS)
        is_mixed = self._has_strangers and not {*kinds} <= {*STRANGERS}
        assert not is_mixed, "what a stranger takes is written again: its rank must be there"
        self._outlives = outlives
        self._kinds, self._fine = kinds, fine
        may_stop = "stop" in kinds and faults > 0
        self._trees = [
            Tree(r, program, make, may_stop=may_stop, outlives=outlives) for r in range(SIZE)
        ]
        self._stores: list[dict[str, Any]] = [{}]
        self._store_index: dict[tuple[tuple[str, Any], ...], int] = {(): 0}
        self._written: dict[tuple[int, str, Any], int] = {}
        self._settled: list[dict[tuple[int, int], int]] = [{} for _ in range(SIZE)]
        self._began = State(0, (0,) * SIZE, 0, 0, faults, RUNS, False, False, (), ())
        self._from: dict[State, tuple[State, Event] | None] = {}
        self.explored = Explored()

    def run(self) -> Explored:
        """Take every schedule; raises `BrokenPromiseError` at the first that breaks a promise."""
        began = self._settle(self._began)
        self._from[began] = None
        pending = [began]
        transitions = 0
        gc.disable()  # millions of small tuples, and no cycles
        try:
            while pending:
                state = pending.pop()
                moved = False
                for event, after in self._successors(state):
                    moved = True
                    transitions += 1
                    found = self._settle(after)
                    if found not in self._from:
                        self._from[found] = (state, event)
                        pending.append(found)
                if not moved:
                    self._check_end(state)
                elif self._is_stuck(state):
                    self._fail(state, "these ranks wait for ever")
        finally:
            gc.enable()
        runs = sum(tree.runs for tree in self._trees)
        self.explored.states, self.explored.transitions = len(self._from), transitions
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
            fewer = state._replace(faults=state.faults - 1)
            yield "rank 0 is stopped", fewer._replace(store_is=STOPPED, overslept=True)
        # A stop in which nobody misses an answer is a delay, and delays are everywhere.
        others = (self._trees[r].nodes[state.at[r]].move for r in range(1, SIZE))
        if state.store_is == MISSED or (state.store_is == STOPPED and not any(others)):
            yield "rank 0 wakes up", state._replace(store_is=WOKEN if state.mail else RUNS)
        elif state.store_is == WOKEN:
            yield "the store reads its mail", self._deliver(state)
        if self._has_strangers and state.store_is == RUNS:
            yield from self._meddled(state)

    def _moves(self, state: State, rank: int, move: Move) -> Iterator[tuple[Event, State]]:
        held = self._stores[state.store]
        if move.kind == "waited":  # of rank 0, which lets the others go or reads its mail
            if state.store_is != WOKEN:
                yield self._answer(state, rank, A_WHILE)
                yield from self._leave(state)
        elif state.store_is in (STOPPED, MISSED):
            yield self._unanswered(state, rank, move)
        elif state.mail and any(sender == rank for sender, _ in state.mail):
            if move.kind == "set":  # a question waits until what was sent before it is read
                yield self._send(state, rank, move)
        elif move.kind in WRITES:
            written, answer = self._write(state.store, move)
            if written != state.store:
                state = state._replace(store=written)
            yield self._answer(state, rank, answer)
        elif move.kind == "look":
            yield from self._look(state, rank, move.argument, held)
        elif move.kind == "get":
            yield self._answer(state, rank, _real(held, move.argument))
        else:
            assert move.kind == "check", move
            yield self._answer(state, rank, all(key in held for key in move.argument))

    def _killed(self, state: State, rank: int) -> State:
        at = list(state.at)
        at[rank] = self._trees[rank].tomb(at[rank])
        killed = state._replace(
            faults=state.faults - 1, dead=state.dead | 1 << rank, at=tuple(at)
        )  # fmt: skip
        return self._without_store(killed) if rank == 0 and not self._outlives else killed

    def _leave(self, state: State) -> Iterator[tuple[Event, State]]:
        """Yield that rank 0 has waited long enough for the others' goodbye."""
        others = [r for r in range(1, SIZE) if not self._rests(state, r)]
        if state.taken:
            return
        if not others or ("late" in self._kinds and state.faults):
            cut = state._replace(faults=state.faults - bool(others), is_cut=True)
            yield self._answer(cut, 0, TOO_LONG)

    def _look(
        self, state: State, rank: int, ranks: frozenset[int], held: dict[str, Any]
    ) -> Iterator[tuple[Event, State]]:
        for other in sorted(ranks):
            if self._has_left(state, other, held):
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
        if move.kind in WRITES:
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
        tree, number = self._trees[rank], state.at[rank]
        reached = tree.nodes[number].next.get(answer) or tree.after(number, answer)
        after = tree.nodes[reached]
        if after.acts and len(after.acts) > len(tree.nodes[number].acts):
            self._check_act(state, rank, after.acts[-1])
        found = _moved(state, (*state.at[:rank], reached, *state.at[rank + 1 :]))
        ends = rank == 0 and after.move is None and not self._outlives
        return (rank, answer), self._without_store(found) if ends else found

    def _without_store(self, state: State) -> State:
        return state._replace(store=0, store_is=AWAY, overslept=False, mail=(), taken=(), faults=0)

    def _meddled(self, state: State) -> Iterator[tuple[Event, State]]:
        """Yield what a stranger does to what is asked for next, and that a value is there again."""
        held, store = self._stores[state.store], state.store
        for left in state.taken:
            key, value = left
            rest = tuple(other for other in state.taken if other != left)
            back = store if _real(held, key) is not None else self._with(store, key, value)
            yield f"{key} is written again", state._replace(store=back, taken=rest)
        if not state.faults:
            return
        for key in self._asked_next(state):
            value = _real(held, key)
            taken = state.taken if value is None else (*state.taken, (key, value))
            fewer = state._replace(faults=state.faults - 1, taken=taken)
            if "take" in self._kinds and value is not None:
                yield f"a stranger takes {key}", fewer._replace(store=self._with(store, key, None))
            if "forge" in self._kinds and held.get(key) != FORGED:
                forged = self._with(store, key, FORGED)
                yield f"a stranger writes {key}", fewer._replace(store=forged)

    def _asked_next(self, state: State) -> list[str]:
        """Return the keys of which some rank asks next: for others a stranger may wait as well."""
        found = set[str]()
        for rank, tree in enumerate(self._trees):
            move = tree.nodes[state.at[rank]].move
            if move is not None and move.kind in ("get", "compare_set"):
                found.add(move.argument)
            elif move is not None and move.kind == "check":
                found.update(move.argument)
            elif move is not None and move.kind == "look":
                found.update(f"{BYE}/{other}" for other in move.argument)
        return sorted(found)

    def _write(self, store: int, move: Move) -> tuple[int, Hashable]:
        held = self._stores[store]
        key, value = move.argument, move.value
        if move.kind == "compare_set" and _real(held, key) is not None:
            return store, held[key]
        return self._with(store, key, value), None if move.kind == "set" else value

    def _with(self, store: int, key: str, value: Any) -> int:
        """Return the store with another value under a key, without that key for None."""
        written = self._written.get((store, key, value))
        if written is None:
            content = {**self._stores[store], key: value}
            if value is None:
                del content[key]
            name = tuple(sorted(content.items()))
            written = self._store_index.setdefault(name, len(self._stores))
            if written == len(self._stores):
                self._stores.append(content)
            self._written[store, key, value] = written
        return written

    # -- moves that nobody else can see --------------------------------------------------------

    def _settle(self, state: State) -> State:
        """Take all moves whose answer is certain, will stay so, and changes nothing for others."""
        is_plain = not (state.mail or state.overslept or state.taken)
        if state.store_is == AWAY or (state.store_is == RUNS and is_plain):
            where = -1 if state.store_is == AWAY else state.store << 4 | state.dead << 1
            where |= state.faults > 0
            at = []
            for rank, number in enumerate(state.at):
                found = self._settled[rank].get((number, where))
                if found is None:
                    found = self._settled_at(state, rank)[1].at[rank]
                    self._settled[rank][number, where] = found
                at.append(found)
            settled = _moved(state, tuple(at))
        else:
            settled = state
            for rank in range(SIZE):
                _, settled = self._settled_at(settled, rank)
                if rank != 0 and settled.store_is in (STOPPED, MISSED) and not self._fine:
                    settled = self._sent(settled, rank)
        ends = settled.store_is != AWAY and self._trees[0].nodes[settled.at[0]].move is None
        if not ends or self._outlives:
            return settled
        return self._settle(self._without_store(settled))

    def _sent(self, state: State, rank: int) -> State:
        while (move := self._trees[rank].nodes[state.at[rank]].move) and move.kind == "set":
            _, state = self._send(state, rank, move)
        return state

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
        """Return the answer a rank will get whatever the others do before it, if there is one."""
        node = self._trees[rank].nodes[state.at[rank]]
        move, is_stopped = node.move, state.store_is in (STOPPED, MISSED)
        if move is None or (rank == 0 and is_stopped):
            return _OPEN
        if move.kind == "overslept":
            return state.overslept
        if move.kind == "waited":
            is_leaving = _real(self._stores[state.store], f"{BYE}/0") is not None
            is_open = rank == 0 and (state.store_is == WOKEN or is_leaving)
            return _OPEN if is_open else A_WHILE
        if state.store_is == AWAY:
            return GONE
        if is_stopped or any(sender == rank for sender, _ in state.mail):
            return _OPEN
        return self._stored(state, node, move)

    def _stored(self, state: State, node: Node, move: Move) -> Any:
        """Return an answer of the store that stays the same.

        Keys come, and none changes or goes, but for what a stranger does.
        """
        held, key = self._stores[state.store], move.argument
        may_go = self._has_strangers and state.faults
        if move.kind == "get":
            if (value := _real(held, key)) is None:
                return self._still_absent(node, (key,))
            return _OPEN if may_go else value
        if move.kind == "look" and not self._fine:
            may_err = state.faults and "late" in self._kinds
            return _OPEN if may_err or self._sees_any(state, key, held) else None
        if move.kind == "check":
            if all(name in held for name in key):
                return _OPEN if may_go else True
            return _OPEN if self._still_absent(node, key) is _OPEN else False
        return _OPEN

    def _still_absent(self, node: Node, keys: tuple[str, ...]) -> Any:
        """Return None where it makes no difference that a key may come, as it is asked for soon."""
        # Asked twice in a row: what comes in between is found out next time.
        is_repeated = node.is_sure and keys == (LOST,)
        return None if is_repeated or (node.in_round and not self._fine) else _OPEN

    # -- promises ------------------------------------------------------------------------------

    def _rests(self, state: State, rank: int) -> bool:
        """Return whether this rank can only wait on: it has ended, or a round changes nothing."""
        at, seen = state.at[rank], set[int]()
        held, tree = self._stores[state.store], self._trees[rank]
        while (move := tree.nodes[at].move) is not None:
            if move.kind == "check" and not all(key in held for key in move.argument):
                at = tree.after(at, False)
            elif move.kind == "check" and any(held[key] == FORGED for key in move.argument):
                at = tree.after(at, True)
            elif move.kind == "get" and _real(held, move.argument) is None:
                at = tree.after(at, None)
            elif move.kind == "waited" and not (rank == 0 and _real(held, f"{BYE}/0")):
                at = tree.after(at, A_WHILE)
            elif move.kind == "look" and not self._sees_any(state, move.argument, held):
                at = tree.after(at, None)
            else:
                return False
            if at in seen:
                return True
            seen.add(at)
        return True

    def _sees_any(self, state: State, ranks: frozenset[int], held: dict[str, Any]) -> bool:
        return any(state.dead >> rank & 1 or self._has_left(state, rank, held) for rank in ranks)

    def _has_left(self, state: State, rank: int, held: dict[str, Any]) -> bool:
        """Return whether a rank has left, and its last words have not been taken away."""
        return not state.taken and _real(held, f"{BYE}/{rank}") is not None

    def _is_stuck(self, state: State) -> bool:
        if state.store_is != RUNS or state.taken:
            return False
        for rank, tree in enumerate(self._trees):
            node = tree.nodes[state.at[rank]]
            if node.move is not None and not node.waits:
                return False
        return all(self._rests(state, rank) for rank in range(SIZE))

    def _check_act(self, state: State, rank: int, act: str) -> None:
        """No rank installs, writes or finishes once the end of the session is announced."""
        is_sent = rank == 0 and any(move.argument == LOST for _, move in state.mail)
        if _real(self._stores[state.store], LOST) is not None or is_sent:
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
        is_cut = state.is_cut or (state.dead & 1 and not self._outlives)
        alone = 0b111 if is_cut else state.dead | state.late
        outcomes = {node.outcome for rank, node in enumerate(nodes) if not alone >> rank & 1}
        if len(outcomes) > 1:
            self._fail(state, f"these ranks end differently: {said}")
        culprits = state.dead | state.late
        for outcome in outcomes:
            if outcome.startswith("lost ") and not culprits >> int(outcome[5:]) & 1:
                self._fail(state, f"{outcome}, which is alive and in time: {said}")

    def _fail(self, state: State, what: str) -> NoReturn:
        way = [what]
        while (step := self._from.get(state)) is not None:
            state, event = step
            way.append(event if isinstance(event, str) else self._said(state, *event))
        raise BrokenPromiseError("\n  ".join(reversed(way)))

    def _said(self, state: State, rank: int, answer: Hashable) -> str:
        move = self._trees[rank].nodes[state.at[rank]].move
        assert move is not None
        argument = move.argument[0] if isinstance(move.argument, tuple) else move.argument
        text = f"rank {rank}: {move.kind} {argument} -> {answer!r}"
        return re.sub("([0-9a-f]{8})[0-9a-f]{56}", r"\1", text)
