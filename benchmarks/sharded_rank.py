# SPDX-License-Identifier: Apache-2.0
"""What one rank's process does for `sharded.py`: tunable calls on a simulated device, tuned.

Owns the device: a tactic keeps it busy for `DEVICE_S` once, while this process sleeps as it would
beside a GPU, so that ranks overlap on few cores; what FlashInfer measures is the simulated clock's,
the same on every rank. FlashInfer's own tuner does all the work. Loaded by path in each fresh
process, so it returns plain values only.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from flashinfer.autotuner import (
    AutoTuner,
    DynamicTensorSpec,
    TunableRunner,
    TuningConfig,
    autotune,
)

from warmup_plugin import Identity, Settings, warm_up
from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.engines.embedded.parallel import tuning_over

DEVICE_S = 0.02
BUCKETS = tuple(2**power for power in range(11))


class SleepyRunner(TunableRunner):
    """A runner whose tactics keep the device busy; ``pace`` is how much slower this device is."""

    busy_cache: Any = None

    def __init__(self, op: str, num_tactics: int, pace: float) -> None:
        self.op, self.num_tactics, self.pace = op, num_tactics, pace

    def __hash__(self) -> int:
        return hash((self.op, self.num_tactics))  # the device is no part of the call

    def get_cache_key_extras(self, _inputs: list[Any]) -> tuple[Any, ...]:
        return ("bfloat16", self.num_tactics)

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[int]:
        return list(range(self.num_tactics))

    def forward(self, inputs: list[Any], tactic: Any = -1, **_options: Any) -> Any:
        rows = inputs[0].shape[0]
        if AutoTuner.get().is_tuning_mode and self.busy_cache != (rows, tactic):
            self.busy_cache = (rows, tactic)  # once for a tactic, however often it is run
            time.sleep(DEVICE_S * self.pace)
        share = zlib.crc32(repr((self.op, rows, tactic)).encode()) / 2**32
        host_clock.advance(3.0 if tactic == -1 else 1.0 + share)
        return inputs[0]


def make_forward(tactics: Mapping[str, int], pace: float) -> Callable[[], None]:
    """Return a forward pass that calls each op once, at the largest batch."""
    spec = DynamicTensorSpec((0,), (0,), BUCKETS, int)
    config = TuningConfig(dynamic_tensor_specs=(spec,), profiling_repeat=1)
    weight = torch.nn.Parameter(torch.empty(8, 8), requires_grad=False)

    def forward() -> None:
        dist.barrier()
        for op, num_tactics in tactics.items():
            x = torch.empty(BUCKETS[-1], 8)
            AutoTuner.get().choose_one(
                op, [SleepyRunner(op, num_tactics, pace)], config, [x, weight]
            )
        dist.barrier()

    return forward


def start(
    engine: Any,
    *,
    root: str,
    strategy: str,
    tactics: Mapping[str, int],
    held: Sequence[Sequence[str]] | None = None,
    paces: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Tune with this package. ``held``: the ops of each rank; ``paces``: of each rank's device."""
    rank = engine.ranks.rank
    own = {op: tactics[op] for op in (held[rank] if held else tactics)}
    report = warm_up(
        make_forward(own, paces[rank] if paces else 1.0),
        identity=Identity.of(model="benchmark", dtype="bfloat16"),
        ranks=engine.ranks,
        settings=Settings.from_env({}, strategy=strategy),
        cache_root=Path(root),
        engine=("benchmark", "1"),
    )
    return {
        "seconds": dict(report.seconds),
        "tuned": report.tasks["tuned"],
        "timeline": [list(row) for row in report.timeline],
        "certificate": report.certificate,
        "agreement": report.agreement,
        "path": report.path,
        "warnings": list(report.warnings),
    }


def lock_step(_engine: Any, *, tactics: Mapping[str, int]) -> dict[str, Any]:
    """Tune with FlashInfer alone, all ranks timing everything and reducing each time."""
    forward = make_forward(tactics, 1.0)
    dist.barrier()
    began = time.monotonic()
    with tuning_over(dist.group.WORLD), autotune(True):
        forward()
    return {"seconds": time.monotonic() - began}
