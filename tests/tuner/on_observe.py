# SPDX-License-Identifier: Apache-2.0
"""What `test_observe.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.tuner.counters import observe

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys


class Failing(toys.Toy):
    error: type[Exception] = ValueError

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        if tactic != -1:
            raise self.error("planted")
        super().run(inputs, tactic, **kwargs)


def tune(_engine: Engine) -> dict[str, Any]:
    with child.counting() as counts, observe() as seen:
        with autotune(True):
            toys.toy_call()
        tuned, left = seen.times, child.left_behind()
    assert left == ["_prepare_input_tensors", "_profile_single_kernel"]
    return {
        "tactics_timed": seen.tactics_timed,
        "inputs_synthesised": seen.inputs_synthesised,
        "counts": counts,
        "times": [(name, tactic, round(ms, 9)) for name, tactic, ms in tuned],
        "expected": [
            ("Toy", tactic, round(toys.cost("toy", "Toy", bucket, tactic), 9))
            for bucket in toys.BUCKETS
            for tactic in (0, 1, 2, (3, 4))
        ],
        "left": child.left_behind(),
    }


def fail(_engine: Engine) -> dict[str, Any]:
    def no_memory(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("planted")

    one_bucket = replace(toys.FLOOR.dynamic_tensor_specs[0], gen_tuning_buckets=(4,))
    config = replace(toys.FLOOR, dynamic_tensor_specs=(one_bucket,))
    starved = replace(config, tensor_initializers=((0, no_memory),))
    failing, hungry = Failing("failing", tactics=(0, 1)), Failing("hungry", tactics=(0, 1))
    hungry.error = MemoryError
    found = {}
    with observe() as seen, autotune(True):
        for name, runner, chosen in (
            ("error", failing, config),
            ("memory", hungry, config),
            ("inputs", toys.Toy("starved"), starved),
            ("fine", toys.Toy("fine"), config),
        ):
            seen.begin_task()
            toys.call(name, [runner], chosen)
            times = [(kind, t, "inf" if ms == float("inf") else ms) for kind, t, ms in seen.times]
            found[name] = (times, seen.out_of_memory)
    return found


def interrupted(_engine: Engine) -> list[str]:
    with contextlib.suppress(KeyboardInterrupt), observe():
        raise KeyboardInterrupt
    assert AutoTuner.get().choose_one.__func__ is AutoTuner.choose_one
    return child.left_behind()
