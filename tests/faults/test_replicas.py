# SPDX-License-Identifier: Apache-2.0
"""Engines that start together on one directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]


def test_one_tunes_the_other_adopts(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Distinct tasks timed in all engines together are the tasks there are; all serve alike."""
    engines = [make_job("same"), make_job("same"), make_job("same")]
    cold = start(engines, tp=2)
    tuned = [engine.tasks_tuned() for engine in cold]
    assert sorted(tuned) == [0, 0, len(engines[0].tasks())]
    assert len({engine.reports[0].certificate for engine in cold}) == 1
    for engine in cold:
        engine.assert_agreed()
    for engine in start(engines, tp=2):
        engine.assert_warm()


def test_the_other_takes_over_from_one_that_died(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """The one that tunes is killed: its lease is void, and nobody waits it out."""
    dying, waiting = make_job("same"), make_job("same")
    dying.faults = [
        {"do": "kill", "on": [0], "at": "tune:10"},
        {"do": "slow_tasks", "on": [0, 1], "seconds": 0.05},
    ]
    waiting.faults = [{"do": "sleep", "on": [0], "at": "plan", "seconds": 1.0}]
    died, took_over = start([dying, waiting], tp=2)
    assert died[0].status == -9
    took_over.assert_whole()
    # It was surveyed before the other one had found out anything.
    assert took_over.tasks_tuned() == len(waiting.tasks())
    assert waiting.litter() == []


def test_the_wait_for_one_that_does_not_get_on_is_bounded(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """The one that tunes is stopped and holds its lease: the other waits as long as it is told."""
    stopped, waiting = make_job("same"), make_job("same")
    stopped.faults = [{"do": "stop", "on": [0], "at": "tune"}]
    waiting.faults = [{"do": "sleep", "on": [0], "at": "plan", "seconds": 1.0}]
    waiting.env = {"WARMUP_PLUGIN_REPLICA_WAIT_S": "3"}
    gave_up, went_on = start([stopped, waiting], tp=2, hold_s=10.0)
    gave_up[1].assert_gave_up(0)
    went_on.assert_whole()
    assert went_on.tasks_tuned() == len(waiting.tasks())
    assert "another engine has tuned here for over 3 s" in went_on.warnings
    assert "woken" in gave_up[0].said
    (row,) = [row for row in went_on.reports[0].waited if row.at == "wait"]
    assert str(row.for_whom).startswith("process "), row
    for rank, report in enumerate(went_on.reports):
        assert report.seconds["wait"] >= 3.0, rank
    waits = {name: seconds for name, _, seconds in went_on.reports[0].ranks[1].waits}
    assert waits["plan1"] >= 2.9, "the other rank waits for the plan after the wait, and"
    assert waits["plan"] < 2.5, "for no decision that waits itself: a second is the fault above"
