# SPDX-License-Identifier: Apache-2.0
"""Every schedule of a session of three ranks, with deaths and delays; protocols broken on purpose.

The program below asks of the meeting what the nine steps ask, in their order: a test compares it
with a real engine's. `explorer.py` says what is explored, `docs/protocol.md` what is promised.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.messages import BYE, Lost
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.polling import within
from warmup_plugin.runtime.safe_json import digest

if TYPE_CHECKING:
    from tests.protocol.explorer import Explored
    from tests.protocol.tree import Seat

    Explore = Callable[..., Explored]

Part = Callable[["Seat"], None]

#: Rank 2 is the first on a node of its own, and its node has no table.
WRITERS = (0, 2)


# -- the session: what the steps ask of the meeting ------------------------------------------------


def opening(seat: Seat) -> None:
    seat.meet("open")


def agreeing(seat: Seat) -> None:
    """Rank 0's node has a table; it crosses once, and rank 1, which reads none, expects it."""
    if seat.rank == 0:
        seat.coordinator.offer(b"table", digest(b"table"))
    elif seat.rank not in WRITERS:
        seat.coordinator.expect()
    seat.coordinator.note("agree")
    seat.meet("agree")
    if seat.rank == 0:
        seat.coordinator.put(b"table")
        seat.coordinator.put(b"manifest")
    else:
        seat.coordinator.get(digest(b"table"))


def greeting(seat: Seat) -> None:
    """As above, where no node has a table."""
    seat.coordinator.note("agree")
    seat.meet("agree")


def loading(seat: Seat) -> None:
    seat.meet("load")


def surveying(seat: Seat) -> None:
    seat.coordinator.note("survey")
    seat.meet("survey0")


def planning(seat: Seat) -> None:
    """All ranks have the same inventory, so whoever claims it first sends it."""
    coordinator = seat.coordinator
    coordinator.note("plan")
    own = coordinator.put(b"inventory")

    def lead(words: dict[int, Any]) -> dict[str, Any]:
        for name in {word["word"] for word in words.values()}:
            coordinator.get(name)
        return {"plan": coordinator.put(b"plan")}

    plan = seat.meet("plan", own, lead)["plan"]
    if seat.rank:
        coordinator.get(plan)


def waiting(seat: Seat) -> None:
    """Another engine tunes for the directory: rank 0 waits for it, and then makes the plan."""
    if seat.rank == 0:
        seat.coordinator.note("wait", "for another engine")
    plan = seat.meet("plan1", None, lambda _words: {"plan": seat.coordinator.put(b"the rest")})
    if seat.rank:
        seat.coordinator.get(plan["plan"])


def tuning(seat: Seat) -> None:
    """All tasks are rank 0's; at each it looks after its neighbour."""
    if seat.rank == 0:
        seat.coordinator.note("tune", "a task")


def sharing(seat: Seat) -> None:
    """Rank 0 has results; the others have none, which is the same body."""
    coordinator = seat.coordinator
    coordinator.note("share")
    own = coordinator.put(b"results" if seat.rank == 0 else b"none")

    def lead(words: dict[int, Any]) -> dict[str, Any]:
        for name in {word["word"] for word in words.values()}:
            coordinator.get(name)
        return {
            "table": coordinator.put(b"new table"),
            "manifest": coordinator.put(b"new manifest"),
        }

    coordinator.get(seat.meet("share", own, lead)["table"])
    coordinator.confirm()
    seat.act("installs")


def preparing(seat: Seat) -> None:
    seat.coordinator.note("prepare")
    seat.meet("ready")


def publishing(seat: Seat) -> None:
    if seat.rank in WRITERS:
        seat.coordinator.note("publish")
        seat.coordinator.get(digest(b"new manifest"))
        seat.coordinator.confirm()
        seat.act("publishes")


def certifying(seat: Seat) -> None:
    seat.coordinator.note("certify")
    seat.meet("certify")


def lacking(seat: Seat) -> None:
    """Rank 1 does not get what it needs; it lives."""
    if seat.rank == 1:
        raise OSError("no space")


def confirming(seat: Seat) -> None:
    """What every step begins with, where a walk ends before it."""
    seat.coordinator.confirm()


def offering(seat: Seat) -> None:
    """What `sharing` leaves for `publishing`, where the walk begins after it."""
    if seat.rank == 0:
        seat.coordinator.put(b"new manifest")


WHOLE: list[Part] = [
    opening, agreeing, loading, surveying, planning, tuning, sharing, preparing, publishing,
    certifying,
]  # fmt: skip
#: Two meetings that follow each other, with what lies between them. A session ends with a meeting,
#: so a walk must not end before a body that rank 0 sends after one.
PAIRS: list[list[Part]] = [
    [opening, greeting], [agreeing, loading], [loading, surveying],
    [surveying, planning, confirming], [planning, waiting, confirming],
    [planning, tuning, sharing], [sharing, preparing],
    [offering, preparing, publishing, certifying],
]  # fmt: skip
#: Those of them that run by default, the rest with `make soak`: bodies, a decision, a hand-over.
SAMPLE = [[agreeing, loading], [surveying, planning, confirming], [sharing, preparing]]


def session(parts: list[Part]) -> Part:
    """Return what one rank does: as `steps.job.open_job` does it around the steps."""

    def run(seat: Seat) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(seat.coordinator.close)
            rest = list(parts)
            if rest[0] is opening:
                rest.pop(0)(seat)
            try:
                for part in rest:
                    part(seat)
                seat.act("finishes")
            except RankLostError as error:
                seat.coordinator.abandon(error.reason, of=error.rank)
                raise
            except Exception as error:
                if (lost := seat.coordinator.abandon(str(error), lives=True)) is not None:
                    raise lost from error
                if isinstance(error, SessionError):
                    raise
                raise SessionError(f"rank {seat.rank} cannot go on: {error}") from error

    return run


def name_of(parts: list[Part]) -> str:
    return "-".join(part.__name__ for part in parts)


SAMPLED = [
    pytest.param(p, marks=() if p in SAMPLE else pytest.mark.soak, id=name_of(p)) for p in PAIRS
]


class Steps:
    """A seat that writes down what its meeting is asked; the others say what this rank says.

    But for results: there is one task, so one rank has some and the others have none.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.size, self.coordinator = rank, 3, self
        self.asked: list[str] = []

    def meet(self, step: str, word: Any = None, decide: Any = None) -> Any:
        self.asked.append(f"meet {step}")
        words = {rank: {"word": word} for rank in range(3)}
        if step == "share":
            words[2] = {"word": digest(b"none of it")}
        if decide is None:
            return {}
        if self.rank == 0:
            return decide(words)
        asked, record = list(self.asked), decide(words)  # rank 0's part, which is not asked here
        self.asked = asked
        return record

    def put(self, body: bytes) -> str:
        self.asked.append("put")
        return digest(body)

    def offer(self, body: bytes, sha256: str) -> None:
        del body, sha256
        self.asked.append("offer")

    def expect(self) -> None:
        self.asked.append("expect")

    def get(self, sha256: str) -> None:
        del sha256
        self.asked.append("get")

    def confirm(self) -> None:
        self.asked.append("confirm")

    def note(self, step: str, task: str = "") -> None:
        del task
        self.asked.append(f"note {step}")

    def act(self, what: str) -> None:
        pass

    def abandon(self, reason: str, *, of: int | None = None, lives: bool = False) -> None:
        raise AssertionError(reason, of, lives)

    def close(self) -> None:
        self.asked.append("close")


@pytest.mark.multiprocess
def test_the_program_asks_what_the_nine_steps_ask(tmp_path: Path) -> None:
    """Three ranks on two nodes; one node has a table, in which an entry is missing."""
    roots = [tmp_path / "one", tmp_path / "other"]
    config = EngineConfig(
        dp=3, layers=1, hidden=32, ffn=32, vocab=32, timing="deterministic",
    )  # fmt: skip
    on_ranks = f"{Path(__file__).with_name('on_ranks.py')}:calls"
    options: dict[str, Any] = {"node_of_rank": [0, 0, 1], "timeout_s": 60.0}
    launch(config, nodes=[roots[0], roots[0]], **options)
    (table,) = roots[0].rglob("rank_tp0_pp0_dp0.json")
    content = json.loads(table.read_text())
    content.popitem()
    table.write_text(json.dumps(content))

    seen = launch(config, nodes=roots, script=on_ranks, **options)
    for rank in range(3):
        steps = Steps(rank)
        session(WHOLE)(steps)  # type: ignore[arg-type]  # it has what they ask of a seat
        assert _short(seen[rank]) == _short(steps.asked)


def _short(asked: list[str]) -> list[str]:
    """A note of each task, or of a step without a meeting, asks the same once more."""
    rest = [ask for ask in asked if ask not in ("note read", "note try", "note tune", "take")]
    pairs = zip(["", *rest], rest, strict=False)
    return [ask for before, ask in pairs if ask != before or ask == "get"]


# -- what is promised ------------------------------------------------------------------------------


def test_without_faults_every_schedule_ends_well(explore: Explore) -> None:
    """The whole session, every question a move of its own."""
    explored = explore(session(WHOLE), fine=True)
    assert explored.ends.keys() == {"done, done, done"}
    assert explored.states > 5_000


@pytest.mark.timeout(600)  # half a minute, where nothing else runs
@pytest.mark.parametrize("kind", ["kill", "late", "stop"])
def test_whole_session_with_one_fault(explore: Explore, kind: str) -> None:
    """A rank dies, is given up and goes on, or is stopped with the store, at any point of it."""
    explored = explore(session(WHOLE), faults=1, kinds=(kind,))
    assert explored.states > 20_000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["kill", "late"])
def test_whole_session_on_a_store_that_is_not_rank_0s(explore: Explore, kind: str) -> None:
    """A part of the job's: rank 0 is given up as any other, and the others end alike without it."""
    explored = explore(session(WHOLE), faults=1, kinds=(kind,), outlives=True)
    assert explored.states > 20_000


@pytest.mark.parametrize("parts", SAMPLED)
def test_two_meetings_with_two_faults(explore: Explore, parts: list[Part]) -> None:
    """Two ranks die, or are given up and go on, or one of each."""
    explored = explore(session(parts), faults=2, kinds=("kill", "late"))
    assert explored.states > 20_000


def test_one_meeting_in_the_finest_moves(explore: Explore) -> None:
    """One fault of any kind, and every question of every round of a wait a move of its own."""
    explored = explore(session([surveying]), faults=1, fine=True)
    assert explored.states > 30_000


@pytest.mark.parametrize("parts", [[surveying, lacking, planning], [loading, lacking, surveying]])
def test_a_rank_that_lives_and_leaves_is_heard_alike(explore: Explore, parts: list[Part]) -> None:
    """All of them fall back, or where another is lost meanwhile, all name one and the same."""
    explored = explore(session(parts), fine=True)
    assert explored.ends.keys() == {"unable 1, unable 1, unable 1"}
    for kind in ("kill", "late"):
        explore(session(parts), faults=1, kinds=(kind,))


@pytest.mark.parametrize("kind", ["take", "forge"])
def test_a_stranger_at_any_key_at_any_moment(explore: Explore, kind: str) -> None:
    """It takes a value away, or writes in its place or before it: all end as if it had not."""
    explored = explore(session([surveying]), faults=1, kinds=(kind,))
    assert explored.ends.keys() == {"done, done, done"}


@pytest.mark.parametrize("kind", ["take", "forge"])
def test_a_stranger_at_a_last_word(explore: Explore, kind: str) -> None:
    """A rank lives and leaves; its word of it comes back to who has not heard it."""
    explored = explore(session([lacking, surveying]), faults=1, kinds=(kind,))
    assert explored.ends.keys() == {"unable 1, unable 1, unable 1"}


@pytest.mark.parametrize("kind", ["take", "forge"])
@pytest.mark.parametrize("parts", SAMPLED)
def test_a_stranger_in_two_meetings(explore: Explore, parts: list[Part], kind: str) -> None:
    """At bodies and claims as well. The last meeting is there too: no rank leaves before it."""
    last = [] if parts[-1] is certifying else [certifying]
    explored = explore(session([*parts, *last]), faults=1, kinds=(kind,))
    assert explored.ends.keys() == {"done, done, done"}


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["kill", "late", "stop"])
def test_whole_session_in_the_finest_moves(explore: Explore, kind: str) -> None:
    """As above, over the nine steps."""
    explore(session(WHOLE), faults=1, kinds=(kind,), fine=True)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("parts", PAIRS, ids=name_of)
def test_two_meetings_with_any_two_faults(explore: Explore, parts: list[Part]) -> None:
    """Two faults of any kinds."""
    explore(session(parts), faults=2)


# -- protocols that are broken ---------------------------------------------------------------------


class LastRecordWins(Coordinator):
    """Writes a record whether there is one or not."""

    def _propose(self, key: str, body: str) -> bytes:
        self._link.set(key, body.encode())
        return body.encode()


class NeverConfirms(Coordinator):
    """Installs, writes and goes on without asking whether the others have."""

    def confirm(self) -> None:
        pass


def wait_until(is_there: Callable[[], bool], look: Callable[[float], None]) -> None:
    """Wait as `coordinator.py` does: by the explorer's stand-in."""
    vars(sys.modules[Coordinator.__module__])["wait_until"](is_there, look)


class NeverLooks(Coordinator):
    """Waits for what it waits for, and for nothing else."""

    def _wait(self, key: str, waits_for: set[int], meanwhile: Any = None) -> bytes:
        del waits_for, meanwhile
        wait_until(lambda: self._link.has([key]), lambda _waited_s: None)
        return self._link.get_now(key) or b""


class HearsNoEnd(Coordinator):
    """Watches the others while it waits, and does not hear that the session is over."""

    def _wait(self, key: str, waits_for: set[int], meanwhile: Any = None) -> bytes:
        del meanwhile
        others = waits_for - {self.rank}
        wait_until(lambda: self._link.has([key]), lambda _waited_s: self._detector.look(others))
        return self._link.get_now(key) or b""


class SaysNothing(HearsNoEnd):
    """As above, and a rank that leaves says no word; its process lives on."""

    def close(self) -> None:
        self._link.close()


class LeavesAtOnce(Coordinator):
    """Rank 0 takes its store away when it is done itself."""

    def _see_off(self) -> None:
        pass


class TellsNobody(Coordinator):
    """Gives a rank up for itself alone, and leaves without a word of it."""

    def abandon(self, reason: str, *, of: int | None = None, lives: bool = False) -> None:
        """Tell nobody."""

    def _end(self, record: Lost) -> NoReturn:
        raise RankLostError(record.lost, record.reason)


class FallsBackByItself(Coordinator):
    """Lives and leaves, and does not hear that the others have ended for another's loss."""

    def abandon(self, reason: str, *, of: int | None = None, lives: bool = False) -> None:
        super().abandon(reason, of=of, lives=lives)


class ReadsNoMail(Coordinator):
    """Acts as soon as it wakes up, before its store has read what came meanwhile."""

    def confirm(self) -> None:
        self._obey()


class AsksInTheWrongOrder(Coordinator):
    """Asks whether it was stopped before it asks whether the session is over."""

    def confirm(self) -> None:
        if self._heartbeat.overslept():
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self._link.has(["lost"]), within(0.5))
        self._obey()


class CountsKeys(Coordinator):
    """Takes a rank for gone where there is a key that says so, whoever has written it."""

    def _see_off(self) -> None:
        byes = [f"{BYE}/{rank}" for rank in range(1, self.size)]
        wait_until(lambda: self._link.has(byes), lambda _waited_s: None)


class ReadsOnce(Coordinator):
    """Takes a value for there that was there before."""

    def _wait(self, key: str, waits_for: set[int], meanwhile: Any = None) -> bytes:
        super()._wait(key, waits_for, meanwhile or (lambda: None))
        return self._link.get_now(key) or b""


AFTER, APART, FOR_EVER = "after the end of the session", "end differently", "wait for ever"
BROKEN: list[Any] = [
    pytest.param(LastRecordWins, [surveying], "late", APART, id="plain-set"),
    pytest.param(NeverConfirms, [sharing, preparing], "late", AFTER, id="no-confirm"),
    pytest.param(NeverLooks, [surveying], "kill", FOR_EVER, id="no-watch"),
    pytest.param(SaysNothing, [planning], "late", FOR_EVER, id="no-lost-check"),
    pytest.param(LeavesAtOnce, [surveying], "", "alive and in time|differently", id="no-goodbye"),
    pytest.param(TellsNobody, [planning, tuning, sharing], "late", APART, id="no-announcement"),
    pytest.param(FallsBackByItself, [surveying, lacking, planning], "late", APART, id="two-ends"),
    pytest.param(ReadsNoMail, [surveying], "stop", AFTER, id="no-catching-up"),
    pytest.param(AsksInTheWrongOrder, [surveying], "stop", AFTER, id="wrong-order"),
    pytest.param(CountsKeys, [surveying], "forge", "alive and in time|differently", id="keys"),
    pytest.param(ReadsOnce, [surveying], "take", "alive and in time|differently", id="reads-once"),
]


@pytest.mark.parametrize(("make", "parts", "kind", "found"), BROKEN)
def test_a_broken_protocol_is_found(
    explore: Explore, make: type[Coordinator], parts: list[Part], kind: str, found: str
) -> None:
    """One fault at most shows what each rule of the protocol is for."""
    with pytest.raises(AssertionError, match=found):
        explore(session(parts), faults=bool(kind), kinds=(kind,), make=make)
