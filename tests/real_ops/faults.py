# SPDX-License-Identifier: Apache-2.0
"""What `test_faults.py` runs in processes of their own: calls that the plugin once got wrong.

Owns the calls and what is noted of them; what is right is said by the tests. Most compare with
FlashInfer alone in the same process.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

from flashinfer import autotune
from flashinfer.autotuner import AutoTuner

from tests.logs import logged
from tests.real_ops.cases import gemms, moes, others
from tests.real_ops.gpu import tensors
from tests.real_ops.inside import alone, entries, in_child, ours, served, tasks
from warmup_plugin import serving_fallbacks
from warmup_plugin.observability.report import WarmupReport

STEPS: dict[str, Callable[[], Any]] = {
    "mm_fp4 cute-dsl": gemms.fp4("cute-dsl"),
    "mm_bf16_fp4 cute-dsl": others.bf16_fp4("cute-dsl"),
    "mm_mxfp8 low latency": gemms.mxfp8("cutedsl_low_latency"),
    "mm_mxfp8 cute-dsl": gemms.mxfp8("cute-dsl"),
    "mm_mxfp8 cutlass": gemms.mxfp8("cutlass"),
    "mm_fp4 auto": gemms.fp4("auto"),
    "mm_fp4 trtllm": gemms.fp4("trtllm"),
    "mm_bf16 cute-dsl": gemms.bf16("cute-dsl"),
    "mm_bf16 auto": gemms.bf16("auto"),
    "bmm_fp8 cutlass": gemms.bmm_fp8("cutlass"),
    "mla auto": others.mla("auto"),
    "mxint4 moe": moes.trtllm("trtllm_mxint4_block_scale_moe"),
    "nvfp4 cutlass moe": moes.cutlass("nvfp4"),
    "nvfp4 cutlass moe, 8 experts of 4096 x 14336": moes.cutlass(
        "nvfp4", hidden=4096, widths=(14336,)
    ),
    "nvfp4 trtllm moe": moes.trtllm("trtllm_fp4_block_scale_moe"),
}


def told(report: WarmupReport) -> dict[str, Any]:
    names = ("agreement", "tasks", "tactics_timed", "inputs_synthesised", "passed_through",
             "warnings", "unshared", "skipped_ops")  # fmt: skip
    return {name: getattr(report, name) for name in names}


def starts(ops: list[str], sizes: list[int], margin: float = 0.0, again: int = 1) -> dict[str, Any]:
    """Call ops at batches: FlashInfer alone, then starts of ours on one root, each in a process."""
    steps = [STEPS[op]() for op in ops]

    def forward() -> None:
        for size in sizes:
            for step in steps:
                step(size)

    def seen() -> dict[str, Any]:
        return {"entries": entries(), "served": [served(step, tuple(sizes)) for step in steps]}

    def tuned_alone() -> dict[str, Any]:
        alone(forward)
        return seen()

    def started() -> dict[str, Any]:
        with logged(logging.WARNING) as said:
            report = ours(forward, root, margin)
        return {"report": told(report), "logged": said, **seen()}

    with tempfile.TemporaryDirectory() as root:
        return {
            "alone": in_child(tuned_alone),
            "starts": [in_child(started) for _ in range(1 + again)],
            "tasks": tasks(root),
        }


def compile_pool(margin: float) -> dict[str, Any]:
    """Tune mm_fp4 with FlashInfer's pool of compiling processes; its own work is left out."""
    import os

    from flashinfer.gemm import gemm_base, gemm_mm_fp4_cute_dsl
    from flashinfer.jit import cute_dsl_core

    said: list[str] = []
    pools: list[int] = []
    os.environ["FLASHINFER_MM_FP4_CUTE_DSL_COMPILE_WORKERS"] = "4"
    base: Any = gemm_base
    base.logger.warning = lambda text, *_args: said.append(str(text))
    module: Any = gemm_mm_fp4_cute_dsl
    module._run_mm_fp4_precompile_pool = lambda payloads: pools.append(len(payloads))
    core: Any = cute_dsl_core
    core.cute_dsl_cache_disabled = lambda: False
    step = STEPS["mm_fp4 cute-dsl"]()
    with tempfile.TemporaryDirectory() as root:
        report = ours(lambda: step(100), root, margin)
    failures = [text for text in said if "precompilation failed" in text]
    return {"pools": len(pools), "failures": failures, "timed": report.tactics_timed}


def nested_skip() -> dict[str, Any]:
    """Tune one layer, and pin another with a skip list of a nested context, as SGLang 0.5.23."""
    step = STEPS["mm_mxfp8 cutlass"]()

    def forward() -> None:
        step(512)
        with autotune(False, skip_ops={"mxfp8_gemm"}):
            step(512)

    alone(forward)
    found: dict[str, Any] = {"alone": entries()}
    with tempfile.TemporaryDirectory() as root:
        found["report"] = told(ours(forward, root))
    return {**found, "entries": entries()}


def memory_held(op: str) -> dict[str, int]:
    """Return the bytes on the GPU before the session, and after the forward that was recorded."""
    step = STEPS[op]()
    step(64)
    found = {"before": tensors.bytes_held()}

    def forward() -> None:
        step(64)
        found["recorded"] = tensors.bytes_held()

    with tempfile.TemporaryDirectory() as root:
        ours(forward, root)
    return found


def no_memory_while_recording(limit: int) -> dict[str, Any]:
    """Let every allocation on the GPU above ``limit`` bytes fail while the forward runs."""
    step = STEPS["nvfp4 cutlass moe"]()

    def forward() -> None:
        with tensors.no_memory_above(limit):
            step(64)

    alone(lambda: step(64))
    found: dict[str, Any] = {"alone": entries()}
    with tempfile.TemporaryDirectory() as root:
        found["report"] = told(ours(forward, root))
    return {**found, "entries": entries()}


def decided_defaults(margin: float) -> dict[str, Any]:
    """Tune MLA decode, whose default often wins, and serve; what is counted as fallen back."""
    step = STEPS["mla auto"]()
    tuner = AutoTuner.get()

    def serve() -> int:
        for size in (1, 7, 100, 256):
            step(size)
        return len(tuner._logged_cache_miss_oor)

    alone(lambda: step(256))
    found: dict[str, Any] = {"alone": entries(), "alone_fallen_back": serve()}
    with tempfile.TemporaryDirectory() as root:
        report = ours(lambda: step(256), root, margin)
    found |= {"entries": entries(), "fallen_back": serve(), "report": told(report)}
    return {**found, "counted": serving_fallbacks()}


def tie_tolerance(tolerance: float) -> dict[str, Any]:
    """Tune where near ties go to the first (FlashInfer 0.7.4)."""
    step = STEPS["mm_fp4 trtllm"]()

    def context() -> Any:
        return autotune(True, tie_tolerance=tolerance)

    with context():
        step(300)
    found: dict[str, Any] = {"alone": entries()}
    with tempfile.TemporaryDirectory() as root:
        report = ours(lambda: step(300), root, tuning_context=context)
    return {**found, "entries": entries(), "report": told(report)}
