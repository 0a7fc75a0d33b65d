# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer measures during a session, seen from outside.

Owns pass-through attributes on the tuner *object* that count and note; FlashInfer's own functions
do all the work and stay where they are. Gone when the session ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from warmup_plugin.tuner import probe


@dataclass
class Observations:
    """Counts of one session on one rank, and the times of the task in hand.

    ``times``: (runner class, tactic, ms) of every tactic timed since `begin_task`; infinity for one
    that failed.
    """

    tactics_timed: int = 0
    inputs_synthesised: int = 0
    times: list[tuple[str, Any, float]] = field(default_factory=list)

    def begin_task(self) -> None:
        """Forget the times of the task before."""
        self.times = []


@contextlib.contextmanager
def observe() -> Iterator[Observations]:
    """Count measurements and synthesised inputs in the body."""
    tuner = probe.tuner()
    seen = Observations()
    profile, prepare = tuner._profile_single_kernel, tuner._prepare_input_tensors

    def profile_single_kernel(runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
        seen.tactics_timed += 1
        try:
            ms = profile(runner, inputs, tactic, *args, **kw)
        except BaseException:
            seen.times.append((type(runner).__name__, tactic, float("inf")))
            raise
        seen.times.append((type(runner).__name__, tactic, ms))
        return ms

    def prepare_input_tensors(*args: Any, **kw: Any) -> Any:
        seen.inputs_synthesised += 1
        return prepare(*args, **kw)

    tuner._profile_single_kernel = profile_single_kernel
    tuner._prepare_input_tensors = prepare_input_tensors
    try:
        yield seen
    finally:
        del tuner._profile_single_kernel, tuner._prepare_input_tensors
