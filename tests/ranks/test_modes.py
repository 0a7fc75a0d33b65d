# SPDX-License-Identifier: Apache-2.0
"""Modes and layers on real ranks: what is refused, what is read from where, what is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.cache.gains import over_default
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, RankResult, launch

pytestmark = pytest.mark.multiprocess

CONFIG = EngineConfig(tp=2)
Launch = Callable[..., list[RankResult]]
COMPLETE = {"WARMUP_PLUGIN_MODE": "require-complete"}


def files(root: Path) -> dict[str, bytes]:
    """Every file below a root, receipts left out."""
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "reports")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Start the engine; what its collective op keeps for itself is in one place for all starts."""
    own = str(tmp_path_factory.mktemp("all-reduce"))

    def launched(config: EngineConfig = CONFIG, **options: Any) -> list[RankResult]:
        return launch(replace(config, all_reduce_dir=own), **options)

    return launched


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, start: Launch) -> Path:
    """A root with the complete table of `CONFIG`."""
    root = tmp_path_factory.mktemp("tuned")
    start(root=root)
    return root


def test_a_start_without_a_table_is_refused_on_every_rank(start: Launch, cache_root: Path) -> None:
    """Naming what is missing, before anything is timed; nothing is written."""
    with pytest.raises(LaunchError) as refused:
        start(root=cache_root, env=COMPLETE)
    assert set(refused.value.failures) == {0, 1}
    for failure in refused.value.failures.values():
        said = failure.strip().splitlines()[-1]
        assert "SessionError: mode require-complete: 62 of 62 tasks are in no table" in said
        assert re.search(r"embedded::expert_gemm [\dx ]+;.*; and 52 more", said)
    assert files(cache_root) == {}


def test_a_start_that_lacks_some_is_refused_for_those(
    start: Launch, tuned: Path, tmp_path: Path
) -> None:
    """Half a table: the other half is named; the file stays as it is."""
    root = tmp_path / "root"
    shutil.copytree(tuned, root)
    table = only(root, "rank_tp0_pp0_dp0.json")
    document = json.loads(table.read_bytes())
    keys = [key for key in document if "lm_head" in key]
    table.write_text(json.dumps({k: v for k, v in document.items() if k not in keys}))
    before = files(root)
    with pytest.raises(LaunchError, match=f"{len(keys)} of 62 tasks are in no table") as refused:
        start(root=root, env=COMPLETE)
    assert "lm_head" in str(refused.value)
    assert "moe_gemm1" not in refused.value.failures[0].splitlines()[-1]
    assert files(root) == before


def test_ranks_that_cannot_share_are_refused_too(start: Launch, cache_root: Path) -> None:
    """Such a start would time at every start."""
    with pytest.raises(LaunchError, match="mode require-complete: strategy per_rank"):
        start(root=cache_root, env={**COMPLETE, "WARMUP_PLUGIN_STRATEGY": "per_rank"})


def test_a_complete_table_is_served(start: Launch, tuned: Path) -> None:
    """As in mode on, but that nothing is written, receipts included."""
    before = set(tuned.rglob("*"))
    ranks = start(root=tuned, env=COMPLETE)
    assert [rank.counts["profile_single_kernel"] for rank in ranks] == [0, 0]
    assert {rank.report.agreement for rank in ranks} == {"certified"}
    assert set(tuned.rglob("*")) == before


def test_a_layer_answers_and_is_never_written(start: Launch, tuned: Path, tmp_path: Path) -> None:
    """Warm from a layer alone; the receipt says which file was read."""
    layer = tmp_path / "layer"
    shutil.copytree(tuned, layer)
    before = files(layer)
    env = {"WARMUP_PLUGIN_LAYERS": f"{tmp_path / 'not there'}:{layer}"}
    ranks = start(root=tmp_path / "own", env=env)
    assert [rank.counts["profile_single_kernel"] for rank in ranks] == [0, 0]
    assert files(layer) == before
    assert files(tmp_path / "own") == {}
    read = ranks[0].report.read
    assert [row.path for row in read] == [str(only(layer, "rank_tp0_pp0_dp0.json"))]


def test_what_a_layer_lacks_is_tuned_into_the_writable_root(
    start: Launch, tuned: Path, tmp_path: Path
) -> None:
    """Once: the next start is warm from both. A layer's broken file is told, and left there."""
    layer, own = tmp_path / "layer", tmp_path / "own"
    shutil.copytree(tuned, layer)
    only(layer, "rank_tp0_pp0_dp0.json").write_text("{")
    before = files(layer)
    env = {"WARMUP_PLUGIN_LAYERS": str(layer)}
    cold = start(root=own, env=env)
    warm = start(root=own, env=env)
    assert cold[0].counts["profile_single_kernel"] > 0
    assert any("Input data was truncated" in text for text in cold[0].report.warnings)
    assert [rank.counts["profile_single_kernel"] for rank in warm] == [0, 0]
    assert warm[0].report.certificate == cold[0].report.certificate
    assert files(layer) == before
    assert only(own, "rank_tp0_pp0_dp0.json").stat().st_size > 1000


def test_a_receipt_tells_of_all_ranks(start: Launch, tmp_path: Path) -> None:
    """On rank 0: rows for each rank, who waited for whom, every winner with its times."""
    config = EngineConfig(tp=2, pp=2)
    ranks = start(config, root=tmp_path, env={"WARMUP_PLUGIN_STRATEGY": "leader"})
    report = ranks[0].report
    assert [row.rank for row in report.ranks] == [0, 1, 2, 3]
    assert len(report.winners) == 62
    assert {row.rank for row in report.winners} == {0, 2}
    assert all(row.default_ms >= row.ms > 0 for row in report.winners)
    for row in report.ranks:
        steps = [step.name for step in row.steps]
        assert steps[:4] == ["open", "read", "agree", "survey"]
        tuned = sum(step.seconds for step in row.steps if step.name == "tune")
        assert (tuned > 0) == (row.rank in (0, 2))
        assert row.ops == ranks[row.rank].report.ops
    shares = [row for row in report.waited if row.at == "share"]
    assert shares
    assert shares[0].for_whom in (0, 2)
    assert {1, 3} <= set(shares[0].ranks)
    assert report.process.pid > 0
    assert report.factors["tp"] == 2
    assert all(not rank.report.ranks for rank in ranks[1:])


def test_adopted_tasks_name_their_lender(start: Launch, tmp_path: Path) -> None:
    """A sibling's table answers where everything but the layout is equal."""
    start(EngineConfig(tp=2, pp=2), root=tmp_path)
    lender = str(only(tmp_path, "rank_tp0_pp0_dp0.json"))
    report = start(EngineConfig(tp=2), root=tmp_path)[0].report
    assert report.adopted_from == {lender: report.tasks["adopted"]}


def test_a_probe_and_an_exporter_find_their_files(start: Launch, tmp_path: Path) -> None:
    """Progress ends as ready; figures are those of the receipt."""
    env = {
        "WARMUP_PLUGIN_PROGRESS_FILE": str(tmp_path / "progress.json"),
        "WARMUP_PLUGIN_METRICS_FILE": str(tmp_path / "warmup.prom"),
    }
    ranks = start(root=tmp_path / "root", env=env)
    progress = json.loads((tmp_path / "progress.json").read_bytes())
    assert (progress["state"], progress["done"], progress["total"]) == ("ready", 62, 62)
    figures = (tmp_path / "warmup.prom").read_text()
    report = ranks[0].report
    own = over_default(row for row in report.winners if row.rank == 0)
    assert own is not None
    assert own >= 1.0
    assert progress["over_default"] == pytest.approx(own, rel=1e-2)
    apart = report.tactics_timed - report.passed_through_tactics
    assert re.search(rf"^warmup_plugin_tactics_timed{{.*}} {apart}$", figures, re.MULTILINE)
    assert re.search(r'^warmup_plugin_state{.*"certified"} 1$', figures, re.MULTILINE)
    with pytest.raises(LaunchError):
        start(root=tmp_path / "another", env={**env, **COMPLETE})
    failed = json.loads((tmp_path / "progress.json").read_bytes())
    assert (failed["state"], "require-complete" in failed["reason"]) == ("failed", True)
    figures = (tmp_path / "warmup.prom").read_text()
    assert re.search(r'^warmup_plugin_state{.*"failed"} 1$', figures, re.MULTILINE)


def test_a_node_without_a_local_rank_0_is_told_of(tmp_path: Path) -> None:
    """Its first rank writes table, progress and figures; the numbers are the runner's own."""
    env = {
        "WARMUP_PLUGIN_PROGRESS_FILE": str(tmp_path / "progress.json"),
        "WARMUP_PLUGIN_METRICS_FILE": str(tmp_path / "warmup.prom"),
    }
    script = f"{Path(__file__).with_name('on_ranks.py')}:far_from_0"
    launch(CONFIG, root=tmp_path / "root", env=env, script=script)
    progress = json.loads((tmp_path / "progress.json").read_bytes())
    assert (progress["state"], progress["rank"]) == ("ready", 0)
    assert 'state="certified"} 1\n' in (tmp_path / "warmup.prom").read_text()
    assert only(tmp_path / "root", "rank_tp0_pp0_dp0.json").is_file()


def test_ops_left_to_themselves_make_no_warm_start_cold(tmp_path: Path) -> None:
    """What FlashInfer times of them is counted apart: in receipt, line and each rank's row."""
    two = EngineConfig(tp=2)
    assert not launch(two, root=tmp_path)[0].report.is_warm
    shutil.rmtree(tmp_path / "all_reduce")  # FlashInfer's own file of them, as in another root
    for result in launch(two, root=tmp_path):
        timed = result.counts["profile_single_kernel"]
        report = result.report
        assert report.tactics_timed == report.passed_through_tactics == timed > 0
        made = result.counts["prepare_input_tensors"]
        assert report.inputs_synthesised == report.passed_through_inputs == made > 0
        assert report.is_warm
        assert f" 0 tactics timed, {timed} more by ops left to themselves in" in report.line()
        assert all(row.passed_through_tactics == timed for row in report.ranks)
    assert [result.report.tactics_timed for result in launch(two, root=tmp_path)] == [0, 0]


def test_flashinfers_own_bars_are_silent(
    start: Launch, cache_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One bar for each call, were they not; the ranks write to this process's standard error."""
    ranks = start(root=cache_root)
    assert ranks[0].counts["profile_single_kernel"] > 100
    err = capfd.readouterr().err
    assert "[AutoTuner]: Tuning" not in err, err[-500:]
