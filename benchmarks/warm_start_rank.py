# SPDX-License-Identifier: Apache-2.0
"""What one rank's process does for `warm_start.py`: synthetic tunable calls, and three starts.

Owns the calls, real ones to FlashInfer's `AutoTuner.choose_one` with keys as long as those of real
ops, and the marks on the machine's monotonic clock. Loaded by path in each fresh process, so it
returns plain dictionaries only.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from flashinfer.autotuner import (
    AutoTuner,
    DynamicTensorSpec,
    TunableRunner,
    TuningConfig,
    autotune,
)

from warmup_plugin import Identity, Settings, begin_early, warm_up
from warmup_plugin.engines.embedded import host_clock

#: Name -> (the machine's monotonic clock, this process's CPU time), seconds.
Marks = dict[str, tuple[float, float]]
Call = Callable[[], Any]


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def forget_environment() -> None:
    """Let FlashInfer look its environment up anew, as any process must that nobody has forked."""
    importlib.invalidate_caches()
    for name in (AutoTuner.__module__, "flashinfer.jit.cute_dsl_core"):
        for value in vars(sys.modules[name]).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


class CutlassLikeRunner(TunableRunner):
    """A runner whose tactics take simulated time only; its key is as long as an FP4 GEMM's."""

    def __init__(self, *, pdl: bool) -> None:
        self.pdl, self.layout, self.groups = pdl, "layout_8x4", 8

    def get_cache_key_extras(self, inputs: list[Any]) -> tuple[Any, ...]:
        x, weight, scale, out = inputs
        dtypes = (str(x.dtype), str(weight.dtype), str(scale.dtype))
        return (*dtypes, self.pdl, self.layout, self.groups, out is not None)

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[int]:
        return [0, 1]

    def milliseconds(self, tactic: Any, _columns: int) -> float:
        return 2.0 if tactic == -1 else 1.0 - 0.25 * tactic

    def forward(self, inputs: list[Any], tactic: Any = -1, **_options: Any) -> Any:
        host_clock.advance(self.milliseconds(tactic, inputs[1].shape[1]))
        return inputs[0]


class TrtllmLikeRunner(CutlassLikeRunner):
    """The second of two runners in a call; on every third width it wins."""

    def milliseconds(self, tactic: Any, columns: int) -> float:
        return super().milliseconds(tactic, columns) * (0.5 if columns % 3 == 0 else 2.0)


def make_calls(num_calls: int, num_buckets: int) -> list[Call]:
    """Return calls of ``choose_one`` that make ``num_calls`` x ``num_buckets`` tasks.

    20 ops; half of the calls offer two runners. Weights are parameters, as in an engine, in memory
    that is never touched.
    """
    buckets = tuple(2**power for power in range(num_buckets))
    config = TuningConfig(
        dynamic_tensor_specs=(
            DynamicTensorSpec((0, 2), (0, 0), buckets, functools.partial(_round_up, buckets)),
        ),
        tensor_initializers=((0, _empty), (2, _empty)),
        profiling_repeat=1,
    )
    return [functools.partial(_call, config, number, buckets[-1]) for number in range(num_calls)]


def _round_up(buckets: tuple[int, ...], size: int) -> int:
    return next((bucket for bucket in buckets if bucket >= size), buckets[-1])


def _empty(shapes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(shapes, dtype=dtype, device=device)


@functools.cache
def _weight(rows: int, columns: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)


def _call(config: TuningConfig, number: int, tokens: int) -> Any:
    op, rows, columns = f"bench::gemm_{number % 20}", 64, 128 + 16 * number
    runners: list[CutlassLikeRunner] = [CutlassLikeRunner(pdl=number % 4 < 2)]
    if number % 2:
        runners.append(TrtllmLikeRunner(pdl=number % 4 < 2))
    x = torch.empty(tokens, columns, dtype=torch.bfloat16)
    scale = torch.empty(tokens, columns // 16, dtype=torch.uint8)
    inputs = [x, _weight(rows, columns), scale, None]
    return AutoTuner.get().choose_one(op, runners, config, inputs)


def make_forward(calls: Iterable[Call], marks: Marks) -> Callable[[], None]:
    """Return a forward pass that all ranks enter and leave together, as collectives would."""

    def forward() -> None:
        marks["forward_reached"] = now()
        dist.barrier()
        marks["forward_began"] = now()
        for call in calls:
            call()
        marks["forward_ended"] = now()
        dist.barrier()
        marks["forward_left"] = now()

    return forward


def start(
    engine: Any, *, root: str, num_calls: int, num_buckets: int, fleet: str | None = None,
    lead_s: float = 0.0, early: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Run `warm_up`: cold where ``root`` is empty and there is no ``fleet``, else warm.

    ``lead_s``: how long this process has lived before it, as one that loads a model has;
    ``early``: what begins with that, ``process`` or, with the identity, ``reading``.
    """
    marks: Marks = {}
    forward = make_forward(make_calls(num_calls, num_buckets), marks)
    # Equal for every number of ranks, so that one cold start serves them all.
    identity = Identity.of(model="benchmark", dtype="bfloat16")
    settings = Settings.from_env({}, fleet=fleet, fleet_wait_s=30.0)
    if early:
        known: dict[str, Any] = {"identity": identity, "cache_root": Path(root)}
        begin_early(engine.ranks.rank, settings, **(known if early == "reading" else {}))
    time.sleep(lead_s)
    forget_environment()
    dist.barrier()
    marks["began"] = now()
    report = warm_up(
        forward,
        identity=identity,
        ranks=engine.ranks,
        settings=settings,
        cache_root=Path(root),
        engine=("benchmark", "1"),
    )
    marks["ended"] = now()
    return {
        "marks": marks,
        "tasks": dict(report.tasks),
        "tactics_timed": report.tactics_timed,
        "agreement": report.agreement,
        "seconds": dict(report.seconds),
        "path": report.path,
        "fleet": msgspec.to_builtins(report.fleet),
        "warnings": list(report.warnings),
    }


def floor(engine: Any, *, path: str) -> dict[str, Any]:
    """Do the least that any shared warm start must: read, broadcast, `load_configs`."""
    is_first = engine.ranks.rank == 0
    tuner = AutoTuner.get()
    forget_environment()
    dist.barrier()
    marks = {"began": now()}
    _load(_broadcast(Path(path).read_bytes() if is_first else b""), tuner)
    marks["ended"] = now()
    return {"marks": marks, "entries": len(tuner._file_configs)}  # noqa: SLF001  # no public count


def _broadcast(body: bytes) -> bytes:
    length = torch.tensor([len(body)])
    dist.broadcast(length, src=0)
    if body:
        data = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    else:
        data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, src=0)
    return body or data.numpy().tobytes()


def _load(body: bytes, tuner: Any) -> None:
    handle = os.memfd_create("table")
    try:
        os.write(handle, body)
        assert tuner.load_configs(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def forward_alone(_engine: Any, *, path: str, num_calls: int, num_buckets: int) -> dict[str, Any]:
    """Run the same forward under FlashInfer's own ``autotune(True)`` with the table loaded."""
    marks: Marks = {}
    forward = make_forward(make_calls(num_calls, num_buckets), marks)
    assert AutoTuner.get().load_configs(path)
    dist.barrier()
    with autotune(True):
        forward()
    return {"marks": marks}
