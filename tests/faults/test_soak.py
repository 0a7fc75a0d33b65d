# SPDX-License-Identifier: Apache-2.0
"""Random schedules of kills and delays at every step, from a seed that reproduces.

One batch in every test run; all of them by ``make soak``. WARMUP_SOAK_SEED chooses others,
WARMUP_SOAK_OUT names a file for one line of JSON about each schedule.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Rank, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

SEED = int(os.environ.get("WARMUP_SOAK_SEED", "20261120"))
PER_BATCH, BATCHES = 10, 50
#: Two silences and a grace period, and what a busy machine adds.
BOUND_S = 2 * 1.5 + 0.5 + 4.0
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
MEETINGS = ("agree", "load", "survey0", "plan", "share", "ready", "certify")
#: The second half of the batches starts from tables that are damaged, too.
DAMAGE = ("flip", "cut", "none")


def schedule(chance: random.Random) -> list[Mapping[str, Any]]:
    """Return one or two faults, each of one rank at one point."""
    found: list[Mapping[str, Any]] = []
    for _ in range(1 + (chance.random() < 0.3)):
        point = chance.choice(
            [
                *STEPS, "forward", "build",
                *(f"meet:{coordinator}" for coordinator in MEETINGS),
                f"tune:{chance.randrange(1, 40)}", f"profile:{chance.randrange(1, 300)}",
            ]
        )  # fmt: skip
        do = chance.choice(["kill", "kill", "sleep", "hold_the_interpreter"])
        fault: dict[str, Any] = {"do": do, "on": [chance.randrange(2)], "at": point}
        if do != "kill":
            fault["seconds"] = round(chance.uniform(0.05, 2.5), 2)
        found.append(fault)
    return found


def damage(job: Job, chance: random.Random) -> str:
    """Damage the table or its manifest; return how."""
    how = chance.choice(DAMAGE)
    path = chance.choice([*job.tables(), *job.directory().glob("*.manifest.json")])
    body = bytearray(path.read_bytes())
    if how == "flip":
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del body[chance.randrange(len(body)) :]
    path.write_bytes(bytes(body))
    return f"{how} {path.name.partition('.')[2]}"


def killed(start: Start) -> set[int]:
    return {rank.rank for rank in start.ranks if rank.status == -9}


def gave_up_in_time(rank: Rank, start: Start, dead: set[int]) -> float:
    """Check that a rank that is left has named one of the dead; return how long that took."""
    told = " ".join([*rank.logged, rank.outcome(), rank.cause])
    assert any(f"rank {other}" in told for other in dead), start.told()
    took = rank.said["last"] - min(start[other].said["killed"] for other in dead)
    assert took < BOUND_S, f"{took:.1f} s: {start.told()}"
    return took


def check(start: Start, again: Start, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Hold one schedule against the oracle; return its longest wait, seconds."""
    start.assert_nobody_waits()
    dead, longest = killed(start), 0.0
    for rank in start.ranks:
        if rank.rank in dead:
            continue
        if rank.report is not None:
            assert rank.report.agreement == "certified", start.told()
        else:
            assert dead, start.told()
            longest = max(longest, gave_up_in_time(rank, start, dead))
    if not dead:
        start.assert_agreed()
    again.assert_nobody_waits()
    again.assert_whole()
    assert before.keys() <= after.keys(), "entries were lost"
    return longest


def run_batch(
    number: int,
    start: Callable[..., list[Start]],
    start_sound: Callable[..., list[Start]],
    make_job: Callable[..., Job],
    *,
    warm: bool,
) -> None:
    """Run a batch of schedules at once, and a sound start after each."""
    chance = random.Random(f"{SEED}/{number}")  # noqa: S311  # a schedule, no secret
    jobs = [make_job(f"{number}-{i}") for i in range(PER_BATCH)]
    said = ["cold"] * len(jobs)
    if warm:
        start_sound(jobs, tp=2)
        said = [damage(job, chance) for job in jobs]
    plans = [schedule(chance) for _ in jobs]
    for job, plan in zip(jobs, plans, strict=True):
        job.faults = plan
    struck = start(jobs, tp=2)
    held = [readable(job) for job in jobs]
    again = start_sound(jobs, tp=2)
    lines = []
    for job, plan, how, *starts, entries in zip(
        jobs, plans, said, struck, again, held, strict=True
    ):
        try:
            longest = check(starts[0], starts[1], entries, readable(job))
        except AssertionError as error:
            raise AssertionError(f"seed {SEED}, batch {number}, {how}, {plan}: {error}") from error
        lines.append({"batch": number, "table": how, "faults": plan, "longest_s": round(longest, 2),
                      "dead": sorted(killed(starts[0]))})  # fmt: skip
    if out := os.environ.get("WARMUP_SOAK_OUT"):
        with Path(out).open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)


def readable(job: Job) -> dict[str, Any]:
    """Return what a start left, as far as it can be read; nothing where it did not come so far."""
    try:
        return job.entries()
    except ValueError:  # no directory yet, or a damaged file that nobody came to look at
        return {}


def test_a_batch_of_schedules(
    start: Callable[..., list[Start]],
    start_sound: Callable[..., list[Start]],
    make_job: Callable[..., Job],
) -> None:
    """The short form: one batch, cold."""
    run_batch(0, start, start_sound, make_job, warm=False)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, BATCHES + 1))
def test_more_schedules(
    number: int,
    start: Callable[..., list[Start]],
    start_sound: Callable[..., list[Start]],
    make_job: Callable[..., Job],
) -> None:
    """Cold starts first, then starts on damaged tables."""
    run_batch(number, start, start_sound, make_job, warm=number > BATCHES // 2)
