# SPDX-License-Identifier: Apache-2.0
"""Toy ops for the tuner's tests: runners that compute nothing and take a known simulated time.

Needs FlashInfer and torch only, so that a process without this package serves them too. A process
that tunes sets `let_time_pass`; then FlashInfer's own profiler measures `cost`, exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig
from flashinfer.fused_moe.utils import (
    get_hybrid_num_tokens_buckets,
    map_to_hybrid_bucket_uncapped,
)

Tensor = torch.Tensor
WIDTH = 8
BUCKETS = (1, 4, 16, 64)
HYBRID_BATCHES = (100, 3000, 10240)


def cost(op: str, runner: str, batch: int, tactic: Any) -> float:
    """Milliseconds of one call: any winner, but the same one in every process.

    Of an op whose name ends in "default" nothing is faster than tactic -1.
    """
    if tactic == -1:
        return 0.5 if op.endswith("default") else 9.0
    share = zlib.crc32(repr((op, runner, batch, tactic)).encode()) / 2**32
    return 2.0 - share if _flipped else 1.0 + share


_flipped = False


def flip_costs() -> None:
    """Make in this process the slowest tactic the fastest."""
    global _flipped  # noqa: PLW0603  # a switch of the process
    _flipped = True


def no_time(_ms: float) -> None:
    """Nobody measures here."""


let_time_pass: Callable[[float], None] = no_time


class Toy(TunableRunner):
    """A runner of one op. Further keywords become attributes."""

    def __init__(
        self,
        op: str,
        extras: tuple[Any, ...] = ("toy",),
        tactics: tuple[Any, ...] = (0, 1, 2, (3, 4)),
        **attributes: Any,
    ) -> None:
        self.op, self.extras, self.tactics = op, extras, tactics
        for name, value in attributes.items():
            setattr(self, name, value)

    def get_cache_key_extras(self, _inputs: list[Any]) -> tuple[Any, ...]:
        return self.extras

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        return list(self.tactics)

    def forward(
        self,
        inputs: list[Any],
        tactic: Any = -1,
        do_preparation: bool = False,  # noqa: FBT001, FBT002  # FlashInfer's signature
        **kwargs: Any,
    ) -> Tensor:
        if not do_preparation:
            self.run(inputs, tactic, **kwargs)
        out: Tensor = inputs[0]
        return out

    def run(self, inputs: list[Any], tactic: Any, **_kwargs: Any) -> None:
        let_time_pass(cost(self.op, type(self).__name__, inputs[0].shape[0], tactic))


class Other(Toy):
    """A second class that competes in one call."""


class Staged(Toy):
    """One object for two ops, mutated between them; its candidates follow ``stage``."""

    stage = 1

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        return [(self.stage, variant) for variant in range(2 + self.stage)]


class Routed(Toy):
    """Its times depend on what its inputs, its initialiser and a keyword hold."""

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        content = [float(inputs[0][0, 0]), int(inputs[1][0]), int(kwargs["index"][0])]
        let_time_pass(cost(f"{self.op} {content}", "", inputs[0].shape[0], tactic))


class Hooked(Toy):
    """Makes room for a batch in a hook bound to itself, as FlashInfer's unified runners do."""

    room_cache = 0

    def prepare(self, inputs: list[Any]) -> list[Any]:
        self.room_cache = inputs[0].shape[0]
        return inputs

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        if tactic != -1 and inputs[0].shape[0] > self.room_cache:
            raise ValueError("no room was made for this batch")
        super().run(inputs, tactic, **kwargs)


class RawBatch(Toy):
    """Puts the batch at hand into its key, as FlashInfer's cuBLASLt runner does."""

    def get_cache_key_extras(self, inputs: list[Any]) -> tuple[Any, ...]:
        return (*self.extras, inputs[0].shape[0])


def floor_bucket(batch: int) -> int:
    return max(bucket for bucket in BUCKETS if bucket <= max(batch, 1))


def ceil_bucket(batch: int) -> int:
    return min((bucket for bucket in BUCKETS if bucket >= batch), default=batch)


def _up_to_own(batch: int) -> tuple[int, ...]:
    return (*(bucket for bucket in BUCKETS if bucket < batch), batch)


def _first_dimension(generate: Any, mapper: Callable[[int], int], *inputs: int) -> Any:
    return DynamicTensorSpec(
        input_idx=inputs or (0,),
        dim_idx=(0,) * max(len(inputs), 1),
        gen_tuning_buckets=generate,
        map_to_tuning_buckets=mapper,
    )


_FLOOR = _first_dimension(BUCKETS, floor_bucket)
_HYBRID = _first_dimension(get_hybrid_num_tokens_buckets, map_to_hybrid_bucket_uncapped)
FLOOR = TuningConfig(dynamic_tensor_specs=(_FLOOR,))
HYBRID = TuningConfig(dynamic_tensor_specs=(_HYBRID,))
#: The batch of the call is tuned at its own size, under its bucket's key, as FlashInfer's GEMMs do.
OWN_SIZE = TuningConfig(dynamic_tensor_specs=(_first_dimension(_up_to_own, ceil_bucket),))
#: Two batches that vary apart, the second in two inputs at once.
GRID = TuningConfig(
    dynamic_tensor_specs=(_FLOOR, _first_dimension((1, 16), floor_bucket, 1, 2)),
)
COLD = TuningConfig(dynamic_tensor_specs=(_FLOOR,), use_cold_l2_cache=True)
GRAPH = TuningConfig(dynamic_tensor_specs=(_FLOOR,), use_cuda_graph=True)
STATIC = TuningConfig()


class OnDevice(torch.nn.Parameter):
    """A weight that says it is a CUDA tensor: cold-L2 profiling asks for one."""

    is_cuda = True


WEIGHT = OnDevice(torch.zeros(WIDTH, WIDTH), requires_grad=False)


def rows(batch: int) -> Tensor:
    return torch.zeros(batch, WIDTH)


def call(
    op: str,
    runners: Sequence[Any],
    config: Any,
    *inputs: Any,
    **kwargs: Any,
) -> tuple[str, Any]:
    """Choose as an op does and run the choice; return runner class and tactic."""
    given = list(inputs) or [rows(100), WEIGHT]
    runner, tactic = AutoTuner.get().choose_one(op, list(runners), config, given, **kwargs)
    runner(given, tactic=tactic, **kwargs)
    return type(runner).__name__, tactic


def toy_call(op: str = "toy", batch: int = 16, **attributes: Any) -> tuple[str, Any]:
    """Call a plain op with one runner."""
    return call(op, [Toy(op, **attributes)], FLOOR, rows(batch), WEIGHT)


def staged_calls() -> Iterator[tuple[str, Any]]:
    """One runner object for two ops."""
    runner = Staged("staged")
    for stage in (1, 2):
        runner.stage = stage
        yield call(f"staged{stage}", [runner], FLOOR)


def routed_calls() -> Iterator[tuple[str, Any]]:
    """Calls over one routing table, which the engine overwrites between them and at the end."""
    table = torch.zeros(4, dtype=torch.int32)

    def as_routed(shapes: Any, dtype: Any, device: Any) -> Tensor:
        return torch.full(shapes, float(table[0]), dtype=dtype, device=device)

    config = replace(FLOOR, tensor_initializers=((0, as_routed),))
    for content in (3, 5):
        table.fill_(content)
        runners = [Routed("routed", (content,))]
        yield call("routed", runners, config, rows(16), table, index=table)
    table.fill_(99)


def hooked_call() -> tuple[str, Any]:
    runner = Hooked("hooked")
    runner.room_cache = 16
    config = replace(FLOOR, inputs_pre_hook=runner.prepare)
    return call("hooked", [runner], config, rows(16), WEIGHT)


def every_call() -> dict[str, list[tuple[str, Any]]]:
    """Every kind of call a replay must get right; kind -> the choices, in order."""

    def pair(op: str) -> list[Any]:
        return [Toy(op), Other(op, ("other", True, torch.float16))]

    return {
        **{
            f"hybrid {batch}": [call("hybrid", [Toy("hybrid", (batch,))], HYBRID, rows(batch))]
            for batch in HYBRID_BATCHES
        },
        "two runner classes": [
            call("pair", pair("pair"), config, rows(batch), WEIGHT)
            for config in (FLOOR, HYBRID)
            for batch in (3000, 100)
        ],
        "mutated runner": list(staged_calls()),
        "cold L2": [call("cold", [Toy("cold")], COLD)],
        "CUDA graph": [call("graph", [Toy("graph")], GRAPH)],
        "two dimensions": [call("grid", pair("grid"), GRID, rows(9), rows(20), rows(20))],
        "fixed shape": [call("static", [Toy("static")], STATIC, rows(7), WEIGHT)],
        "fast default": [call("fast default", [Toy("fast default")], FLOOR)],
        "overwritten routing": list(routed_calls()),
        "hook of the runner": [hooked_call()],
        "no extras": [call("bare", [Toy("bare", ())], FLOOR)],
    }


def told_apart() -> list[tuple[str, Any]]:
    """Two runners of one class and one profile that only their extras tell apart."""
    return [
        call("options", [Toy("options", (name,), tactics, layout=name)], FLOOR, rows(batch), WEIGHT)
        for name, tactics in (("8x4", (0, 1, 2)), ("128x4", (3, 4, 5)))
        for batch in BUCKETS
    ]


def fp4_gemms() -> list[tuple[str, Any]]:
    """Call FlashInfer's ``fp4_gemm`` as its `mm_fp4` does, for both layouts of the scales.

    Runner class, tuning configurations and inputs are FlashInfer's. Only the compiled module, which
    needs a GPU, is stood in for: it takes simulated time and offers other tactics to each layout.
    """
    from flashinfer.gemm import gemm_base

    gemm_base.gen_trtllm_gen_gemm_module = lambda **_: SimpleNamespace(
        build_and_load=lambda: _CompiledGemm, get_library_paths=list
    )
    module = gemm_base._get_trtllm_gemm_module_impl(False)
    configs = (gemm_base._MM_FP4_TUNING_CONFIG_8x4, gemm_base._MM_FP4_TUNING_CONFIG_128x4)
    answers = []
    for is_8x4, padding, config in zip((True, False), (8, 128), configs, strict=True):
        for batch in (100, 16):
            runner = module.trtllm_fp4_gemm_runner(is_8x4)
            answers.append(call("fp4_gemm", [runner], config, *_fp4_inputs(batch, padding)))
    return answers


def _fp4_inputs(batch: int, padding: int, k: int = 64, n: int = 32) -> list[Any]:
    def data(*size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    padded = -(-batch // padding) * padding
    operands = [data(batch, k // 2), OnDevice(data(k // 2, n), requires_grad=False)]
    scales = [data(padded, k // 16), data(k // 16, n), torch.ones(1)]
    out = torch.zeros(batch, n, dtype=torch.bfloat16)
    return [*operands, *scales, out.dtype, out, 16, True, data(4096)]


class _CompiledGemm:
    """FlashInfer's compiled TRT-LLM GEMM module, as far as `TrtllmGemmRunner` asks it."""

    @staticmethod
    def trtllm_gemm_tactics(*arguments: Any) -> list[int]:
        is_8x4 = arguments[-1]
        return [0, 1, 2] if is_8x4 else [3, 4, 5, 6]

    @staticmethod
    def trtllm_gemm(*arguments: Any) -> None:
        *_, out, is_8x4, tactic = arguments
        let_time_pass(cost("fp4_gemm", f"8x4={is_8x4}", out.shape[0], tactic))
