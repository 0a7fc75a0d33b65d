# SPDX-License-Identifier: Apache-2.0
"""What poses as a GPU where there is none, to try the measurement's command.

Owns the stand-ins and the ops tried on them. The clock is the embedded engine's, simulated; the
ops are toys that need no device. FlashInfer's tuner, and all that the command does, is real. What
this cannot show: a time, a compiler, a kernel that fails, the ops of FlashInfer themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from flashinfer.autotuner import AutoTuner

from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.gpu_evidence.ops import Op, Prepare

NAME = "no GPU at all"


def install() -> list[Op]:
    """Put the stand-ins in place, for this process; return the ops to try."""
    device = SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=1, L2_cache_size=64 * 1024
    )
    host_clock.install(simulated=True)
    names: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_properties": lambda _device=None: device,
        "get_device_capability": lambda _device=None: (9, 0),
        "get_device_name": lambda _device=None: NAME,
        "mem_get_info": lambda _device=None: (1 << 30, 1 << 30),
    }
    for name, value in names.items():
        setattr(torch.cuda, name, value)
    return [
        Op("sound", _toy("sound")),
        Op("cannot be called", _failing),
        Op("hangs", _hanging),
        Op("kills its process", _deadly),
        Op("is not tuned", lambda: lambda _batch: lambda: None),
        Op("for another GPU", _toy("another"), since=(10, 0)),
        Op("sound too", _toy("sound too")),
    ]


def _toy(op: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        from tests.tuner import toys

        toys.let_time_pass = host_clock.advance

        def prepare(batch: int) -> Callable[[], object]:
            inputs = [toys.rows(batch), toys.WEIGHT]

            def run() -> object:
                runner, tactic = AutoTuner.get().choose_one(op, [toys.Toy(op)], toys.FLOOR, inputs)
                return runner(inputs, tactic=tactic)

            return run

        return prepare

    return make


def _failing() -> Prepare:
    raise RuntimeError("this card has no such kernel")


def _hanging() -> Prepare:
    time.sleep(3600)
    raise AssertionError


def _deadly() -> Prepare:
    os._exit(9)
