# SPDX-License-Identifier: Apache-2.0
"""A forward that fails on one rank, and whatever else of a step fails on one rank only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Ran

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

SILENCE_S, GRACE_S, SLACK_S = 1.5, 0.5, 4.0
ABANDONED = 79

Case = dict[str, Any]


def forward(rank: int, error: str = "ZeroDivisionError", *, after: bool = False) -> Case:
    return {"faults": [{"do": "fail_forward", "on": [rank], "error": error, "after": after}]}


#: The others are in a collective with it, and cannot come back.
STUCK: dict[str, Case] = {
    "rank 0": forward(0),
    "rank 1": forward(1),
    "rank 1 exits": forward(1, "SystemExit"),
    "rank 0 is interrupted": forward(0, "KeyboardInterrupt"),
}
#: The others have come back from theirs.
BACK: dict[str, Case] = {
    "rank 0": forward(0, after=True),
    "rank 1": forward(1, after=True),
}


def failed(case: Case) -> tuple[int, str]:
    (fault,) = case["faults"]
    return fault["on"][0], fault["error"]


@pytest.mark.parametrize("name", STUCK)
def test_ranks_stuck_in_its_collective_end_their_process(
    name: str, ran: Callable[..., Ran]
) -> None:
    """It raises its own error; the other logs rank and error and ends within the grace period."""
    case = ran(STUCK, name, tp=2, group_timeout_s=60.0)
    rank, error = failed(STUCK[name])
    other = case.start[1 - rank]
    assert other.status == ABANDONED, case.start.told()
    ends = [line for line in other.logged if "this process ends (status 79)" in line]
    assert len(ends) == 1
    assert f"rank {rank}" in ends[0]
    assert error in ends[0]
    assert other.said["last"] - case.start[rank].said["failed"] < GRACE_S + SLACK_S
    assert case.start[rank].raised == error
    assert case.start[rank].said["last"] - case.start[rank].said["failed"] < (
        GRACE_S + 2 * SILENCE_S + SLACK_S
    )
    case.again.assert_whole()


@pytest.mark.parametrize("name", BACK)
def test_ranks_back_from_theirs_raise_what_names_it(name: str, ran: Callable[..., Ran]) -> None:
    """It raises its own error, the other a ForwardError with rank and error; nobody ends."""
    case = ran(BACK, name, tp=2)
    rank, error = failed(BACK[name])
    assert case.start[rank].raised == error
    assert case.start[1 - rank].error == (
        "ForwardError",
        f"rank {rank}: the forward failed: {error}: injected",
        None,
    )
    assert [rank.held for rank in case.start.ranks] == [[], []]
    case.again.assert_whole()


WAITING = {"rank 1": forward(1) | {"env": {"WARMUP_PLUGIN_FORWARD_FAILURE": "wait"}}}
TIMEOUT_S = 5.0


def test_ranks_that_shall_wait_do(ran: Callable[..., Ran]) -> None:
    """With the setting, the engine's own collective ends the wait, not this package."""
    case = ran(WAITING, "rank 1", tp=2, group_timeout_s=TIMEOUT_S)
    waiting = case.start[0]
    assert waiting.raised == "RuntimeError", "gloo's time-out"
    assert waiting.said["last"] - case.start[1].said["failed"] > TIMEOUT_S - 1.0
    assert not any("this process ends" in line for line in waiting.logged)
    assert case.start[1].raised == "ZeroDivisionError"


FOUR = {f"rank {rank}": forward(rank) for rank in range(4)}


@pytest.mark.parametrize("name", FOUR)
def test_all_of_four_end_and_name_it(name: str, ran: Callable[..., Ran]) -> None:
    """Two stages of two: whether a rank is stuck, back, or in the next meeting, it names it."""
    case = ran(FOUR, name, tp=2, pp=2)
    rank, error = failed(FOUR[name])
    case.start.assert_nobody_waits()
    for other in case.start.ranks:
        if other.rank == rank:
            assert other.raised == error
        elif other.status is not None:
            assert other.status == ABANDONED
            assert any(f"rank {rank}" in line and error in line for line in other.logged)
        else:
            assert other.error is not None
            assert f"rank {rank}" in f"{other.error[1]} {other.cause}", case.start.told()
        assert other.said["last"] - case.start[rank].said["failed"] < (
            GRACE_S + 2 * SILENCE_S + SLACK_S
        )
    case.again.assert_whole()


# -- what fails in a step --------------------------------------------------------------------------

PARTS = ("reading", "loading", "tuning", "sharing", "installing", "preparing", "publishing",
         "reporting", "asking")  # fmt: skip
FAILING: dict[tuple[str, int], Case] = {
    (part, rank): {"faults": [{"do": "fail", "on": [rank], "part": part, "error": error}]}
    for part, error in zip(PARTS, 3 * ("RuntimeError", "MemoryError", "OSError"), strict=True)
    for rank in (0, 1)
}
#: What makes all ranks raise: there is no table to go on without, or nobody to decide.
ENDING = {("reading", 0), ("loading", 0), ("loading", 1), ("sharing", 0)}


@pytest.mark.parametrize("case", FAILING, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_failing_part_is_the_same_for_all(case: tuple[str, int], ran: Callable[..., Ran]) -> None:
    """All ranks go on alike, or all raise and name the rank and the error."""
    found = ran(FAILING, case, tp=2)
    _, rank = case
    start = found.start
    start.assert_nobody_waits()
    if case in ENDING:
        assert [each.report for each in start.ranks] == [None, None]
        for each in start.ranks:
            told = " ".join([*each.logged, each.outcome(), each.cause])
            assert f"rank {rank}" in told or each.rank == rank
            assert "injected" in told or "left" in told
    else:
        assert len({report.agreement for report in start.reports}) == 1, start.told()
        assert not start.disputed()
        if "failed" in start[rank].said:
            assert "injected" in start.warnings or "goes on" in start.warnings
    assert list(start[0].held) == list(start[1].held)
    found.again.assert_whole()
