# SPDX-License-Identifier: Apache-2.0
"""A job's cold start on simulated clocks for `race.py`: FlashInfer's own tuner, one device a rank.

Owns the device clock: every launch that FlashInfer makes and every delay that it puts before a
measurement lets its time pass there, and nothing else does, so that a figure has no host in it.
Each way of tuning runs `choose_one` of the installed FlashInfer in this process; that ranks work
side by side is reckoned from the tasks' times, with the package's own queue.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flashinfer.autotuner import (
    AutoTuner,
    DynamicTensorSpec,
    TunableRunner,
    TuningConfig,
    autotune,
)

from benchmarks.race_tasks import LAUNCH_MS, OWN, Kind
from warmup_plugin import Identity, Settings, warm_up
from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.planning.assignment import Queue
from warmup_plugin.planning.work_queue import draw

TASKS = 22


class Clock:
    """Milliseconds that the simulated device has been busy."""

    ms = 0.0


def _spend(ms: float) -> None:
    Clock.ms += ms
    host_clock.advance(ms)


class Simulated(TunableRunner):
    """Candidates whose launches take known times, with noise."""

    def __init__(self, kind: Kind, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.times_cache = [kind.true_times(rng).tolist() for _ in range(TASKS)]
        self.noise_cache = np.random.default_rng(seed + 1)
        self.kind = kind

    def __hash__(self) -> int:
        return 0

    def get_cache_key_extras(self, _inputs: list[Any]) -> tuple[Any, ...]:
        return ("simulated",)

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[int]:
        return list(range(self.kind.candidates))

    def forward(self, inputs: list[Any], tactic: Any = -1, **_options: Any) -> Any:
        if AutoTuner.get().is_tuning_mode and tactic != -1:
            ms = self.times_cache[inputs[0].shape[0] - 1][tactic] * LAUNCH_MS
            noise = self.noise_cache.normal(0, self.kind.noise * np.sqrt(10))
            _spend(ms * (1 + noise))
        elif AutoTuner.get().is_tuning_mode:
            _spend(1.1 * LAUNCH_MS)
        return inputs[0]


def job(kind: Kind, seed: int, *, way: str) -> tuple[list[float], float]:
    """Tune all tasks in one way: "alone", "sweep" or "race"; return their times and the sum."""
    buckets = tuple(range(1, TASKS + 1))
    spec = DynamicTensorSpec((0,), (0,), buckets, int)
    config, began = TuningConfig(dynamic_tensor_specs=(spec,)), list[float]()
    runner = Simulated(kind, seed)

    def forward() -> None:
        AutoTuner.get().choose_one("simulated", [runner], config, [torch.empty(TASKS, 8)])

    restore = host_clock.install(simulated=True)
    module: Any = sys.modules[AutoTuner.__module__]
    delay, module.delay_kernel = module.delay_kernel, lambda micro_secs: _spend(micro_secs / 1000)
    Clock.ms = 0.0
    try:
        AutoTuner.get().clear_cache()
        if way == "alone":
            with autotune(True), contextlib.redirect_stderr(io.StringIO()):  # its bar
                forward()
            return [], Clock.ms
        with tempfile.TemporaryDirectory() as root:
            warm_up(
                forward,
                identity=Identity.of(model="benchmark", dtype="bfloat16"),
                settings=Settings.from_env({}, race=way == "race"),
                root=Path(root),
                progress=lambda step, *_rest: began.append(Clock.ms) if step == "tune" else None,
            )
    finally:
        module.delay_kernel = delay
        restore()
    ends = [*began[1:], Clock.ms]
    return [end - start for start, end in zip(began, ends, strict=True)], Clock.ms


def side_by_side(tasks_ms: Sequence[float], num_ranks: int) -> float:
    """Return when the last of so many ranks is done, each drawing when it is free."""
    names = {str(n): ms for n, ms in enumerate(tasks_ms)}
    queues = (Queue(ranks=tuple(range(num_ranks)), tasks=tuple(names)),)
    counts: Counter[str] = Counter()

    def take(name: str) -> int:
        counts[name] += 1
        return counts[name] - 1

    draws: list[Iterator[Any]] = [
        draw(queues, rank, take, lambda: False) for rank in range(num_ranks)
    ]
    free, ended = [(0.0, rank) for rank in range(num_ranks)], 0.0
    while free:
        now, rank = heapq.heappop(free)
        ended = max(ended, now)
        if (drawn := next(draws[rank], None)) is not None:
            heapq.heappush(free, (now + names[drawn.task], rank))
    return ended


def lock_step(kind: Kind, seed: int, num_ranks: int) -> float:
    """Return how long FlashInfer's lock step takes: each candidate as long as its slowest rank.

    Reckoned, and from below: its collectives, one for each candidate, are taken to cost nothing.
    """
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(TASKS):
        times = kind.true_times(rng)
        noise = rng.normal(0, kind.noise, (num_ranks, kind.candidates))
        took = OWN.delay_ms + OWN.launches * LAUNCH_MS * times * (1 + noise)
        total += float(took.max(axis=0).sum())
    return total
