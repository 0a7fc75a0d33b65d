# SPDX-License-Identifier: Apache-2.0
"""A rank that is stopped, as by a debugger or a frozen container, and wakes up later.

The others give it up by name within two silences; when it wakes it finds that out before it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.runtime.exit_status import EXIT_ABANDONED

if TYPE_CHECKING:
    from tests.faults.conftest import Ran

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

#: Within which the others end: two silences, a grace period, and what a busy machine adds.
BOUND_S = 2 * 1.5 + 0.5 + 4.0
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
MEETINGS = ("agree", "load", "survey0", "plan", "share", "ready", "certify")
#: What a woken rank may still say: that it has a heart, that a rank was lost, that it leaves.
LAST_WORDS = ("beat/", "lost", "bye/", "failed/")

Spot = tuple[str, int]


def at(points: Iterable[str], ranks: Iterable[int], **more: Any) -> dict[Spot, dict[str, Any]]:
    """Return a case for each point and rank: that rank is stopped there."""
    spots = [(point, rank) for point in points for rank in ranks]
    return {
        (point, rank): {"faults": [{"do": "stop", "on": [rank], "at": point}], **more}
        for point, rank in spots
    }


#: The begin of each step, the middle of tuning, and the engine's own forward, where the others
#: cannot come back from its collectives.
AT_EACH_STEP = at((*STEPS, "forward"), (0, 1)) | at(["tune:3"], [0])
BEFORE_A_MEETING = at((f"meet:{coordinator}" for coordinator in MEETINGS), (0, 1), two_nodes=True)
OF_FOUR = at((*STEPS, "forward"), range(4), two_nodes=True)


def name(spot: Spot) -> str:
    return f"{spot[0]}-{spot[1]}"


@pytest.mark.parametrize("spot", AT_EACH_STEP, ids=name)
def test_the_others_name_it_and_it_obeys(spot: Spot, ran: Callable[..., Ran]) -> None:
    """One of two ranks is stopped at the begin of each step, for longer than the limit."""
    check(spot, ran(AT_EACH_STEP, spot, tp=2))


@pytest.mark.soak
@pytest.mark.parametrize("spot", BEFORE_A_MEETING, ids=name)
def test_just_before_it_hands_in_its_word(spot: Spot, ran: Callable[..., Ran]) -> None:
    """The same in the middle of the steps, on two nodes."""
    check(spot, ran(BEFORE_A_MEETING, spot, tp=2))


@pytest.mark.soak
@pytest.mark.parametrize("spot", OF_FOUR, ids=name)
def test_one_of_four(spot: Spot, ran: Callable[..., Ran]) -> None:
    """Two stages of two ranks on two nodes: the others do not wait for it, nor for each other."""
    check(spot, ran(OF_FOUR, spot, tp=2, pp=2))


def check(spot: Spot, case: Ran) -> None:
    (point, stopped), start = spot, case.start
    start.assert_nobody_waits()
    for rank in start.ranks:
        if rank.rank != stopped:
            rank.assert_gave_up(stopped)
            assert rank.said["last"] - start[stopped].said["stopped"] < BOUND_S
    woken = start[stopped]
    assert "woken" in woken.said
    # Its own watch may end it in the forward that cannot complete before that fails.
    ended = point == "forward" and woken.status == EXIT_ABANDONED
    assert ended or woken.error is not None, "it went on by itself"
    # In the engine's forward it could not look; there it may say that its forward failed.
    may_say = (*LAST_WORDS, "survey0/") if point == "forward" else LAST_WORDS
    assert [key for key in woken.sent if not key.startswith(may_say)] == []
    assert not woken.held, "its tuner holds what no other rank holds"
    assert start.woken is not None
    changed = {path for path, mark in case.after.items() if start.woken.get(path) != mark}
    # What it had in hand comes to an end, and its own journal says so: that is a fact, and nobody
    # acts on it before the next start.
    assert {path for path in changed if "/journal/" not in path} == set()
    gone = {path for path in start.woken if path not in case.after}
    assert all(path.endswith(("tuning.json", ".mark")) for path in gone), "these are its own"
    assert case.job.litter() == []
    case.again.assert_whole()
