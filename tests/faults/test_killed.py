# SPDX-License-Identifier: Apache-2.0
"""A rank that dies without a word, as by the kernel's out-of-memory killer.

The others give it up by name, nothing stays behind that blocks the next start, and that one comes
up warm or tunes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Ran

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

#: Within which the others end: two silences, a grace period, and what a busy machine adds.
BOUND_S = 2 * 1.5 + 0.5 + 4.0
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
MEETINGS = ("agree", "load", "survey0", "plan", "share", "ready", "certify")

Spot = tuple[str, int]


def at(points: Iterable[str], ranks: Iterable[int], **more: Any) -> dict[Spot, dict[str, Any]]:
    """Return a case for each point and rank: that rank is killed there."""
    spots = [(point, rank) for point in points for rank in ranks]
    return {
        (point, rank): {"faults": [{"do": "kill", "on": [rank], "at": point}], **more}
        for point, rank in spots
    }


AT_EACH_STEP = at((*STEPS, "forward"), (0, 1)) | at(["tune:3"], [0])
BEFORE_A_MEETING = at((f"meet:{coordinator}" for coordinator in MEETINGS), (0, 1))
OF_FOUR = at((*STEPS, "forward"), range(4), two_nodes=True)


def name(spot: Spot) -> str:
    return f"{spot[0]}-{spot[1]}"


@pytest.mark.parametrize("spot", AT_EACH_STEP, ids=name)
def test_the_others_name_it_and_the_next_start_is_sound(
    spot: Spot, ran: Callable[..., Ran]
) -> None:
    """One of two ranks is killed at the begin of each step."""
    check(spot, ran(AT_EACH_STEP, spot, tp=2))


@pytest.mark.soak
@pytest.mark.parametrize("spot", BEFORE_A_MEETING, ids=name)
def test_just_before_it_hands_in_its_word(spot: Spot, ran: Callable[..., Ran]) -> None:
    """The same in the middle of the steps."""
    check(spot, ran(BEFORE_A_MEETING, spot, tp=2))


@pytest.mark.soak
@pytest.mark.parametrize("spot", OF_FOUR, ids=name)
def test_one_of_four(spot: Spot, ran: Callable[..., Ran]) -> None:
    """Two stages of two ranks on two nodes."""
    check(spot, ran(OF_FOUR, spot, tp=2, pp=2))


def check(spot: Spot, case: Ran) -> None:
    (_, killed), start = spot, case.start
    assert start[killed].status == -9
    start.assert_nobody_waits()
    for rank in start.ranks:
        if rank.rank != killed:
            rank.assert_gave_up(killed)
            assert rank.said["last"] - start[killed].said["killed"] < BOUND_S
    assert case.job.litter() == []
    case.again.assert_whole()
