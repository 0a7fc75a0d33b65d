# SPDX-License-Identifier: Apache-2.0
"""Nodes that start with different tables: what anyone holds is timed by nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Ran, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

LAYOUTS: dict[str, dict[str, int]] = {"TP2": {"tp": 2}, "TP2xPP2": {"tp": 2, "pp": 2}}


def share(task: str, of: int) -> int:
    """Deal tasks out into so many parts, the same at every start."""
    return int(task, 16) % of


def disjoint(job: Job) -> None:
    job.keep(0, lambda task, _record: share(task, 3) == 0)
    job.keep(1, lambda task, _record: share(task, 3) == 1)


def overlapping(job: Job) -> None:
    job.keep(0, lambda task, _record: share(task, 4) in (0, 1))
    job.keep(1, lambda task, _record: share(task, 4) in (1, 2))


def of_other_generations(job: Job) -> None:
    job.keep(0, lambda task, _record: share(task, 2) == 0, generation=7)
    job.keep(1, lambda task, _record: share(task, 5) == 0, generation=3)


def one_whole(job: Job) -> None:
    job.keep(0, lambda _task, record: record.op == "embedded::gemm")


def neither(job: Job) -> None:
    for node in (0, 1):
        job.keep(node, lambda _task, _record: False)


CASES: dict[str, dict[str, Any]] = {
    change.__name__.replace("_", " "): {"before": change, "two_nodes": True}
    for change in (disjoint, overlapping, of_other_generations, one_whole, neither)
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_only_what_nobody_holds_is_timed(name: str, layout: str, ran: Callable[..., Ran]) -> None:
    """Distinct tasks timed over the job are the tasks that no node had; then all are warm."""
    case = ran(CASES, name, **LAYOUTS[layout])
    missing = case.job.tasks() - case.known
    assert case.start.tasks_tuned() == len(missing), "and none of them by two ranks"
    assert case.job.entries(0) == case.job.entries(1)
    case.start.assert_agreed()
    case.again.assert_warm()


def test_the_higher_generation_wins(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Two whole tables with other winners: the later one serves on both nodes, nothing is timed."""
    ours, theirs = make_job("ours", nodes=(0, 1)), make_job("theirs", nodes=(0, 1))
    theirs.faults = [{"do": "timed_as", "on": [0, 1], "rank": 1}]
    start([ours, theirs], tp=2)
    winners = theirs.entries(1)
    assert winners != ours.entries(1)
    shutil.rmtree(ours.roots[1])
    shutil.copytree(theirs.roots[1], ours.roots[1])
    ours.keep(1, lambda _task, _record: True, generation=9)
    (warm,) = start([ours], tp=2)
    warm.assert_agreed()
    assert [rank.timed for rank in warm.ranks] == [0, 0]
    assert ours.entries(0) == ours.entries(1) == winners
