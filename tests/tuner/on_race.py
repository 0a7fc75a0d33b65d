# SPDX-License-Identifier: Apache-2.0
"""What `test_race.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashinfer.autotuner import AutoTuner

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.settings import Settings

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys

FORWARD: list[str] = []


class Timed(toys.Toy):
    """Tactics with known times; the default's is under -1."""

    def run(self, inputs: list[Any], tactic: Any, **_kwargs: Any) -> None:
        del inputs
        if FORWARD:
            return
        if (ms := self.times[tactic]) is None:
            raise ValueError("planted")
        toys.let_time_pass(ms)

    def __hash__(self) -> int:
        return hash(self.op)


def warm(
    engine: Engine, ops: Mapping[str, Mapping[str, float | None]], **settings: Any
) -> dict[str, Any]:
    """Warm up with a call for each op, at its batch 1 only; see what is served and what is left."""
    runners = {
        op: Timed(op, times={int(t): ms for t, ms in times.items()},
                  tactics=tuple(int(t) for t in times if t != "-1"))
        for op, times in ops.items()
    }  # fmt: skip

    def forward() -> None:
        for op, runner in runners.items():
            FORWARD.append(op)  # there nothing fails
            toys.call(op, [runner], toys.STATIC)
            FORWARD.clear()

    report = child.warm(engine, forward, settings=Settings.from_env(**settings))
    tuner = AutoTuner.get()
    served = {}
    for op, runner in runners.items():
        _, tactic = tuner.choose_one(op, [runner], toys.STATIC, [toys.rows(100), toys.WEIGHT])
        served[op] = tactic
    left = [name for runner in runners.values() for name in vars(runner) if "tactics" in name]
    return {"report": report, "served": served, "left": sorted(set(left))}
