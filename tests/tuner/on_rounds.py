# SPDX-License-Identifier: Apache-2.0
"""What `test_rounds.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flashinfer
import torch
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.settings import Settings
from warmup_plugin.tuner.known_ops import KNOWN_OPS

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys

COUNTS = ("warmup", "repeat", "stream_delay_micro_secs")
#: What FlashInfer's profiler was asked, in order: op, class, tactic, counts, config's own repeat.
ASKED: list[list[Any]] = []


class Shifting(toys.Toy):
    """Offers other tactics each time it is asked."""

    asked_cache = 0

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        self.asked_cache += 1
        return [tactic + 100 * self.asked_cache for tactic in self.tactics]


class Noisy(toys.Toy):
    """Even tactics take 1 ms, odd ones 2, each measurement up to 2 % more or less than the next."""

    launches_cache = 0

    def run(self, inputs: list[Any], tactic: Any, **_kwargs: Any) -> None:
        del inputs
        self.launches_cache += 1
        wave = 1 + 0.02 * ((self.launches_cache * 0.618034) % 1 - 0.5)
        toys.let_time_pass((3.0 if tactic == -1 else 1.0 + tactic % 2) * wave)


class Broken(toys.Toy):
    """Every third tactic fails."""

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        if tactic % 3 == 0:
            raise ValueError("planted")
        super().run(inputs, tactic, **kwargs)


class NoRoom(toys.Toy):
    """Finds no memory when it is asked for its candidates."""

    def get_valid_tactics(self, _inputs: list[Any], _profile: Any) -> list[Any]:
        raise torch.cuda.OutOfMemoryError("planted")


KINDS = {"toy": toys.Toy, "shifting": Shifting, "noisy": Noisy, "broken": Broken}
CONFIGS = {
    "eager": toys.FLOOR, "cold": toys.COLD, "graph": toys.GRAPH, "static": toys.STATIC,
    "own repeat": replace(toys.STATIC, profiling_repeat=7)
    if hasattr(toys.STATIC, "profiling_repeat") else toys.STATIC,
    "short": replace(toys.STATIC, profiling_repeat=2)
    if hasattr(toys.STATIC, "profiling_repeat") else toys.STATIC,
}  # fmt: skip


@contextlib.contextmanager
def asking(at: int = 0, do: str = "") -> Iterator[None]:
    """Note each measurement; at the one of that number do something to this process."""
    own = AutoTuner._profile_single_kernel

    def asked(this: Any, runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
        counts = [getattr(this, name) for name in COUNTS]
        repeat = getattr(args[0], "profiling_repeat", None)
        ASKED.append([runner.op, type(runner).__name__, tactic, *counts, repeat])
        if at and len(ASKED) == at:
            act(do)
        return own(this, runner, inputs, tactic, *args, **kw)

    AutoTuner._profile_single_kernel = asked
    try:
        yield
    finally:
        AutoTuner._profile_single_kernel = own


def act(do: str) -> None:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "interrupt":
        raise KeyboardInterrupt
    else:
        time.sleep(float(do))


def runners_of(op: str, kind: str, number: int) -> list[Any]:
    """Return the runners of an op: two classes share the tactics of a pair."""
    if kind == "no room":
        return [toys.Toy(op, tactics=tuple(range(number))), NoRoom(op, ("none",))]
    if kind == "pair":
        half = range(number // 2)
        return [toys.Toy(op, tactics=tuple(half)), toys.Other(op, ("o",), tactics=tuple(half))]
    return [KINDS[kind](op, tactics=tuple(range(number)))]


def warm(
    engine: Engine, ops: dict[str, list[Any]], *, context: str = "plain", one_rank: str = "",
    at: int = 0, do: str = "", **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Warm up with a call for each op: name -> kind, number of tactics, config."""
    runners = {op: runners_of(op, kind, number) for op, (kind, number, _) in ops.items()}

    def forward() -> None:
        for op, (_, _, config) in ops.items():
            toys.let_time_pass, passes = toys.no_time, toys.let_time_pass
            toys.call(op, runners[op], CONFIGS[config], toys.rows(4), toys.WEIGHT)
            toys.let_time_pass = passes

    tuner = AutoTuner.get()
    before = {name: getattr(tuner, name) for name in COUNTS}
    options: dict[str, Any] = {"settings": Settings.from_env(**settings)}
    if context == "v2":
        options["tuning_context"] = lambda: flashinfer.autotune_v2(
            mode="tune", persistent_cache=False
        )
    elif context == "ties":
        options["tuning_context"] = lambda: autotune(True, tie_tolerance=0.5)
    if one_rank:
        options["ops"] = KNOWN_OPS.plus(one_rank={one_rank: "planted"})
    error = ""
    report: Any = None
    with asking(at, do):
        try:
            report = child.warm_unchecked(engine, forward, **options)
        except KeyboardInterrupt:
            error = "interrupted"
    after = {name: getattr(tuner, name) for name in COUNTS}
    left = {name for some in runners.values() for r in some for name in vars(r)}
    return {
        "report": report, "asked": ASKED, "restored": before == after, "error": error,
        "left": sorted(left), "hidden": child.left_behind(),
        "filter": "filter" in vars(getattr(tuner, "_blocklist", tuner)),
        "served": {
            op: toys.call(op, runners[op], CONFIGS[ops[op][2]], toys.rows(4), toys.WEIGHT)[1]
            for op in ops if not error
        },
    }  # fmt: skip
