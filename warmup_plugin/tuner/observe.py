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

import torch

from warmup_plugin.tuner import probe

#: Runner class, tactic, milliseconds; infinity for a tactic that failed.
Time = tuple[str, Any, float]
#: What FlashInfer answers by giving the whole call up.
_OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)


@dataclass
class Observations:
    """Counts of one session on one rank, and the times of the task in hand.

    Since `begin_task`: ``times``, (runner class, tactic, ms) of every tactic timed, infinity for
    one that failed; ``out_of_memory``, whether one of them, or making inputs, ran out of memory.
    """

    tactics_timed: int = 0
    inputs_synthesised: int = 0
    times: list[Time] = field(default_factory=list)
    out_of_memory: bool = False

    def begin_task(self) -> None:
        """Forget the task before."""
        self.times, self.out_of_memory = [], False


@contextlib.contextmanager
def observe() -> Iterator[Observations]:
    """Count measurements and synthesised inputs in the body."""
    tuner, seen = probe.tuner(), Observations()
    if not probe.probe().can_record:
        yield seen
        return
    profile, prepare = tuner._profile_single_kernel, tuner._prepare_input_tensors

    def profile_single_kernel(runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
        seen.tactics_timed += 1
        try:
            ms = profile(runner, inputs, tactic, *args, **kw)
        except BaseException as error:
            seen.times.append((type(runner).__name__, tactic, float("inf")))
            seen.out_of_memory |= isinstance(error, _OUT_OF_MEMORY)
            raise
        seen.times.append((type(runner).__name__, tactic, ms))
        return ms

    def prepare_input_tensors(*args: Any, **kw: Any) -> Any:
        seen.inputs_synthesised += 1
        try:
            return prepare(*args, **kw)
        except _OUT_OF_MEMORY:
            seen.out_of_memory = True
            raise

    tuner._profile_single_kernel = profile_single_kernel
    tuner._prepare_input_tensors = prepare_input_tensors
    try:
        yield seen
    finally:
        del tuner._profile_single_kernel, tuner._prepare_input_tensors
