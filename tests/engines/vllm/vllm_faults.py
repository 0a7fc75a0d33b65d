# SPDX-License-Identifier: Apache-2.0
"""What goes wrong inside a rank, planted before its warm-up: ``Spec.fault`` names it.

``name[+name...][@rank]``, on every rank without one. Owns those that only vLLM has; the others are
in `engine_faults.py`. None replaces code of vLLM, but for one rank that dies, dawdles, or closes a
folder, when it leaves vLLM's last barrier.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_faults
from engine_faults import is_planted

#: A rank's save takes 0.1 s.
_SAVE_S = 2.0


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
    if is_planted(spec, "no_save") and spec.rank == 1:
        _after_barrier(lambda: _close_once_saved(Path(os.environ["VLLM_CACHE_ROOT"])))
    if spec.save_after_s:
        _after_barrier(lambda: time.sleep(spec.save_after_s))


def _close_once_saved(root: Path) -> None:
    """Forbid writing where the tables are, once rank 0 has saved its own; with us it never does."""
    deadline = time.monotonic() + _SAVE_S
    while time.monotonic() < deadline and not [*root.glob("**/autotune_configs_dp0_rank0.json")]:
        time.sleep(0.01)
    for table in [*root.glob("**/autotune_configs_*.json"), *root.glob("**/rank_*.json")]:
        table.parent.chmod(0o555)


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
