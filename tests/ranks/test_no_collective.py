# SPDX-License-Identifier: Apache-2.0
"""No collective is ever in flight while a tactic is being timed.

Every rank notes begin and end of both on the machine's monotonic clock, which all ranks of these
tests have in common; a control shows that FlashInfer's tuning inside a forward is found out. The
engine's own all-reduce, whose tactics are collectives, is passed through and tuned in step 3; it
alone is left out, by its runner's class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.engines.embedded import LaunchError

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess

#: Twice what a time in the receipt may be rounded by, seconds.
ROUNDED_S = 2e-5
PASSED_THROUGH = "AllReduceRunner"
SLOW = f"{Path(__file__).with_name('on_ranks.py')}:slow_on_rank_0"

#: The default group's timeout, how long a tactic takes, how many timeouts rank 0 tunes for then.
LONG = [
    pytest.param(3.0, 0.03, 2, id="3 s"),
    pytest.param(10.0, 0.31, 6, id="10 s", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
]


def tactics_of(seen: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [tactic for tactic in seen["tactics"] if tactic["runner"] != PASSED_THROUGH]


def overlaps(everybody: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every tactic and every collective, of any two ranks, that were under way at once."""
    ranks = list(everybody)
    return [
        f"rank {rank} in {name} while rank {tuner} timed {tactic['runner']}"
        for tuner, timing in enumerate(ranks)
        for tactic in tactics_of(timing)
        for rank, waiting in enumerate(ranks)
        for name, began, ended in waiting["collectives"]
        if began < tactic["ended"] and tactic["began"] < ended
    ]


@pytest.mark.parametrize("layout", [{"tp": 2, "pp": 2}, {"dp": 2, "ep": 2}], ids=["TP2xPP2", "EP2"])
def test_no_collective_while_a_tactic_is_timed(
    layout: dict[str, int], deploy: Callable[..., Deployment]
) -> None:
    """Over all ranks, on one clock; every tactic is timed in step 5, in the one context open."""
    start = deploy(**layout, timing="rank_noise").start("recording")
    assert sum(len(tactics_of(seen)) for seen in start.seen) > 100
    assert all(len(seen["collectives"]) > 3 for seen in start.seen)
    assert overlaps(start.seen) == []
    for rank, seen in enumerate(start.seen):
        step_5 = [(began, began + seconds) for _, began, seconds in start.reports[rank].timeline]
        for tactic in tactics_of(seen):
            assert tactic["contexts"] == 1
            assert not tactic["group"], "FlashInfer's process group is set"
            assert any(b <= tactic["began"] <= tactic["ended"] <= e for b, e in step_5)
        assert seen["group_at_the_end"], "the engine's group is not FlashInfer's again"


def test_ranks_left_alone_time_nothing_during_a_collective_either(
    deploy: Callable[..., Deployment],
) -> None:
    """Strategy per_rank tunes by replay too, after the forward and before the ranks meet."""
    job = deploy(tp=2, timing="rank_noise")
    start = job.start("recording", env={"WARMUP_PLUGIN_STRATEGY": "per_rank"})
    assert all(len(tactics_of(seen)) > 100 for seen in start.seen)
    assert overlaps(start.seen) == []
    assert not any(tactic["group"] for seen in start.seen for tactic in tactics_of(seen))
    for row in start.reports[0].ranks:
        own = start.reports[row.rank]
        spans = {name: (began, began + s) for name, began, s in row.steps}
        assert list(spans)[-3:] == ["tune", "share", "prepare"]
        tuned = [winner for winner in start.reports[0].winners if winner.rank == row.rank]
        assert len(tuned) == own.tasks["tuned"] > 10
        assert spans["tune"][0] < min(winner.began for winner in tuned)
        assert max(w.began + w.seconds for w in tuned) <= spans["tune"][1] + ROUNDED_S
        meetings = [wait.name for wait in row.waits]
        assert meetings == ["open", "agree", "load", "survey0", "plan", "ready"]


def test_tuning_inside_a_forward_is_found_out(deploy: Callable[..., Deployment]) -> None:
    """The control: without the package rank 1 sits in an all-reduce while rank 0 times."""
    job = deploy(tp=2, layers=2, timing=SLOW)
    ranks = job.run("recording_without_us", env={"TEST_SLEEP_S": "0.001"})
    assert any("rank 1 in all_reduce while rank 0" in text for text in overlaps(ranks))


@pytest.mark.parametrize(("timeout_s", "tactic_s", "times"), LONG)
def test_long_tuning_trips_no_group_timeout(
    timeout_s: float, tactic_s: float, times: int, deploy: Callable[..., Deployment]
) -> None:
    """Rank 0 tunes for a multiple of the default group's timeout; nobody notices."""
    options = {"timeout_s": 200.0}
    job = deploy(tp=2, layers=2, timing=SLOW, group_timeout_s=timeout_s, options=options)
    one_tunes = {"WARMUP_PLUGIN_STRATEGY": "leader"}
    cold = job.start("recording", env={"TEST_SLEEP_S": str(tactic_s), **one_tunes})
    assert cold.reports[0].seconds["tune"] > times * timeout_s
    assert overlaps(cold.seen) == []
    warm = job.start(env={"TEST_SLEEP_S": "0"})
    warm.assert_warm()
    assert warm.certificate == cold.certificate


def test_long_tuning_inside_a_forward_trips_it(deploy: Callable[..., Deployment]) -> None:
    """The control: the same tactics, the same timeout, without the package."""
    job = deploy(tp=2, layers=2, timing=SLOW, group_timeout_s=2.0, options={"grace_s": 0.5})
    with pytest.raises(LaunchError) as caught:
        job.run("recording_without_us", env={"TEST_SLEEP_S": "0.1"})
    assert caught.value.rank == 1
    assert "in all_reduce" in caught.value.failures[1]
    assert "Timed out" in caught.value.failures[1]
