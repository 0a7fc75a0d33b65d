# SPDX-License-Identifier: Apache-2.0
"""A rank that dies without a word, as by the kernel's out-of-memory killer.

The others give it up by name, nothing stays behind that blocks the next start, and that one comes
up warm or tunes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Case, Rank

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

SILENCE_S, GRACE_S, SLACK_S = 1.5, 0.5, 4.0
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
SPOTS = (*((step, rank) for step in STEPS for rank in (0, 1)), ("tune:3", 0), ("forward", 0), ("forward", 1))
MEETINGS = ("agree", "load", "survey0", "plan", "share", "ready", "built", "certify")


def name(spot: tuple[str, int]) -> str:
    return f"{spot[0]}-{spot[1]}"


@pytest.mark.parametrize("spot", SPOTS, ids=name)
def test_the_others_name_it_and_the_next_start_is_sound(
    spot: tuple[str, int], grid: Callable[..., Case]
) -> None:
    """Two ranks, one of them killed at the begin of each step."""
    check(grid("kill", SPOTS, spot, tp=2))


BEFORE_A_MEETING = tuple((f"meet:{meeting}", rank) for meeting in MEETINGS for rank in (0, 1))


@pytest.mark.soak
@pytest.mark.parametrize("spot", BEFORE_A_MEETING, ids=name)
def test_just_before_it_hands_in_its_word(
    spot: tuple[str, int], grid: Callable[..., Case]
) -> None:
    """The same in the middle of the steps, on two nodes: a mark may be on the disk."""
    check(grid("kill", BEFORE_A_MEETING, spot, tp=2, nodes=(0, 1)))


OF_FOUR = tuple((step, rank) for step in (*STEPS, "forward") for rank in range(4))


@pytest.mark.soak
@pytest.mark.parametrize("spot", OF_FOUR, ids=name)
def test_one_of_four(spot: tuple[str, int], grid: Callable[..., Case]) -> None:
    """Two stages of two ranks on two nodes."""
    check(grid("kill", OF_FOUR, spot, tp=2, pp=2, nodes=(0, 0, 1, 1)))


def check(case: Case) -> None:
    (_, killed), struck = case.spot, case.struck
    assert struck[killed].status == -9
    struck.assert_nobody_waits()
    for rank in struck.ranks:
        if rank.rank != killed:
            assert_gave_up(rank, killed)
            waited = rank.said["last"] - struck[killed].said["killed"]
            assert waited < 2 * SILENCE_S + GRACE_S + SLACK_S
    assert case.litter == []
    case.again.assert_agreed()
    for rank in case.again.ranks:
        assert rank.task_count("seen") == sum(map(rank.task_count, ("tuned", "received", "from_cache")))


def assert_gave_up(rank: Rank, lost: int) -> None:
    """A rank raised the error that names the lost one, or ended where it could not come back."""
    if rank.status is not None:
        assert rank.status == 79, rank.outcome()
        assert any(f"rank {lost}" in line and "status 79" in line for line in rank.logged)
    else:
        assert rank.error is not None, rank.outcome()
        assert f"rank {lost} is lost" in f"{rank.error[1]} {rank.cause}", rank.outcome()
