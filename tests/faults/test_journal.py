# SPDX-License-Identifier: Apache-2.0
"""Starts that are killed, over and over: what was tuned stays tuned, and a deadly task is left out.

Both strategies that share: the ranks here are two, and which of them has a task in hand when it
dies is as it happens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.cache.journal import read_journals
from warmup_plugin.cli.commands.retry import lift_all

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

MakeJob = Callable[..., "Job"]
StartJobs = Callable[..., "list[Start]"]

BOTH = (0, 1)
TELL = {"do": "tell_tasks", "on": BOTH}
LIMIT = 1 << 30
#: An op with one task for each bucket.
HEAD = "embedded::lm_head"
KILLS, JOBS = 4, 5
#: So slow that there is work left for each start: a rank's death is noticed a silence later.
SLOW = {"do": "slow_tasks", "on": BOTH, "seconds": 0.3}


def begun(found: Start) -> int:
    """How many tasks the ranks of a start have begun to tune."""
    return sum(event.startswith("task ") for rank in found.ranks for event in rank.said)


def deadly(batch: int, on: tuple[int, ...] = BOTH) -> dict[str, Any]:
    return {"do": "die_in_tactic", "on": on, "op": HEAD, "tactic": 1, "batch": batch}


def test_random_kills_lose_one_task_each(start: StartJobs, make_job: MakeJob) -> None:
    """20 kills of random ranks at random moments; in the end each table is as if there were none.

    Over all starts of a job no more tasks are timed than there are, and one for each kill.
    """
    rng = random.Random(7)  # noqa: S311  # no secret
    jobs = [make_job(f"killed{number}") for number in range(JOBS)]
    whole = make_job("whole")
    timed, killed, num_tasks = [0] * JOBS, 0, 0
    for _ in range(KILLS):
        for job in jobs:
            rank, place = rng.choice(BOTH), rng.randrange(1, 25)
            job.faults = [TELL, SLOW, {"do": "kill", "on": [rank], "at": f"profile:{place}"}]
        for number, found in enumerate(start(jobs, tp=2, timing="deterministic")):
            found.assert_nobody_waits()
            (dead,) = [rank for rank in found.ranks if rank.status == -9]
            found[1 - dead.rank].assert_gave_up(dead.rank)
            timed[number] += begun(found)
            killed += 1
    assert killed == KILLS * JOBS == 20
    for job in (*jobs, whole):
        job.faults = [TELL]
    *ends, sound = start([*jobs, whole], tp=2, timing="deterministic")
    num_tasks = begun(sound)
    for job, found, count in zip(jobs, ends, timed, strict=True):
        found.assert_whole()
        assert count + begun(found) <= num_tasks + KILLS
        assert found.reports[0].certificate == sound.reports[0].certificate
        assert job.entries() == whole.entries()
        assert read_journals(job.directory(), LIMIT) == []
        assert job.litter() == []
    for found in start(jobs, tp=2, timing="deterministic"):
        found.assert_warm()


@pytest.mark.parametrize("strategy", ["leader", "sharded"])
def test_a_task_that_kills_serves_its_default(
    strategy: str, start: StartJobs, make_job: MakeJob
) -> None:
    """Two deaths, then up, with that one task on its default, until an operator lifts it."""
    job = make_job(strategy)

    def once(*faults: dict[str, Any]) -> Start:
        job.faults, job.env = [TELL, *faults], {"WARMUP_PLUGIN_STRATEGY": strategy}
        (found,) = start([job], tp=2)
        return found

    first, second = once(deadly(16)), once(deadly(16))
    for found in (first, second):
        assert [rank.status for rank in found.ranks].count(-9) == 1, found.told()
        found.assert_nobody_waits()
    assert "a process has died in it; it is tuned last" in second.warnings
    up = once(deadly(16))
    up.assert_agreed()
    assert begun(up) == 0, "all others were tuned before the second death"
    assert up[0].task_count("default") == 1
    assert "2 processes have died in it; it serves its default" in up.warnings
    again = once()
    again.assert_warm()
    assert again[0].task_count("default") == 1
    (task,) = lift_all(job.directory(), LIMIT, dry=False).values()
    assert HEAD in task
    lifted = once()
    lifted.assert_whole()
    assert begun(lifted) == 1
    assert lifted[0].task_count("default") == 0
    assert read_journals(job.directory(), LIMIT) == []
    once().assert_warm()


def test_a_winner_that_kills_another_rank_is_left_out(start: StartJobs, make_job: MakeJob) -> None:
    """It is run apart on every rank before it serves, and what is in hand is marked there too."""
    job = make_job("apart")
    faults = [{"do": "die_when_built", "on": [1], "op": HEAD, "batch": 16}]
    found = []
    for _ in range(3):
        job.faults, job.env = faults, {"WARMUP_PLUGIN_STRATEGY": "leader"}
        found += start([job], tp=2)
    assert [one[1].status for one in found] == [-9, -9, None], [one.told() for one in found]
    found[-1].assert_agreed()
    assert found[-1][0].task_count("default") == 1


def test_a_shutdown_is_nobodys_death(start: StartJobs, make_job: MakeJob) -> None:
    """SIGTERM takes the mark back, also where the task in hand does not end in time."""
    jobs = [make_job("ends"), make_job("hangs")]
    jobs[0].faults = [{"do": "send", "on": [0], "at": "profile:30", "name": "SIGTERM"}]
    jobs[1].faults = [
        {"do": "hang", "on": [0], "at": "profile:30", "seconds": 25.0, "terminate_after_s": 0.2}
    ]
    for found in start(jobs, tp=2):
        assert found[0].status in (-15, 128 + 15), found.told()
    for job in jobs:
        journals = read_journals(job.directory(), LIMIT)
        assert journals
        assert [past.in_hand for past in journals] == [None] * len(journals)
    for found in start(jobs, tp=2):
        found.assert_whole()
        assert found[0].task_count("from_cache") > 0
        assert "has died" not in found.warnings


def test_a_budget_ends_tuning_on_all_ranks(start: StartJobs, make_job: MakeJob) -> None:
    """10 s of work, 1 s a start: what is known is served, and enough starts make it complete."""
    job, longest = make_job("budget"), 0.25
    counts, left = [], None
    for _ in range(16):
        job.env = {"WARMUP_PLUGIN_BUDGET_S": "1"}
        job.faults = [TELL, {"do": "slow_tasks", "on": BOTH, "seconds": longest}]
        (found,) = start([job], tp=2)
        found.assert_agreed()
        counts.append(begun(found))
        for report in found.reports:
            tuned_s = report.seconds.get("tune", 0.0) + report.seconds.get("share", 0.0)
            assert tuned_s < 1 + longest + 1.0  # the last is what a busy machine adds
        left = found[0].task_count("left")
        if not left:
            break
        assert f"{left} of" in found.warnings
        assert "budget of 1 s" in found.warnings
    assert not left, counts
    assert len(counts) > 3, "there was more work than for one start"
    assert sum(counts) * longest > 5
    job.env = {}
    (found,) = start([job], tp=2)
    found.assert_warm()
    assert sum(counts) == len(job.tasks())
