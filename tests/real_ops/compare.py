# SPDX-License-Identifier: Apache-2.0
"""A case in three ways, each in a process of its own, and how what they came to compares.

A  alone: the case inside FlashInfer's own context.
B  cold: `warm_up` around the same case and context, on an empty root.
C  warm: the same once more, in a new process, on B's root.

Owns the comparison and its rules, which are exact. With a margin, B's winner differs from A's only
where the default was timed and is not slower by more than the margin; docs/differences.md has the
rules that users are told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flashinfer.autotuner import AutoTuner

from tests.real_ops.cases.case import Case
from tests.real_ops.contexts import CONTEXTS
from tests.real_ops.gpu import clock
from tests.real_ops.inside import alone, entries, logged, ours, served, tasks

#: A case with its tuning takes 1 to 20 s on a slow core; what takes this long hangs.
LIMIT_S = 150


@dataclass
class Outcome:
    """What one way of tuning a case came to."""

    entries: dict[str, list[Any]] = field(default_factory=dict)
    served: list[list[Any]] = field(default_factory=list)
    timed: int = 0
    synthesised: int = 0
    #: (runner, tactic, inputs, extras) that were profiled.
    profiled: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


class Counter:
    """Notes what FlashInfer's profiler is asked, and lets it work."""

    def __init__(self) -> None:
        self.timed = self.synthesised = 0
        self.profiled: set[str] = set()

    def install(self) -> None:
        tuner: Any = AutoTuner
        profile, prepare = tuner._profile_single_kernel, tuner._prepare_input_tensors

        def counted(this: Any, runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
            self.timed += 1
            extras = runner.get_cache_key_extras(inputs)
            said = (type(runner).__name__, tactic, list(inputs))
            self.profiled.add(repr((clock.canonical(said), str(extras))))
            return profile(this, runner, inputs, tactic, *args, **kw)

        def prepared(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.synthesised += 1
            return prepare(this, *args, **kwargs)

        tuner._profile_single_kernel, tuner._prepare_input_tensors = counted, prepared


def run(case: Case, way: str, context: str, root: Path, margin: float) -> Outcome:
    """Tune or warm up in this process, then serve."""
    outcome, counter, began = Outcome(), Counter(), time.monotonic()
    counter.install()
    torch.manual_seed(0)
    step = case.make()

    def forward() -> None:
        for _ in range(2):
            for size in case.sizes:
                step(size)

    with logged() as outcome.logged:
        if way == "alone":
            alone(forward, context)
        else:
            report = ours(forward, root, margin, tuning_context=CONTEXTS[context])
            outcome.report, outcome.tasks = report.to_json(), tasks(root)
    outcome.timed, outcome.synthesised = counter.timed, counter.synthesised
    outcome.profiled = sorted(counter.profiled)
    outcome.entries = entries()
    outcome.served = served(step, case.served)
    outcome.seconds = time.monotonic() - began
    return outcome
