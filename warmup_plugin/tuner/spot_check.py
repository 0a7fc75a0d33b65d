# SPDX-License-Identifier: Apache-2.0
"""A few stored winners, timed against FlashInfer's default on this machine.

Owns which calls are kept for that (`Sample`) and how both are timed: by FlashInfer's profiler, on
inputs that FlashInfer makes for the task's bucket, by turns. Stores nothing, and nothing that is
served changes.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Final

from warmup_plugin.cache.table import Entry
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.build import runner_of
from warmup_plugin.tuner.counters import Observations
from warmup_plugin.tuner.default_tactic import DEFAULT
from warmup_plugin.tuner.recorded import as_recorded, narrow
from warmup_plugin.tuner.task import Task

#: Both are timed so often, one after the other; the least time of each counts.
_TURNS: Final = 2
#: So many times the number is drawn: this rank does not meet the tasks of another stage.
_DRAWN: Final = 8


class Sample:
    """Which tasks of a survey are checked: at most ``number``, drawn among these file keys.

    ``without``: ops of which none is, since what is timed leaves its traces on the rank. ``tasks``:
    the ids of those that the forward has met, whose calls are kept.
    """

    def __init__(self, keys: Collection[str], number: int, without: Collection[str]) -> None:
        self._number, self._without = number, without
        self._keys = frozenset(random.sample([*keys], min(_DRAWN * number, len(keys))))
        self.tasks: list[str] = []

    def takes(self, task: Task) -> bool:
        """Return whether a task is checked."""
        is_left = len(self.tasks) < self._number and task.op not in self._without
        is_taken = is_left and not self._keys.isdisjoint(task.keys)
        if is_taken:
            self.tasks.append(task.id)
        return is_taken


def time_both(task: Task, entry: Entry, key: str, seen: Observations) -> tuple[float, float]:
    """Return the milliseconds of a winner and of FlashInfer's default, each the least of several.

    ``key``: the winner's file key. Raises what stands in the way.
    """
    tuner, call = compat.tuner(), task.recorded()
    config = narrow(call.config, task.buckets)
    rivals = ((runner_of(task, entry, key), entry.tactic), (call.runners[0], DEFAULT))
    found: list[tuple[float, ...]] = []
    with (
        compat.no_process_group(), compat.no_bars(), seen.uncounted(),
        compat.tuning_context(call.options), as_recorded(call),
    ):  # fmt: skip
        profile = compat.profiles(tuner, config, call.inputs)[0]
        inputs = compat.synthesise(tuner, profile, call.inputs, call.config)
        for _ in range(_TURNS):
            times = [
                seen.time_apart(runner, inputs, tactic, config, **call.kwargs)
                for runner, tactic in rivals
            ]
            found.append(tuple(times))
    ours, defaults = zip(*found, strict=True)
    return min(ours), min(defaults)
