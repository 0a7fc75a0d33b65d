# SPDX-License-Identifier: Apache-2.0
"""A rank that is stopped, as by a debugger or a frozen container, and wakes up later.

The others give it up by name within two silences; when it wakes it finds that out before it acts.
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
#: The begin of each step, the middle of tuning, and the engine's own forward, where the others
#: cannot come back from its collectives.
SPOTS = (*((step, rank) for step in STEPS for rank in (0, 1)), ("tune:3", 0), ("forward", 0), ("forward", 1))
MEETINGS = ("agree", "load", "survey0", "plan", "share", "ready", "built", "certify")
#: What a woken rank may still say: that it has a heart, that it was lost, that it leaves.
LAST_WORDS = ("beat/", "lost", "bye/", "failed/")


def name(spot: tuple[str, int]) -> str:
    return f"{spot[0]}-{spot[1]}"


@pytest.mark.parametrize("spot", SPOTS, ids=name)
def test_the_others_name_it_and_it_obeys(spot: tuple[str, int], grid: Callable[..., Case]) -> None:
    """Two ranks, one of them stopped at the begin of each step for longer than the limit."""
    check(grid("stop", SPOTS, spot, tp=2))


BEFORE_A_MEETING = tuple((f"meet:{meeting}", rank) for meeting in MEETINGS for rank in (0, 1))


@pytest.mark.soak
@pytest.mark.parametrize("spot", BEFORE_A_MEETING, ids=name)
def test_just_before_it_hands_in_its_word(
    spot: tuple[str, int], grid: Callable[..., Case]
) -> None:
    """The same in the middle of the steps."""
    check(grid("stop", BEFORE_A_MEETING, spot, tp=2))


OF_FOUR = tuple((step, rank) for step in (*STEPS, "forward") for rank in range(4))


@pytest.mark.soak
@pytest.mark.parametrize("spot", OF_FOUR, ids=name)
def test_one_of_four(spot: tuple[str, int], grid: Callable[..., Case]) -> None:
    """Two stages of two ranks on two nodes: the others do not wait for it, nor for each other."""
    check(grid("stop", OF_FOUR, spot, tp=2, pp=2, nodes=(0, 0, 1, 1)))


def check(case: Case) -> None:
    (_, stopped), struck = case.spot, case.struck
    struck.assert_nobody_waits()
    for rank in struck.ranks:
        if rank.rank != stopped:
            assert_gave_up(rank, stopped)
            waited = rank.said["last"] - struck[stopped].said["stopped"]
            assert waited < 2 * SILENCE_S + GRACE_S + SLACK_S
    woken = struck[stopped]
    assert "woken" in woken.said
    assert woken.error is not None, "it went on by itself"
    assert [key for key in woken.sent if not key.startswith(LAST_WORDS)] == []
    assert woken.held == [], "its tuner holds what no other rank holds"
    assert struck.woken is not None
    changed = {path for path, mark in case.after.items() if struck.woken.get(path) != mark}
    assert changed == set(), "it wrote"
    gone = {path for path in struck.woken if path not in case.after}
    assert all(path.endswith("tuning.json") for path in gone), "only its lease is its own"
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
        kind, _, named = rank.error
        assert f"rank {lost} is lost" in f"{rank.error[1]} {rank.cause}", rank.outcome()
        assert (kind, named) == ("RankLostError", lost) or rank.cause
