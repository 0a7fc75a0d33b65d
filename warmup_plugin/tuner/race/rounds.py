# SPDX-License-Identifier: Apache-2.0
"""A race's rounds through FlashInfer's own ``choose_one`` and ``_profile_single_kernel``.

Round 1 is FlashInfer's own choice among all candidates, which it measures with smaller counts from
the sixteenth candidate on; with fewer it is the sweep, and there is no race. The later rounds have
FlashInfer time single candidates on the inputs of round 1. Then it chooses once more, among the
winner alone, and so stores it as it stores any. The op's way of timing (eager behind a delay, CUDA
graph, cold L2) is in its config and FlashInfer's alone: only counts change, and only while a
measurement lasts. Nothing is hung on a runner. The rule is in `rules.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from warmup_plugin.tuner import compat
from warmup_plugin.tuner.counters import Observations, Time
from warmup_plugin.tuner.default_tactic import DEFAULT
from warmup_plugin.tuner.race.counts import Counts, first_counts
from warmup_plugin.tuner.race.rules import FEWEST, SHORTEST, Verdict, race
from warmup_plugin.tuner.task import Task

_FAILED = float("inf")
#: A graph is launched at once: the delay before it is shorter than this.
_EAGER_MS = 1.0


def may_race(tuner: Any, task: Task) -> bool:
    """Return whether a task's candidates can be narrowed, and its winner is FlashInfer's alone.

    Not where runners of other calls share its key, whose candidates are compared, and not where
    the engine's context has FlashInfer settle near ties by a rule of its own.
    """
    options = task.recorded().options
    return compat.can_narrow(tuner) and not task.rivals and options.tie_tolerance is None


@dataclass
class Look:
    """Round 1: FlashInfer's way of measuring, and how many candidates it was offered."""

    own: Counts
    offered: int = 0

    @property
    def is_race(self) -> bool:
        """Return whether there are enough, and each would be timed for long enough, to gain."""
        return self.offered >= FEWEST and self.own.repeat >= SHORTEST


@contextlib.contextmanager
def first_round(tuner: Any, config: Any, seen: Observations) -> Iterator[Look]:
    """Have FlashInfer measure with the counts of round 1 in the body, where it is worth a race."""
    look = Look(Counts(*compat.counts_of(tuner, config)))

    def offer(_runner: Any, tactics: list[Any]) -> list[Any]:
        look.offered += len(tactics)
        if look.is_race:
            seen.counts = first_counts(look.own)
        return tactics

    try:
        with compat.narrowing(offer, told=True):
            yield look
    finally:
        seen.counts = None


@dataclass(frozen=True)
class Won:
    """Who has won. ``times`` are those of the finals, ``default_ms`` of the defaults given."""

    runner: Any
    tactic: Any
    times: tuple[Time, ...]
    default_ms: tuple[float, ...]
    verdict: Verdict


def later_rounds(own: Counts, seen: Observations, defaults: Sequence[Any]) -> Won:
    """Race the candidates that round 1 has timed; ``defaults`` are runners whose defaults race."""
    tried = list(seen.tried)
    first = [ms for _, _, ms in seen.times]
    beside = [_place_of(runner, tried) for runner in defaults]
    entrants = [*tried, *((runner, DEFAULT) for runner in defaults)]

    hosts: list[float] = []

    def measure(place: int, counts: Counts) -> float:
        began = time.monotonic()
        ms = seen.time_again(*entrants[place], counts)
        if ms < _FAILED and own.delay_ms >= _EAGER_MS:
            hosts.append((time.monotonic() - began) * 1000 - counts.cost_ms(ms))
        return ms

    places = [len(tried) + n if place is None else place for n, place in enumerate(beside)]
    # While the delay lasts the host launches what is timed; what it takes beyond all that keeps the
    # device busy is that of the launches before, and of waiting: of one launch, or more.
    verdict = race(first, own, measure, beside=places, host_ms=lambda: median(hosts or [0.0]))
    runner, tactic = entrants[verdict.winner]
    times = tuple(
        (type(entrants[place][0]).__name__, entrants[place][1], ms)
        for place, ms in verdict.times.items()
    )
    default_ms = tuple(verdict.times.get(place, _FAILED) for place in places)
    return Won(runner, tactic, times, default_ms, verdict)


def _place_of(runner: Any, tried: Sequence[tuple[Any, Any]]) -> int | None:
    """Return the place of a runner's default among the candidates, where the context has it."""
    found = (n for n, (other, tactic) in enumerate(tried) if other is runner and tactic == DEFAULT)
    return next(found, None)


def store(tuner: Any, seen: Observations, won: Won, own: Counts, choose: Callable[[], Any]) -> bool:
    """Have FlashInfer choose among the winner alone; return whether it was offered again.

    In ``autotune_v2`` it has the default in that choice, too, and the last word.
    """
    seen.forget_inputs()  # or there would be two sets of them
    offered = 0

    def only(runner: Any, tactics: list[Any]) -> list[Any]:
        nonlocal offered
        kind = type(won.tactic)
        kept = [t for t in tactics if runner is won.runner and type(t) is kind and t == won.tactic]
        offered += len(kept)
        return kept

    seen.counts = None if compat.in_v2_context(tuner) else first_counts(own)
    try:
        with compat.narrowing(only):
            choose()
    finally:
        seen.counts = None
    return bool(offered) or won.tactic == DEFAULT
