# SPDX-License-Identifier: Apache-2.0
"""What serves, timed again: every way in one process, by turns, so that all see one machine.

Owns how it is timed: each call is captured into a CUDA graph, which holds the choice that the tuner
makes then and leaves Python's time out; the graphs of a batch are replayed by turns and the median
counts. An op that cannot be captured is called instead. FlashInfer's own table is timed twice: what
the two differ by is noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from warmup_plugin.gpu_evidence.ops import Prepare

_REPLAYS, _ROUNDS = 20, 7

Run = Callable[[], object]


def measure(
    prepare: Prepare, batches: tuple[int, ...], ways: Mapping[str, Callable[[], object]]
) -> dict[str, dict[str, float]]:
    """Return batch -> way -> milliseconds of one call. Each way is first put into force."""
    runs: dict[int, dict[str, Run]] = {batch: {} for batch in batches}
    for name, put_in_force in ways.items():
        put_in_force()
        for batch in batches:
            runs[batch][name] = _captured(prepare(batch))
    return {str(batch): _by_turns(found) for batch, found in runs.items()}


def _captured(run: Run) -> Run:
    """Return what repeats the call as it would be made now."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = run()
    except RuntimeError:  # an op that asks the device something in between
        torch.cuda.synchronize()
        return run

    def replay(_kept: object = kept) -> None:  # the graph writes to the memory of its outputs
        graph.replay()

    return replay


def _by_turns(runs: Mapping[str, Run]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            times[name].append(_time(run))
    return {name: statistics.median(found) for name, found in times.items()}


def _time(run: Run) -> float:
    """Return milliseconds of one call."""
    make: Any = torch.cuda.Event  # untyped in torch
    began, ended = make(enable_timing=True), make(enable_timing=True)
    torch.cuda.synchronize()
    began.record()
    for _ in range(_REPLAYS):
        run()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / _REPLAYS
