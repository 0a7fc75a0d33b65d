# SPDX-License-Identifier: Apache-2.0
"""What goes wrong inside a rank, planted before its warm-up: ``Spec.fault`` names it.

``name[+name...][@rank]``, on every rank without one. Owns those that only vLLM has; the others are
in `engine_faults.py`. None replaces code of vLLM, but for one rank that dies, or dawdles, when it
leaves vLLM's last barrier.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_faults
from engine_faults import is_planted


def plant(spec: Any) -> None:
    """Plant this rank's faults, after the ranks have met and before they warm up."""
    from warmup_plugin.engines.embedded import runners

    gemm: Any = runners.BlockedGemmRunner
    if "validate" in spec.fault:
        for runner in (gemm, runners.SplitKGemmRunner, runners.MoeGemmRunner):
            runner.validate_tactic = _is_candidate
    engine_faults.plant(spec, Path(os.environ["VLLM_CACHE_ROOT"]))
    if is_planted(spec, "exit_before_save"):
        _after_barrier(lambda: os._exit(1))
    if spec.save_after_s:
        _after_barrier(lambda: time.sleep(spec.save_after_s))


def _is_candidate(self: Any, inputs: Any, tactic: Any) -> bool:
    return tactic == -1 or tactic in self.get_valid_tactics(inputs, None)


def _after_barrier(then: Callable[[], None]) -> None:
    from vllm.distributed.parallel_state import get_world_group

    world = get_world_group()
    own = world.barrier

    def barrier() -> None:
        own()
        then()

    world.barrier = barrier
