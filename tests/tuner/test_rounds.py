# SPDX-License-Identifier: Apache-2.0
"""Races through FlashInfer's own tuner: the sweep's winners, its own counts back, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.cli import main
from warmup_plugin.engines.embedded.launch import LaunchError
from warmup_plugin.tuner.race.rules import FEWEST

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

#: FlashInfer's own: untimed launches, timed ones, microseconds of delay.
OWN = [3, 10, 5000]
MANY = 40
OPS: dict[str, list[Any]] = {
    "eager": ["toy", MANY, "eager"],
    "cold": ["toy", MANY, "cold"],
    "graph": ["toy", MANY, "graph"],
    "own repeat": ["toy", MANY, "own repeat"],
    "two classes": ["pair", MANY, "static"],
    "some fail": ["broken", MANY, "static"],
    "many": ["toy", 400, "static"],
    "fast default": ["toy", MANY, "static"],
    "few": ["toy", FEWEST - 1, "static"],
}


def start(children: Children, **arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = children.one("on_rounds:warm", **arguments)
    return found


def measured(found: dict[str, Any], op: str) -> list[list[Any]]:
    """What the profiler was asked of an op: tactic, counts, the config's own repeat."""
    return [rest for name, _, *rest in found["asked"] if name == op]


@pytest.fixture(scope="module", params=[("plain", 0.0), ("plain", 0.03), ("v2", 0.0)], ids=str)
def pair(
    request: pytest.FixtureRequest,
    make_children: Callable[[Path], Children],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Children, dict[str, Any], Children, dict[str, Any]]:
    """The same ops swept and raced, each on an empty root."""
    context, margin = request.param
    both: list[Any] = []
    for race in (False, True):
        children = make_children(tmp_path_factory.mktemp("race"))
        found = start(children, ops=OPS, context=context, margin=margin, race=race)
        both += [children, found]
    return tuple(both)


def test_the_winners_are_the_sweeps(pair: Any) -> None:
    """Keys, runner classes, tactics and policies, of every way of timing, and what is served."""
    swept, sweep, raced, race = pair
    assert raced.entries == swept.entries
    assert race["served"] == sweep["served"]
    assert race["report"].agreement == "certified"


def test_what_is_raced_and_what_is_swept(pair: Any) -> None:
    """All in round 1 with small counts, winners once more; below the fewest as without a race."""
    _, sweep, _, race = pair
    assert measured(race, "few") == measured(sweep, "few")
    shown = measured(race, "many")
    looked, later = shown[:400], shown[401:]
    firsts = [counts for _, *counts, _ in looked]
    assert firsts.count([1, 2, 1000]) >= 399  # v2's default races, too, before the first
    assert {tactic for tactic, *_ in shown[:401]} >= set(range(400))
    assert len({tactic for tactic, *_ in later}) < 60
    counts = [asked[1:4] for asked in later]
    assert OWN in counts  # round 2
    assert [
        1,
        10,
        5000,
    ] in counts  # the finals: a burst of 10 ms is long enough
    assert race["report"].tactics_timed == len(race["asked"])


def test_counts_and_lists_are_back(pair: Any) -> None:
    """The tuner's counts and its blocklist's filter; nothing hangs on a runner."""
    _, _, _, race = pair
    assert race["restored"]
    assert not race["filter"]
    assert race["hidden"] == []
    assert race["left"] == ["extras", "op", "tactics"]


def test_a_repeat_of_the_configs_own_is_raced_with(pair: Any) -> None:
    """Where an op has one, the tuner's attribute has no say (FlashInfer 0.7)."""
    _, sweep, _, race = pair
    own = {asked[-1] for asked in measured(sweep, "own repeat")}
    repeats = [asked[-1] for asked in measured(race, "own repeat")]
    if own == {None}:  # before 0.7 it has none
        return
    assert own == {7}
    assert repeats[5] == 2
    assert max(repeats) == 7


def test_the_receipt_tells_what_it_took(pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Launches, device time, share of the sweep's, by task and in all; `show` prints it."""
    swept, sweep, raced, race = pair
    found = race["report"].race
    assert found["tasks"] == len(raced.tasks) - 1
    assert 0 < found["device_s"] < found["sweep_s"]
    rows = {row.op: row for row in race["report"].winners}
    assert rows["many"].share < 0.35
    assert rows["many"].launches > 3 * 400
    assert rows["eager"].confidence == 1.0
    assert rows["few"].share is None
    assert not sweep["report"].race
    (path,) = raced.root.rglob("reports/*.json")
    assert main(["show", str(path)]) == 0
    assert "launches" in capsys.readouterr().out
    tasks = {task["op"]: task for task in raced.tasks}
    assert tasks["eager"]["confidence"] == 1.0
    assert tasks["eager"]["tied"] == 1
    assert tasks["eager"]["samples"] > 10
    assert "tied" not in tasks["few"]
    assert {task["op"]: task["ms"] for task in swept.tasks} == pytest.approx(
        {op: task["ms"] for op, task in tasks.items()}
    )


def test_ties_go_by_flashinfers_order(
    children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of tactics that only noise tells apart the first; `show` says how many there are."""
    found = start(children, ops={"noisy": ["noisy", 20, "static"]}, race=True)
    (task,) = children.tasks
    assert found["served"]["noisy"] % 2 == 0
    assert task["tied"] > 1
    assert 0 < task["confidence"] <= 1
    assert main(["show", str(children.table_path), "--tasks"]) == 0
    assert "tied with" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ways",
    [{"one_rank": "op"}, {"context": "ties"}, {"race": False}],
    ids=["leaves something behind", "FlashInfer settles ties", "not asked for"],
)
def test_swept_as_without_a_race(children: Children, ways: dict[str, Any]) -> None:
    """An op whose tuning has side effects; a context with a rule of its own; no setting."""
    if ways.get("context") == "ties" and not has_tie_tolerance():
        ways = {"race": False}
    found = start(children, ops={"op": ["toy", MANY, "static"]}, **{"race": True, **ways})
    assert [counts for _, *counts, _ in measured(found, "op")] == [OWN] * len(found["asked"])
    assert not found["report"].race


def has_tie_tolerance() -> bool:
    import inspect

    from flashinfer.autotuner import autotune

    return "tie_tolerance" in inspect.signature(autotune).parameters


def test_short_measurements_are_no_race(children: Children) -> None:
    """Where FlashInfer times fewer launches than a look is worth (it may, from 0.7 on)."""
    found = start(children, ops={"op": ["toy", MANY, "short"]}, race=True)
    if {asked[-1] for asked in measured(found, "op")} != {None}:
        assert [counts for _, *counts, _ in measured(found, "op")] == [OWN] * len(found["asked"])
        assert not found["report"].race


def test_other_candidates_each_time_are_swept(children: Children) -> None:
    """The winner is not offered again: FlashInfer chooses among all, in its own way."""
    found = start(children, ops={"op": ["shifting", MANY, "static"]}, race=True)
    shown = measured(found, "op")
    assert [counts for _, *counts, _ in shown[-MANY - 1 :]] == [OWN] * (MANY + 1)
    assert not found["report"].race
    assert found["report"].tasks["tuned"] == 1


def test_candidates_of_one_runner_are_no_race_where_another_finds_no_memory(
    children: Children,
) -> None:
    """FlashInfer gives the whole op up, and so nothing is stored: the next start tunes it."""
    found = start(children, ops={"op": ["no room", MANY, "static"]}, race=True, margin=0.0)
    assert found["report"].tasks["failed"] == 1
    assert len(measured(found, "op")) == MANY
    assert not found["report"].race
    assert "out of memory" in "".join(found["report"].warnings)
    assert children.entries == {}


@pytest.mark.parametrize("at", [20, 43, 60])
def test_an_interrupt_leaves_the_counts(children: Children, at: int) -> None:
    """In round 1, between the rounds and in the finals."""
    found = start(
        children, ops={"op": ["toy", MANY, "static"]}, race=True, at=at, do="interrupt", margin=0.0
    )
    assert found["error"] == "interrupted"
    assert found["restored"]
    assert not found["filter"]
    assert found["hidden"] == []


#: So many that all three rounds are run, in the order in which they are tuned.
THREE: dict[str, list[Any]] = {name: ["toy", 200, "static"] for name in ("a", "b", "c")}
#: What of the second task each is the first measurement of: counts, and whether from the end.
ROUNDS = {
    "round 1": ([1, 2, 1000], False),
    "round 2": (OWN, False),
    "round 3": ([1, 10, 5000], False),
    "FlashInfer's last": ([1, 2, 1000], True),
}


@pytest.fixture(scope="module")
def clean(
    make_children: Callable[[Path], Children], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[Any]], dict[str, Any], list[dict[str, Any]]]:
    """A start that nothing disturbs: what was asked, the entries, the tasks."""
    children = make_children(tmp_path_factory.mktemp("clean"))
    found = start(children, ops=THREE, race=True)
    return found["asked"], children.entries, children.tasks


def place_of(asked: list[list[Any]], which: str) -> tuple[int, list[str]]:
    """Return the number of that measurement of the second task, and the ops in order."""
    ops = list(dict.fromkeys(op for op, *_ in asked))
    counts, is_last = ROUNDS[which]
    found = [n for n, (op, *r) in enumerate(asked, 1) if op == ops[1] and r[2:5] == counts]
    return found[-1 if is_last else 0], ops


@pytest.mark.parametrize("which", ROUNDS)
def test_a_killed_start_loses_one_task_at_most(children: Children, clean: Any, which: str) -> None:
    """In each round: what was won before stands, and the next start comes to the same table."""
    asked, entries, _ = clean
    at, ops = place_of(asked, which)
    with pytest.raises(LaunchError):
        start(children, ops=THREE, race=True, at=at, do="kill")
    again = start(children, ops=THREE, race=True)
    timed = {op for op, *_ in again["asked"]}
    assert timed == set(ops[1:])
    assert children.entries == entries
    assert again["report"].agreement == "certified"


def test_a_budget_that_ends_in_round_2_publishes_nothing_half_measured(
    children: Children, clean: Any
) -> None:
    """The task in hand goes through all its rounds; the one after it is left to the next start."""
    asked, entries, tasks = clean
    at, ops = place_of(asked, "round 2")
    found = start(children, ops=THREE, race=True, at=at, do="6.5", budget_s=6.0)
    assert found["report"].tasks["left"] == 1
    whole = {task["op"]: (task["samples"], task["ms"], task["confidence"]) for task in tasks}
    stored = {t["op"]: (t["samples"], t["ms"], t["confidence"]) for t in children.tasks}
    assert stored == {op: whole[op] for op in ops[:2]}
    assert not children.is_complete
    again = start(children, ops=THREE, race=True)
    assert {op for op, *_ in again["asked"]} == {ops[2]}
    assert children.entries == entries
