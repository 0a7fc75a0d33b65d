# SPDX-License-Identifier: Apache-2.0
"""Toy ops for the tuner's tests: runners that compute nothing and take a known simulated time.

Needs FlashInfer and torch only, so that a process without this package serves them too. A process
that tunes sets `let_time_pass`; then FlashInfer's own profiler measures `cost`, exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
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
        vars(self).update(attributes)

    def get_cache_key_extras(self, _inputs: list[Any]) -> tuple[Any, ...]:
        return self.extras

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        return list(self.tactics)

    def forward(
        self,
        inputs: list[Any],
        tactic: Any = -1,
        do_preparation: bool = False,  # noqa: ARG002, FBT001, FBT002  # FlashInfer's signature
        **_kwargs: Any,
    ) -> Tensor:
        let_time_pass(cost(self.op, type(self).__name__, inputs[0].shape[0], tactic))
        out: Tensor = inputs[0]
        return out


class Other(Toy):
    """A second class that competes in one call."""


class Staged(Toy):
    """One object for two ops, mutated between them; its candidates follow ``stage``."""

    stage = 1

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        return [(self.stage, variant) for variant in range(2 + self.stage)]


class RawBatch(Toy):
    """Puts the batch at hand into its key, as FlashInfer's cuBLASLt runner does."""

    def get_cache_key_extras(self, inputs: list[Any]) -> tuple[Any, ...]:
        return (*self.extras, inputs[0].shape[0])


def floor_bucket(batch: int) -> int:
    return max(bucket for bucket in BUCKETS if bucket <= max(batch, 1))


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
        "no extras": [call("bare", [Toy("bare", ())], FLOOR)],
    }
