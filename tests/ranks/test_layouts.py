# SPDX-License-Identifier: Apache-2.0
"""Tune once, start warm: every layout of the engine, cold and then warm in new processes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess

LAYOUTS: dict[str, dict[str, int]] = {
    "TP2": {"tp": 2},
    "PP2": {"pp": 2},
    "DP2": {"dp": 2},
    "EP2 over DP": {"dp": 2, "ep": 2},
    "EP2 over TP": {"tp": 2, "ep": 2},
    "DP2xEP2 of TP2": {"tp": 2, "dp": 2, "ep": 2},
    "EP4 over TP2xDP2": {"tp": 2, "dp": 2, "ep": 4},
    "TP2xPP2": {"tp": 2, "pp": 2},
    "TP4": {"tp": 4},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tuned_once_then_warm_on_every_rank(
    layout: dict[str, int], deploy: Callable[..., Deployment]
) -> None:
    """Ranks whose timings disagree serve one table, and serve it again without timing anything."""
    job = deploy(**layout, timing="rank_noise")
    cold = job.start()
    assert cold.count("from_cache") == [0] * len(cold.ranks)
    assert sum(cold.timed) > 100
    # Where no tactic is fast on the rank that tunes, the default serves.
    chosen = [tactic for served in cold.served for _, tactic in served.values() if tactic != -1]
    assert len(chosen) > sum(map(len, cold.served)) / 2
    assert cold.served[0].keys() & cold.served[-1].keys()
    assert not cold.disputed
    assert cold.reports[0].published == (str(job.table),)
    before = job.marks()

    warm = job.start()
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
    assert warm.count("seen") == cold.count("seen")
    assert {report.published for report in warm.reports} == {()}
    assert job.marks() == before


def test_warm_with_the_time_that_really_passes(deploy: Callable[..., Deployment]) -> None:
    """The same on the host's own clock, where no two measurements are equal."""
    job = deploy(tp=2, pp=2)
    cold, warm = job.start(), job.start()
    assert sum(cold.timed) > 100
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
    assert not cold.disputed


@pytest.mark.parametrize("strategy", ["leader", "sharded"])
def test_work_is_done_once_in_the_job(strategy: str, deploy: Callable[..., Deployment]) -> None:
    """A task is tuned by one rank.

    Under `leader` stage 1's by its first rank, everything else by rank 0; else by any that has it.
    """
    start = deploy(tp=2, pp=2, timing="rank_noise").start(env={"WARMUP_PLUGIN_STRATEGY": strategy})
    tuned = start.count("tuned")
    if strategy == "leader":
        assert [rank for rank, count in enumerate(tuned) if count] == [0, 2]
    else:
        assert all(tuned)
    served = {call for rank in start.served for call in rank}
    # Every task is served as one or more (op, weights, batch); none twice as a task.
    assert sum(tuned) <= len(served)
    received = start.count("received")
    assert [t + r for t, r in zip(tuned, received, strict=True)] == start.count("seen")


def test_ranks_left_alone_disagree(deploy: Callable[..., Deployment]) -> None:
    """The control: with strategy per_rank the same timings give every rank its own winners."""
    job = deploy(tp=2, timing="rank_noise")
    start = job.start(env={"WARMUP_PLUGIN_STRATEGY": "per_rank"})
    assert {report.agreement for report in start.reports} == {"none"}
    assert start.disputed == start.served[0].keys()
    assert min(start.timed) > 100
    assert job.files() == []


def test_the_path_is_the_mission_s(deploy: Callable[..., Deployment]) -> None:
    """CACHE_ROOT/flashinfer_autotune/<version>/<arch>/<sha256>/rank_tp0_pp0_dp0.json, exactly."""
    job = deploy(tp=2, timing="rank_noise")
    start = job.start()
    (identity,) = {report.identity for report in start.reports}
    version = importlib.metadata.version("flashinfer-python")
    place = f"flashinfer_autotune/{version}/cpu/{identity}/rank_tp0_pp0_dp0.json"
    assert job.table == job.roots[0] / place
    assert start.reports[0].path == str(job.table)
    assert job.table.stat().st_size > 1000
    names = {name.split("/", 4)[4] for name in job.files()}
    reports = {name for name in names if name.startswith("reports/")}
    assert names - reports == {
        "identity.json",
        "rank_tp0_pp0_dp0.json",
        "rank_tp0_pp0_dp0.manifest.json",
    }
    assert len(reports) == 1


def test_other_releases_start_warm(
    started_release: Path, starts_under: Callable[..., tuple[list[Any], list[str]]]
) -> None:
    """Cold, then warm, under every other FlashInfer whose ranks can share."""
    (cold, warm), files = starts_under(started_release, "noise", "noise")
    assert sum(rank["counts"]["profile_single_kernel"] for rank in cold) > 100
    for before, rank in zip(cold, warm, strict=True):
        assert rank["report"]["flashinfer_version"] == started_release.name
        assert rank["report"]["agreement"] == "certified"
        assert rank["report"]["certificate"] == before["report"]["certificate"]
        assert rank["served"] == before["served"]
        tasks = rank["report"]["tasks"]
        assert tasks["from_cache"] == tasks["seen"] > 50
        assert set(rank["counts"].values()) == {0}
    tables = [name for name in files if name.endswith("rank_tp0_pp0_dp0.json")]
    assert len(tables) == 1
    assert tables[0].startswith(f"flashinfer_autotune/{started_release.name}/cpu/")
