# SPDX-License-Identifier: Apache-2.0
"""How the tactics of one recorded task are timed: through FlashInfer's own ``choose_one``.

Owns how a task is replayed: the recorded runner copy, inputs and effective config with only the
bucket generator narrowed to the task's bucket, so that keys come out as the whole call's would; as
one sweep or as a race, with the defaults that may serve beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from warmup_plugin.tuner import compat
from warmup_plugin.tuner.counters import Observations, Time
from warmup_plugin.tuner.default_tactic import DEFAULT, time_of
from warmup_plugin.tuner.race import rounds
from warmup_plugin.tuner.race.counts import Counts
from warmup_plugin.tuner.race.rules import Verdict
from warmup_plugin.tuner.recorded import as_recorded, askable, narrow
from warmup_plugin.tuner.task import Call, Task

logger = logging.getLogger("warmup_plugin")


class Measured(NamedTuple):
    """What was measured of a task: ``defaults`` by the places of their runners' keys."""

    error: str
    candidates: set[str]
    times: tuple[Time, ...]
    defaults: dict[int, float]
    verdict: Verdict | None = None


def measure(
    tuner: Any, task: Task, seen: Observations, margin: float, *, is_raced: bool
) -> Measured:
    """Race the candidates, or have FlashInfer sweep them: too few, or not to be narrowed."""
    call, stored = task.recorded(), len(tuner.profiling_cache)
    if not (is_raced and rounds.may_race(tuner, task)):
        error, candidates = run(tuner, task, call, seen)
    else:
        with rounds.first_round(tuner, call.config, seen) as look:
            error, candidates = run(tuner, task, call, seen)
        if look.is_race and compat.winners_since(tuner, stored):
            found = None
            if not error:
                found = _raced(tuner, task, seen, margin, own=look.own, stored=stored)
            if found is not None:
                return found._replace(candidates=candidates)
            # What round 1 alone has chosen is not what a sweep would have.
            compat.forget_since(tuner, stored)
            seen.begin_task()
            error, candidates = run(tuner, task, call, seen)
    times = tuple(seen.times)
    return Measured(error, candidates, times, _time_defaults(task, seen, times, margin))


def run(tuner: Any, task: Task, call: Call, seen: Observations) -> tuple[str, set[str]]:
    """Have FlashInfer choose at the task's bucket; return error, candidates.

    The candidates that it timed are named by runner class and tactic.
    """
    before, error = len(seen.times), ""
    config = narrow(call.config, task.buckets)
    try:
        with as_recorded(call):
            inputs = askable(call, task.shapes)
            tuner.choose_one(call.op, call.runners, config, inputs, **call.kwargs)
    except Exception as raised:  # noqa: BLE001  # a broken runner costs its task, never the session
        error = told(task, raised)
    return error, {f"{name} {tactic!r}" for name, tactic, _ in seen.times[before:]}


def told(task: Task, raised: Exception) -> str:
    """Log why a task has no winner; return it."""
    error = f"{type(raised).__name__}: {raised}"[:400]
    logger.warning("warmup-plugin: %s has no winner: %s", task.label, error)
    return error


def _raced(
    tuner: Any, task: Task, seen: Observations, margin: float, *, own: Counts, stored: int
) -> Measured | None:
    """Run the rounds after the first; None where the winner is not offered again."""
    call, places = task.recorded(), _default_places(task, margin)
    runners = [call.runners[call.places[place]] for place in places]
    with as_recorded(call):
        won = rounds.later_rounds(own, seen, runners)
    compat.forget_since(tuner, stored)
    if not rounds.store(tuner, seen, won, own, lambda: run(tuner, task, call, seen)):
        return None
    found = zip(places, won.default_ms, strict=True)
    defaults = {place: ms for place, ms in found if ms < float("inf")}
    return Measured("", set(), won.times, defaults, won.verdict)


def _time_defaults(
    task: Task, seen: Observations, raced: Sequence[Time], margin: float
) -> dict[int, float]:
    """Return the time of each default that may serve, by the place of its runner's key.

    They are in the race where the engine's context has them there, and beyond a margin of 0. The
    batch may order an op's runners, and so choose another default at another call.
    """
    call, found = task.recorded(), dict[int, float]()
    for place in _default_places(task, margin):
        runner, before = call.runners[call.places[place]], len(seen.times)
        name, timed = type(runner).__name__, raced
        if call.places[place] or not any(time[:2] == (name, DEFAULT) for time in raced):
            with as_recorded(call):
                seen.time_default(runner, DEFAULT)
            timed = seen.times[before:]
        if (ms := time_of(timed, name, DEFAULT)) is not None:
            found[place] = ms
    return found


def _default_places(task: Task, margin: float) -> list[int]:
    return sorted(task.firsts) if margin or task.recorded().options.memory_only_v2 else []
