# SPDX-License-Identifier: Apache-2.0
"""What goes wrong inside a rank, planted before its warm-up: ``Spec.fault`` names it.

``name[+name...][@rank[,rank...]]``, on every rank without one. Owns the faults themselves, which
any engine can have; none replaces code of an engine or of FlashInfer, but for its stamp's cuBLAS
version.
"""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import live_faults
import lost_ranks

#: How long a rank is late, for others that wait for seconds.
_LATE_S = 7.0
#: How long a killed rank's peers are kept in the middle of a measurement.
_IN_MEASUREMENT_S = 1.0


def is_planted(spec: Any, name: str) -> bool:
    """Return whether this rank has the fault."""
    names, _, rank = spec.fault.partition("@")
    return name in names.split("+") and (not rank or str(spec.rank) in rank.split(","))


def _names(spec: Any) -> list[str]:
    found: list[str] = spec.fault.partition("@")[0].split("+")
    return found


def plant(spec: Any, root: Path) -> None:
    """Plant this rank's faults, after the ranks have met and before they warm up.

    ``root``: a folder that all ranks of the start see.
    """
    own = [name for name in _names(spec) if is_planted(spec, name)]
    lost_ranks.plant(own, root)
    _plant_in_ops(spec)
    _plant_around(spec)
    live_faults.plant(own, spec.rank, root)
    if "kill" in _names(spec):
        _kill_in_measurement(root / "measuring", is_mine=is_planted(spec, "kill"))


def _plant_in_ops(spec: Any) -> None:
    from warmup_plugin.engines.embedded import runners

    gemm: Any = runners.BlockedGemmRunner
    if is_planted(spec, "get_valid_tactics"):
        gemm.get_valid_tactics = _raising("get_valid_tactics")
    if is_planted(spec, "tactic"):
        gemm.product = _without_tactic_0(gemm.product)
    if is_planted(spec, "no_default"):
        gemm.forward = _without_default(gemm.forward)
    if is_planted(spec, "no_default_of_lm_head"):
        gemm.forward = _without_default(gemm.forward, "embedded::lm_head")
    if is_planted(spec, "one_tactic_less"):
        gemm.get_valid_tactics = _one_less(gemm.get_valid_tactics)
    if is_planted(spec, "out_of_memory"):
        gemm.forward = _out_of_memory(gemm.forward)


def _plant_around(spec: Any) -> None:
    if is_planted(spec, "own_cublas"):
        _own_cublas(spec.rank)
    if is_planted(spec, "cannot_prepare"):
        from warmup_plugin.tuner import compat

        compat.probe = _lacking  # type: ignore[assignment]  # the real one is cached
    if is_planted(spec, "no_temporary_directory"):
        os.chdir("/proc")  # Python's last resort is where a process is
        tempfile.tempdir = None
    if is_planted(spec, "late"):
        time.sleep(_LATE_S)


def _lacking() -> Any:
    raise MemoryError("planted")


def _raising(where: str) -> Callable[..., Any]:
    from flashinfer.autotuner import AutoTuner

    def fail(*_args: Any) -> Any:
        if not AutoTuner.get().is_tuning_mode:
            return []
        raise RuntimeError(f"planted in {where}")

    return fail


def _without_tactic_0(own: Callable[..., Any]) -> Callable[..., Any]:
    def product(self: Any, x: Any, weight: Any, tactic: int) -> Any:
        if tactic == 0:
            raise RuntimeError("planted in tactic 0")
        return own(self, x, weight, tactic)

    return product


def _without_default(own: Callable[..., Any], only: str = "") -> Callable[..., Any]:
    """Fail on the default; not in FlashInfer's preparation of a measurement, which names it too."""

    @functools.wraps(own)
    def forward(self: Any, inputs: Any, tactic: Any = -1, **options: Any) -> Any:
        is_it = not only or self.op == only
        if is_it and tactic == -1 and not options.get("do_preparation"):
            raise RuntimeError("planted in the default tactic")
        return own(self, inputs, tactic, **options)

    return forward


def _one_less(own: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, inputs, profile: own(self, inputs, profile)[:-1]


def _out_of_memory(own: Callable[..., Any]) -> Callable[..., Any]:
    """Fail in FlashInfer's preparation of a measurement, which it asks for by the signature."""
    import torch

    @functools.wraps(own)
    def forward(self: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        if options.get("do_preparation"):
            raise torch.OutOfMemoryError("planted in a preparation")
        return own(self, inputs, *args, **options)

    return forward


def _own_cublas(rank: int) -> None:
    """Let this rank's environment stamp name a cuBLAS of its own; it is unknown without a GPU."""
    import importlib
    import sys

    tuner = importlib.import_module("flashinfer.autotuner").AutoTuner
    for module in (sys.modules[tuner.__module__], sys.modules["flashinfer.autotuner"]):
        own: Any = module.__dict__["_collect_metadata"]
        module.__dict__["_collect_metadata"] = lambda own=own: {
            **own(),
            "cublas_version": f"1.{rank}",
        }


def _kill_in_measurement(mark: Path, *, is_mine: bool) -> None:
    """Kill this rank once any rank of the start is measuring; the one that measures takes a while.

    With this package one rank measures for all, so the victim may be one that waits.
    """
    from warmup_plugin.engines.embedded.host_clock import HostEvent

    own = HostEvent.record

    def record(self: HostEvent, stream: object = None) -> None:
        if not mark.exists():
            mark.touch()
            time.sleep(_IN_MEASUREMENT_S)
        own(self, stream)

    def watch() -> None:
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    vars_of: Any = HostEvent
    vars_of.record = record  # a stand-in of ours
    if is_mine:
        threading.Thread(target=watch, daemon=True).start()
