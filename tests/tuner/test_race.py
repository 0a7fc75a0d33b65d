# SPDX-License-Identifier: Apache-2.0
"""The default is timed beside the winner, and serves unless the winner is faster by the margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from warmup_plugin.cli import main
from warmup_plugin.tuner.default_tactic import beats_default, time_of

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

#: Op -> tactic -> milliseconds; None fails.
OPS: dict[str, dict[str, float | None]] = {
    "by one percent": {"-1": 1.0, "0": 2.0, "1": 0.99},
    "by ten percent": {"-1": 1.0, "0": 2.0, "1": 0.9},
    "slower": {"-1": 1.0, "0": 1.5, "1": 1.2},
    "two alike": {"-1": 9.0, "0": 2.0, "1": 1.0, "2": 1.0},
    "default fails": {"-1": None, "0": 2.0, "1": 1.0},
    "all but the default fail": {"-1": 1.0, "0": None, "1": None},
}


@pytest.mark.multiprocess
def test_a_winner_must_be_worth_it(children: Children, capsys: pytest.CaptureFixture[str]) -> None:
    """1 % keeps the default, 10 % does not; both times stand in the manifest and in `show`."""
    found = children.one("on_race:warm", ops=OPS)
    assert found["served"] == {
        "by one percent": -1, "by ten percent": 1, "slower": -1, "two alike": 1,
        "default fails": 1, "all but the default fail": -1,
    }  # fmt: skip
    tasks = {task["op"]: task for task in children.tasks}
    times = {op: (task.get("ms"), task.get("default_ms")) for op, task in tasks.items()}
    assert times["by one percent"] == pytest.approx((0.99, 1.0))
    assert times["by ten percent"] == pytest.approx((0.9, 1.0))
    assert times["default fails"] == (1.0, None)
    assert "3%" in tasks["by one percent"]["reason"]
    assert "all but the default fail" not in tasks  # no fact about the task: it is tuned again
    warned = "; ".join(found["report"].warnings)
    assert "1 of 6 tasks have no winner, the first all but the default fail" in warned
    assert "all tactics failed, the first with ValueError: planted" in warned
    for name in ("samples", "host", "at", "candidates"):
        assert tasks["by ten percent"][name], name
    assert main(["show", str(children.table_path), "--tasks"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if " by " in line]
    assert any({"0.99", "1", "default"} <= set(row) for row in rows), shown
    assert any({"0.9", "1"} <= set(row) for row in rows), shown


@pytest.mark.multiprocess
def test_it_is_known_at_the_next_start(children: Children) -> None:
    """A default that was kept is not tuned again, and nothing stays on the runners."""
    ops = {op: times for op, times in OPS.items() if op != "all but the default fail"}
    cold = children.one("on_race:warm", ops=ops)
    warm = children.one("on_race:warm", ops=ops)
    assert cold["report"].tactics_timed == sum(map(len, ops.values()))
    assert warm["report"].tactics_timed == 0
    assert warm["served"] == cold["served"]
    assert warm["report"].certificate == cold["report"].certificate
    assert cold["left"] == ["tactics"]


@pytest.mark.multiprocess
def test_without_a_margin_flashinfer_chooses(children: Children) -> None:
    """Its own choice, and the default is timed where its own context does so only."""
    found = children.one("on_race:warm", ops=OPS, margin=0.0)
    assert found["served"] == {
        "by one percent": 1, "by ten percent": 1, "slower": 1, "two alike": 1,
        "default fails": 1, "all but the default fail": -1,
    }  # fmt: skip
    assert found["report"].tactics_timed == sum(len(times) - 1 for times in OPS.values())


@pytest.mark.parametrize(
    ("ms", "default_ms", "margin", "expected"),
    [
        (0.99, 1.0, 0.03, False),
        (0.97, 1.0, 0.03, False),
        (0.96, 1.0, 0.03, True),
        (0.9, 1.0, 0.2, False),
        (1.0, 1.0, 0.0, True),
        (5.0, 1.0, 0.03, False),
        (None, 1.0, 0.03, True),
        (1.0, None, 0.03, True),
    ],
)
def test_the_margin(
    ms: float | None, default_ms: float | None, margin: float, *, expected: bool
) -> None:
    """A share of the default's time; what was not timed cannot lose."""
    assert beats_default(ms, default_ms, margin) == expected


def test_the_time_of_a_tactic() -> None:
    """Its least, of this runner class; a failure is no time."""
    times = [("A", 0, 3.0), ("B", 0, 2.0), ("A", 0, 2.5), ("A", (0,), 1.0), ("A", 1, float("inf"))]
    assert time_of(times, "A", 0) == 2.5
    assert time_of(times, "B", 0) == 2.0
    assert time_of(times, "A", (0,)) == 1.0
    assert time_of(times, "A", 1) is None
    assert time_of(times, "A", False) is None  # equal to 0, and another tactic
    assert time_of(times, "C", 0) is None
