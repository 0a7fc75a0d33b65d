# SPDX-License-Identifier: Apache-2.0
"""What goes wrong inside a rank, planted before its warm-up: ``Spec.fault`` names it.

``name[+name...][@rank]``, on every rank without one. Owns the faults themselves; none replaces code
of vLLM or FlashInfer, but for one rank that dies, or dawdles, when it leaves vLLM's last barrier.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNPRIVILEGED = Path(__file__).parents[2] / "ranks" / "on_ranks.py"
#: How long a killed rank's peers are kept in the middle of a measurement.
_IN_MEASUREMENT_S = 1.0


def is_planted(spec: Any, name: str) -> bool:
    """Return whether this rank has the fault."""
    names, _, rank = spec.fault.partition("@")
    return name in names.split("+") and (not rank or int(rank) == spec.rank)


def plant(spec: Any) -> None:
    """Plant this rank's faults, after the ranks have met and before they warm up."""
    from warmup_plugin.engines.embedded import runners
    from warmup_plugin.engines.embedded.config import resolve

    gemm: Any = runners.BlockedGemmRunner
    if is_planted(spec, "get_valid_tactics"):
        gemm.get_valid_tactics = _raising("get_valid_tactics", while_tuning=True)
    if is_planted(spec, "tactic"):
        gemm.product = _without_tactic_0(gemm.product)
    if "validate" in spec.fault:
        for runner in (gemm, runners.SplitKGemmRunner, runners.MoeGemmRunner):
            runner.validate_tactic = _is_candidate
    if is_planted(spec, "unprivileged"):
        resolve(f"{UNPRIVILEGED}:give_up_overrides")()
    if "kill" in spec.fault:
        _kill_in_measurement(is_mine=is_planted(spec, "kill"))
    if is_planted(spec, "exit_before_save"):
        _after_barrier(lambda: os._exit(1))
    if spec.save_after_s:
        _after_barrier(lambda: time.sleep(spec.save_after_s))


def _is_candidate(self: Any, inputs: Any, tactic: Any) -> bool:
    return tactic == -1 or tactic in self.get_valid_tactics(inputs, None)


def _raising(where: str, *, while_tuning: bool) -> Callable[..., Any]:
    from flashinfer.autotuner import AutoTuner

    def fail(*_args: Any) -> Any:
        if while_tuning and not AutoTuner.get().is_tuning_mode:
            return []
        raise RuntimeError(f"planted in {where}")

    return fail


def _without_tactic_0(own: Callable[..., Any]) -> Callable[..., Any]:
    def product(self: Any, x: Any, weight: Any, tactic: int) -> Any:
        if tactic == 0:
            raise RuntimeError("planted in tactic 0")
        return own(self, x, weight, tactic)

    return product


def _kill_in_measurement(*, is_mine: bool) -> None:
    """Kill this rank once any rank of the start is measuring; the one that measures takes a while.

    With this package one rank measures for all, so the victim may be one that waits.
    """
    from warmup_plugin.engines.embedded.host_clock import HostEvent

    mark, own = Path(os.environ["VLLM_CACHE_ROOT"], "measuring"), HostEvent.record

    def record(self: HostEvent, _stream: object = None) -> None:
        if not mark.exists():
            mark.touch()
            time.sleep(_IN_MEASUREMENT_S)
        own(self, _stream)

    def watch() -> None:
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    HostEvent.record = record  # type: ignore[method-assign]  # a stand-in of ours
    if is_mine:
        threading.Thread(target=watch, daemon=True).start()


def _after_barrier(then: Callable[[], None]) -> None:
    from vllm.distributed.parallel_state import get_world_group

    world = get_world_group()
    own = world.barrier

    def barrier() -> None:
        own()
        then()

    world.barrier = barrier
