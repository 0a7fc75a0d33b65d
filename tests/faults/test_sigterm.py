# SPDX-License-Identifier: Apache-2.0
"""A shutdown signal, or ^C, in the middle of tuning: what is tuned is kept, the process goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Ran

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

LEAVE_S, SILENCE_S, SLACK_S = 5.0, 1.5, 4.0
MIDDLE = "profile:150"
SLOW = {"do": "slow_tasks", "on": [0], "seconds": 0.15}


#: Rank 0 comes to the middle whatever the other does.
LEADER = {"env": {"WARMUP_PLUGIN_STRATEGY": "leader"}}


def sent(rank: int, at: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {"faults": [{"do": "send", "on": [rank], "at": at, "name": "SIGTERM"}, *more]}


#: On the rank that tunes, and how it ends: by the signal, by an exception, by its own will.
CASES: dict[str, dict[str, Any]] = {
    "SIGTERM": sent(0, MIDDLE) | LEADER,
    "SIGTERM in a tactic that does not return": {
        "faults": [
            {"do": "hang", "on": [0], "at": MIDDLE, "seconds": 25.0, "terminate_after_s": 0.2}
        ],
        **LEADER,
    },
    "SIGTERM of an engine with a handler": (
        sent(0, MIDDLE, {"do": "own_handler", "on": [0]}) | LEADER
    ),
    "KeyboardInterrupt": {
        "faults": [{"do": "fail_at", "on": [0], "at": MIDDLE, "error": "KeyboardInterrupt"}],
        **LEADER,
    },
    "SIGTERM of the other rank": {
        **sent(1, "share", SLOW),
        **LEADER,
    },
    "SIGTERM of another rank that tunes": sent(1, "tune:3", SLOW),
    "SIGTERM before anything is": sent(0, "plan"),
}
#: When all is tuned: what is left is short, and the job ends after it.
AFTER_TUNING = {
    (step, rank): sent(rank, step)
    for step in ("share", "prepare", "publish", "certify")
    for rank in (0, 1)
}
ENDS = {
    "SIGTERM": -15,
    "SIGTERM in a tactic that does not return": 128 + 15,
    "SIGTERM of an engine with a handler": "SystemExit",
    "KeyboardInterrupt": "KeyboardInterrupt",
}


@pytest.mark.parametrize("name", ENDS)
def test_results_are_kept(name: str, ran: Callable[..., Ran]) -> None:
    """The process is gone within five seconds, and the next start times the rest only."""
    case = ran(CASES, name, tp=2)
    start, again = case.start, case.again
    assert ENDS[name] in (start[0].status, start[0].raised), start.told()
    start[1].assert_gave_up(0)
    struck = start[0].said["failed" if "Interrupt" in name else "signalled"]
    assert start[1].said["last"] - struck < LEAVE_S + SLACK_S
    assert case.job.litter() == []
    again.assert_whole()
    kept = again[0].task_count("from_cache")
    assert kept > 0, "some tasks were tuned before"
    assert again.tasks_tuned() == again[0].task_count("seen") - kept > 0


@pytest.mark.parametrize(
    "name", ["SIGTERM of the other rank", "SIGTERM of another rank that tunes"]
)
def test_another_rank_s_end_is_noticed_while_this_one_tunes(
    name: str, ran: Callable[..., Ran]
) -> None:
    """The rank that tunes does not go on for hours; what it has tuned is kept."""
    case = ran(CASES, name, tp=2)
    start, again = case.start, case.again
    assert start[1].status == -15
    start[0].assert_gave_up(1)
    assert start[0].said["last"] - start[1].said["signalled"] < 2 * SILENCE_S + SLACK_S
    again.assert_whole()
    assert again[0].task_count("from_cache") > 0
    assert again.tasks_tuned() > 0


@pytest.mark.parametrize("spot", AFTER_TUNING, ids=lambda spot: f"{spot[0]}-{spot[1]}")
def test_after_tuning_the_table_is_stored_and_the_job_ends(
    spot: tuple[str, int], ran: Callable[..., Ran]
) -> None:
    """It waits for the steps that are left; no rank is certified with one that has gone."""
    case, asked = ran(AFTER_TUNING, spot, tp=2), spot[1]
    other = case.start[1 - asked]
    assert case.start[asked].status == -15
    other.assert_gave_up(asked)
    assert "SIGTERM" in other.outcome()
    assert any("SIGTERM" in line for line in case.start[asked].logged)
    case.again.assert_warm()


def test_before_tuning_the_process_just_ends(ran: Callable[..., Ran]) -> None:
    """There is nothing to keep yet, and nothing is in the way of the signal."""
    case = ran(CASES, "SIGTERM before anything is", tp=2)
    assert case.start[0].status == -15
    case.start[1].assert_gave_up(0)
    case.again.assert_whole()
