# SPDX-License-Identifier: Apache-2.0
"""The host clock replaces what it says and no more, puts it back, and keeps time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.engines.embedded.host_clock import DeviceParameter, HostEvent, advance
from warmup_plugin.engines.embedded.ops import LM_HEAD, LM_HEAD_CONFIG, Ops
from warmup_plugin.engines.embedded.runners import BlockedGemmRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TUNER_MODULE: Any = sys.modules[AutoTuner.__module__]


@pytest.fixture(autouse=True)
def _empty_tuner() -> Iterator[None]:
    AutoTuner.get().clear_cache()
    yield
    AutoTuner.get().clear_cache()


def names() -> dict[str, object]:
    return {
        **{f"cuda.{name}": value for name, value in vars(torch.cuda).items()},
        **{f"module.{name}": value for name, value in vars(TUNER_MODULE).items()},
        **{f"tuner.{name}": value for name, value in vars(AutoTuner).items()},
    }


def changed(before: dict[str, object]) -> set[str]:
    now = names()
    return {name for name in {*now, *before} if now.get(name) is not before.get(name)}


def test_it_replaces_the_listed_names_and_no_others() -> None:
    """FlashInfer's profiler, lookup, load and save stay FlashInfer's."""
    before = names()
    with host_clock.host_clock():
        listed = {f"cuda.{name}" for name in host_clock.STAND_INS}
        built = {f"module.{name}" for name in host_clock.BUILT if hasattr(TUNER_MODULE, name)}
        assert changed(before) == listed | built
        assert "module.delay_kernel" in built


@pytest.mark.parametrize("simulated", [False, True])
def test_it_restores_every_name(simulated: bool) -> None:  # noqa: FBT001
    before = names()
    with pytest.raises(ZeroDivisionError), host_clock.host_clock(simulated=simulated):
        _ = 1 // 0
    assert changed(before) == set()


def test_clocks_nest() -> None:
    """An inner simulated clock ends without ending the outer one."""
    before = names()
    with host_clock.host_clock():
        with host_clock.host_clock(simulated=True):
            assert elapsed_over(rest) == 0.0
        assert elapsed_over(rest) >= 2.0
    assert changed(before) == set()


def elapsed_over(*bodies: Callable[[], None]) -> float:
    start, end = HostEvent(enable_timing=True), HostEvent(enable_timing=True)
    start.record()
    for body in bodies:
        body()
    end.record()
    return start.elapsed_time(end)


def rest() -> None:
    time.sleep(0.002)


def test_simulated_time_is_what_was_advanced() -> None:
    with host_clock.host_clock(simulated=True):
        assert elapsed_over(lambda: advance(1.5), rest, lambda: advance(2.0)) == 3.5


def test_host_time_and_device_time_add_up() -> None:
    with host_clock.host_clock():
        assert 102.0 <= elapsed_over(lambda: advance(100.0), rest) < 200.0


def test_a_replay_is_charged_what_its_capture_took() -> None:
    with host_clock.host_clock(simulated=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert torch.cuda.is_current_stream_capturing()
            advance(2.0)
        assert not torch.cuda.is_current_stream_capturing()
        assert elapsed_over(graph.replay, graph.replay) == 4.0


def test_it_does_not_pose_as_a_device() -> None:
    """A table's environment stamp is the same with and without stand-ins."""
    stamp = TUNER_MODULE._collect_metadata()
    with host_clock.host_clock():
        assert TUNER_MODULE._collect_metadata() == stamp


def test_flashinfer_measures_what_the_timing_says() -> None:
    """FlashInfer's own profiler, over the simulated clock: the mean of one call, exactly."""

    def timing(_op: str, _runner: str, batch: int, tactic: Any) -> float:
        return batch / 8 + int(tactic)

    inputs = [torch.ones(4, 8), torch.ones(8, 8), None]
    with host_clock.host_clock(simulated=True):
        for tactic in (0, 1, 2):
            runner = BlockedGemmRunner("op", timing)
            config = LM_HEAD_CONFIG.__class__()
            measured = AutoTuner.get()._profile_single_kernel(runner, inputs, tactic, config)
            assert measured == 0.5 + tactic


def test_cold_l2_profiling_runs_on_a_weight_that_counts_as_a_cuda_tensor(tmp_path: Path) -> None:
    """Entries of the head carry FlashInfer's cold-L2 policy and are measured, not skipped."""
    weight = DeviceParameter(torch.randn(32, 16), requires_grad=False)
    with host_clock.host_clock(), torch.inference_mode():
        with autotune(True):
            logits = Ops().lm_head(torch.ones(3, 16), weight)
        AutoTuner.get().save_configs(str(tmp_path / "table.json"))
    assert type(logits) is torch.Tensor
    text = (tmp_path / "table.json").read_text()
    assert text.count(f"('{LM_HEAD}', ") == 3  # buckets 1, 2 and 3, which 4 serves
    assert text.count('"cold"') == 3
    assert not AutoTuner.get().stats.failed_profiling_count.get(LM_HEAD)


def test_timings_are_named_or_referred_to() -> None:
    assert host_clock.timing("host", 0) is None
    noise = host_clock.timing("rank_noise", 2)
    assert noise is not None
    tactics = [0, 1, 2, 3, (1, 2), -1]
    assert [t for t in tactics if noise("op", "R", 8, t) == 1.0] == [2, (1, 2)]
    same = [host_clock.timing("deterministic", rank) for rank in (0, 1)]
    assert same[0] is not None
    assert same[1] is not None
    assert same[0]("op", "R", 8, 1) == same[1]("op", "R", 8, 1) != same[0]("op", "R", 16, 1)
    with pytest.raises(ValueError, match="timing='fast': must be one of host, deterministic, rank"):
        host_clock.timing("fast", 0)
