# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's runners are right, and FlashInfer's real tuner chooses between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flashinfer
import pytest
import torch
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.engines.embedded import ops as ops_module
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.engines.embedded.host_clock import DeviceParameter, Timing, host_clock
from warmup_plugin.engines.embedded.ops import BUCKETS, MOE_GEMM1, MOE_GEMM2, Ops
from warmup_plugin.engines.embedded.runners import (
    BlockedGemmRunner,
    ExpertGemmRunner,
    MoeGemmRunner,
    SplitKGemmRunner,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERTS, HIDDEN, FFN = 3, 16, 24


@pytest.fixture(autouse=True)
def _empty_tuner() -> Iterator[None]:
    AutoTuner.get().clear_cache()
    yield
    AutoTuner.get().clear_cache()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def weight(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(random(*shape), requires_grad=False)


def call_every_op(ops: Ops, tokens: int = 100) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return each op's answer and the one it should have given."""
    x, w, bias = random(tokens, HIDDEN), weight(FFN, HIDDEN), weight(FFN)
    head = DeviceParameter(random(32, HIDDEN), requires_grad=False)
    w1, w2 = weight(EXPERTS, FFN, HIDDEN), weight(EXPERTS, HIDDEN, FFN)
    hidden = torch.nn.functional.silu(torch.matmul(x, w1.mT))
    return {
        "gemm": (ops.gemm(x, w), x @ w.T),
        "gemm+bias": (ops.gemm(x, w, bias), x @ w.T + bias),
        "lm_head": (ops.lm_head(x, head), x @ head.T),
        "expert_gemm": (ops.expert_gemm(x, w, 1), x @ w.T),
        "moe": (ops.moe(x, w1, w2), torch.matmul(hidden, w2.mT)),
    }


def tune(timing: Timing | None = None, tokens: int = 100) -> Ops:
    ops = Ops(timing)
    with host_clock(simulated=timing is not None), autotune(True):
        call_every_op(ops, tokens)
    return ops


def keys_of(path: Path) -> list[str]:
    AutoTuner.get().save_configs(str(path))
    return sorted(key for key in json.loads(path.read_text()) if key.startswith("("))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 16, 24), (37, 64, 32)], ids=str)
@pytest.mark.parametrize("kind", [BlockedGemmRunner, SplitKGemmRunner, ExpertGemmRunner])
def test_every_gemm_tactic_is_the_same_product(
    kind: type, shape: tuple[int, int, int], bias: bool  # noqa: FBT001
) -> None:  # fmt: skip
    m, n, k = shape
    runner = kind("op", None, 0) if kind is ExpertGemmRunner else kind("op")
    x, w, b = random(m, k), random(n, k), random(n)
    inputs = [x, w, b if bias else None]
    expected = x @ w.T + b if bias else x @ w.T
    tactics = [-1, *runner.get_valid_tactics(inputs, None)]
    assert len(tactics) > 2
    for tactic in tactics:
        out = runner(inputs, tactic=tactic)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        assert out.is_contiguous(), tactic
    with pytest.raises(ValueError, match=r"has no tactic 99"):
        runner(inputs, tactic=99)


def test_every_moe_tactic_is_the_same_product() -> None:
    runner = MoeGemmRunner("op")
    x, w1, w2 = inputs = [random(7, HIDDEN), random(EXPERTS, FFN, HIDDEN), random(EXPERTS, 16, FFN)]
    hidden = random(EXPERTS, 7, FFN)
    expected = {1: torch.matmul(x, w1.mT), 2: torch.matmul(hidden, w2.mT)}
    for gemm in (1, 2):
        runner.gemm_index = gemm
        for tactic in [-1, *runner.get_valid_tactics(inputs, None)]:
            out = runner(inputs, tactic=tactic, gemm_idx=gemm, hidden=hidden)
            torch.testing.assert_close(out, expected[gemm], rtol=1e-4, atol=1e-5)
            assert out.is_contiguous(), tactic


def test_the_two_products_of_a_moe_have_different_candidates() -> None:
    """A candidate of the other product is refused, so a mix-up cannot win."""
    runner = MoeGemmRunner("op")
    inputs = [random(7, HIDDEN), random(EXPERTS, FFN, HIDDEN), random(EXPERTS, HIDDEN, FFN)]
    first = runner.get_valid_tactics(inputs, None)
    before = hash(runner)
    runner.gemm_index = 2
    second = runner.get_valid_tactics(inputs, None)
    assert not set(first) & set(second)
    assert len(first) != len(second)
    assert hash(runner) != before, "FlashInfer's in-memory key must tell the two states apart"
    with pytest.raises(ValueError, match=r"has no tactic \(1, 0\)"):
        runner(inputs, tactic=(1, 0), gemm_idx=2)


@pytest.mark.parametrize("timing", [None, lambda _op, _runner, batch, t: batch + hash(t) % 7])
@pytest.mark.parametrize("tokens", [1, 100, 300])
def test_every_op_is_right_whatever_was_chosen(timing: Timing | None, tokens: int) -> None:
    """Before tuning, while tuning, and served."""
    ops = Ops(timing)
    with host_clock(simulated=timing is not None):
        answers = [call_every_op(ops, tokens)]
        with autotune(True):
            answers.append(call_every_op(ops, tokens))
        answers.append(call_every_op(ops, tokens))
    for answer in answers:
        for op, (given, expected) in answer.items():
            torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4, msg=op)
    assert not AutoTuner.get().stats.failed_profiling_count


def test_two_runner_classes_compete_in_one_call() -> None:
    def timing(_op: str, runner: str, batch: int, tactic: Any) -> float:
        favourite = ("SplitKGemmRunner", 2) if batch >= 16 else ("BlockedGemmRunner", 3)
        return 1.0 if (runner, tactic) == favourite else 2.0

    served = tune(timing).served()
    gemm = {key: value for key, value in served.items() if key.startswith("embedded::gemm ")}
    assert len(gemm) == 2 * len(BUCKETS)  # with and without bias
    for key, value in gemm.items():
        wide = int(key.rpartition("@")[2]) >= 16
        assert value == (("SplitKGemmRunner", 2) if wide else ("BlockedGemmRunner", 3)), key


def test_one_mutated_runner_is_tuned_for_both_products() -> None:
    served = tune(lambda _op, _runner, batch, tactic: batch + abs(tactic[-1] - 2)
                  if isinstance(tactic, tuple) else 9.0).served()  # fmt: skip
    for op, winner in ((MOE_GEMM1, (1, 2)), (MOE_GEMM2, (2, 2))):
        tactics = [tactic for key, (_, tactic) in served.items() if key.startswith(op)]
        assert tactics == [winner] * len(BUCKETS)


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 100, 255, 256, 257, 5000])
def test_bucket_rules_agree_with_their_generators(tokens: int) -> None:
    for config in (ops_module.TOKENS_CONFIG, ops_module.COLLECTIVE_CONFIG):
        (spec,) = config.dynamic_tensor_specs
        buckets = spec.gen_tuning_buckets
        bucket = spec.map_to_tuning_buckets(tokens)
        assert bucket in buckets
        assert bucket <= max(tokens, 1)
        assert all(b <= bucket or b > tokens for b in buckets)
        assert [spec.map_to_tuning_buckets(b) for b in buckets] == list(buckets)


def test_the_heads_hybrid_buckets_serve_batches_nobody_tuned(tmp_path: Path) -> None:
    """Tuned at 100, which is no bucket, it is stored and looked up at 128."""
    tune(tokens=100)
    profiles = [key for key in keys_of(tmp_path / "t.json") if "lm_head" in key]
    assert not any("((100, " in key for key in profiles)
    with count_calls(**tuning_functions()) as counts, autotune(True):
        Ops().lm_head(random(65, HIDDEN), DeviceParameter(random(32, HIDDEN), requires_grad=False))
    # 65 adds itself to the generated buckets, and is served from 128 like 100.
    assert counts["profile_single_kernel"] == 0


def test_keys_tell_apart_what_shapes_do_not(tmp_path: Path) -> None:
    """With and without bias; one rank's experts and another's, in one field and no other."""
    ops, x, w = Ops(lambda *_: 1.0), random(2, HIDDEN), weight(FFN, HIDDEN)
    with host_clock(simulated=True), autotune(True):
        ops.gemm(x, w)
        ops.gemm(x, w, weight(FFN))
        ops.expert_gemm(x, w, 0)
        ops.expert_gemm(x, w, 1)
    keys = keys_of(tmp_path / "t.json")
    assert len(keys) == 4 * len(BUCKETS)
    extras = BlockedGemmRunner("op").get_cache_key_extras
    assert extras([x, w, None]) == ("float32", False)
    assert extras([x.bfloat16(), w, weight(FFN)]) == ("bfloat16", True)
    runners = [ExpertGemmRunner("op", None, rank) for rank in (0, 1)]
    first, second = (runner.get_cache_key_extras([x, w, None]) for runner in runners)
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    assert differing == [ExpertGemmRunner.EP_RANK_INDEX]
    assert (first[differing[0]], second[differing[0]]) == (0, 1)


def test_a_saved_table_serves_the_same(tmp_path: Path) -> None:
    """Integers and compound tactics survive FlashInfer's own JSON."""
    ops = tune(lambda _op, _runner, batch, tactic: (batch * hash(tactic)) % 11)
    before = ops.served()
    AutoTuner.get().save_configs(str(tmp_path / "t.json"))
    AutoTuner.get().clear_cache()
    assert ops.served() != before
    assert AutoTuner.get().load_configs(str(tmp_path / "t.json"))
    assert ops.served() == before
    assert {type(tactic) for _, tactic in before.values()} == {int, tuple}


def test_served_asks_at_every_tuned_batch_and_never_while_tuning() -> None:
    ops = tune(lambda *_: 1.0)
    calls = 5 + 1  # a call of the moe op makes two
    hybrid = (1, 2, 4, 8, 16, 32, 64, 100)
    assert len(ops.served()) == (calls - 1) * len(BUCKETS) + len(hybrid)
    assert all(tactic != -1 for _, tactic in ops.served().values())
    with autotune(True), pytest.raises(RuntimeError, match="leave tuning mode first"):
        ops.served()


def test_counting_replaces_nothing() -> None:
    """Entries are counted in this thread and in threads started meanwhile, and only inside."""

    def helper() -> None:
        pass

    before = {name: vars(AutoTuner)[name] for name in vars(AutoTuner)}
    with count_calls(**tuning_functions(), helper=helper) as counts:
        tune(lambda *_: 1.0)
        helper()
        thread = threading.Thread(target=helper)
        thread.start()
        thread.join()
        assert {name: vars(AutoTuner)[name] for name in vars(AutoTuner)} == before
        with count_calls(helper=helper) as inner:
            helper()
    helper()
    assert inner == {"helper": 1}
    assert counts["helper"] == 3
    assert counts["prepare_input_tensors"] == 5 * len(BUCKETS) + 8
    # gemm twice: 4 + 4 tactics; head and experts' scores 4; the moe's products 3 and 4.
    assert counts["profile_single_kernel"] == (2 * 8 + 4 + 3 + 4) * len(BUCKETS) + 4 * 8
    assert sys.getprofile() is None


def on_a_release() -> None:
    """Tune, check and write release and number of entries; run in a child process."""
    ops = Ops()
    with host_clock():
        for _ in range(2):
            with autotune(True):
                answers = call_every_op(ops)
    for op, (given, expected) in answers.items():
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4, msg=op)
    assert all(tactic != -1 for _, tactic in ops.served().values())
    sys.stdout.write(f"{flashinfer.__version__} {len(ops.served())}")


def run_on(release: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env={**os.environ, "PYTHONPATH": f"{release}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
             "TQDM_DISABLE": "1"},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_the_ops_run_on_the_release_that_falls_back(fallback_release: Path) -> None:
    assert run_on(fallback_release).split() == [fallback_release.name, "53"]


def test_the_ops_run_on_every_release(started_release: Path) -> None:
    assert run_on(started_release).split() == [started_release.name, "53"]


if __name__ == "__main__":
    on_a_release()
