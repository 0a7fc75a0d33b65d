# SPDX-License-Identifier: Apache-2.0
"""The embedded engine: one CPU process per rank, for trying the package without a GPU.

Also the reference for writers of runners: its ops call FlashInfer's real `AutoTuner.choose_one`.

    config.py       sizes and layout of the engine, result of a rank; checked here, no torch
    host_clock.py   a host clock where FlashInfer's profiler expects CUDA's
    runners.py      `TunableRunner`s whose tactics are CPU implementations of one product
    ops.py          the custom ops: configuration, `choose_one`, run
    model.py        one pipeline stage of a small decoder, dense and MoE layers
    parallel.py     tensor, pipeline, data and expert parallelism over gloo
    worker.py       what one rank's process does
    launch.py       starts the ranks, bounded in time, and brings their results home
    preload.py      what the fork server has ready for every rank
    progress.py     the line in which a rank says what it is at
    count_calls.py  counts what FlashInfer does, replacing nothing
    evidence.py     what a start did, seen from outside: contexts, bodies, files, when it left
"""

from __future__ import annotations

from warmup_plugin.engines.embedded.config import EngineConfig, RankResult
from warmup_plugin.engines.embedded.launch import LaunchError, launch

__all__ = ["EngineConfig", "LaunchError", "RankResult", "launch"]
