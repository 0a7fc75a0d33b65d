# SPDX-License-Identifier: Apache-2.0
"""Step 5: tune recorded tasks one after the other; what has become of each.

Owns the loop, with one tuning context at a time and FlashInfer's process group unset, and how an
outcome is told from what FlashInfer has stored and what was measured (`measurement.py`). A task
that fails has no winner, and says why: that is no fact about the task, and it is tuned again. Only
interrupts leave `tune`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from warmup_plugin.cache.table import Entry, canonical_tactic
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.counters import Observations, Time
from warmup_plugin.tuner.default_tactic import DEFAULT, beats_default, time_of
from warmup_plugin.tuner.measurement import measure, run, told
from warmup_plugin.tuner.race.rules import Verdict
from warmup_plugin.tuner.recorded import askable
from warmup_plugin.tuner.task import Task


class Outcome(msgspec.Struct, frozen=True):
    """What tuning one task gave.

    ``kind``: tuned; adopted, where the winner at another size of its bucket answers it; default,
    where FlashInfer offers no candidate; failed, where something was in the way that may be gone at
    the next start (memory, a compiler); unshared, where each rank has to tune it for itself.
    ``winner`` is the index of the winning runner's key, ``entry`` its table entry; both None
    without a winner, ``reason`` says why then. ``ms`` is the time of FlashInfer's choice and
    ``default_ms`` that of FlashInfer's default, None where not measured: each the mean of
    ``samples``.
    """

    task: str
    kind: str = "default"
    winner: int | None = None
    entry: Entry | None = None
    reason: str = ""
    ms: float | None = None
    default_ms: float | None = None
    samples: int | None = None
    candidates: int = 0
    began: float = 0.0
    seconds: float = 0.0
    race: Verdict | None = None


def tune(
    tasks: Iterable[Task],
    seen: Observations,
    on_task: Callable[[Task], None],
    *,
    empty: bool,
    margin: float = 0.0,
    raced: Callable[[Task], bool] = lambda _task: False,
) -> Iterator[Outcome]:
    """Time the tactics of every task on this rank; yield each outcome as soon as it is known.

    The tuner holds this rank's winners in memory afterwards. With ``empty`` it is emptied first, so
    that nothing loaded answers in place of a measurement. A task is asked for when the one before
    has been dealt with. Beyond a ``margin`` of 0 the default is timed in any case, and serves
    unless the winner is faster by that share. ``raced`` says which tasks may be raced.
    """
    tuner = compat.tuner()
    assert compat.open_contexts(tuner) == 0, "a tuning context is open in step 5"
    if empty:
        compat.clear(tuner)
    try:
        with compat.no_process_group(), compat.no_bars(), seen.replaying():
            for options, group in itertools.groupby(tasks, key=_options):
                with compat.tuning_context(options):
                    for task in group:
                        on_task(task)
                        yield _tune_one(tuner, task, seen, margin, is_raced=raced(task))
    finally:
        compat.forget_profiles(tuner)


def _options(task: Task) -> compat.Options:
    return task.recorded().options


def _tune_one(
    tuner: Any, task: Task, seen: Observations, margin: float, *, is_raced: bool
) -> Outcome:
    try:
        return _tuned(tuner, task, seen, margin, is_raced=is_raced)
    except Exception as raised:  # noqa: BLE001  # no memory to ask a runner with, or its own: it costs its task alone
        return Outcome(task.id, kind="failed", reason=told(task, raised))


def _tuned(tuner: Any, task: Task, seen: Observations, margin: float, *, is_raced: bool) -> Outcome:
    assert compat.process_group() is None, "FlashInfer's process group is set in step 5"
    seen.begin_task()
    began, stored = time.monotonic(), len(tuner.profiling_cache)
    recorded = task.recorded()
    measured = measure(tuner, task, seen, margin, is_raced=is_raced)
    rivals = [run(tuner, task, rival, seen) for rival in task.rivals]
    winners = compat.winners_since(tuner, stored)
    outcome = Outcome(
        task.id, default_ms=min(measured.defaults.values(), default=None),
        samples=compat.samples_of(tuner, recorded.config), candidates=len(measured.candidates),
        began=began, seconds=time.monotonic() - began,
    )  # fmt: skip
    if (race := measured.verdict) is not None:
        outcome = msgspec.structs.replace(outcome, samples=race.samples, race=race)
    if any(others != measured.candidates for _, others in rivals):
        reason = "one file key, runners with different candidates"
        return msgspec.structs.replace(outcome, kind="unshared", reason=reason)
    error = next((said for said in (measured.error, *(said for said, _ in rivals)) if said), "")
    found = _with_winner(outcome, task, winners, error, seen, raced=measured.times)
    if found.entry is None or beats_default(found.ms, found.default_ms, margin):
        return found
    defaults = measured.defaults
    fastest = min(defaults, key=lambda place: defaults[place])
    is_faster = recorded.options.memory_only_v2 and beats_default(defaults[fastest], found.ms, 0.0)
    is_found_elsewhere = found.winner != fastest and task.sized & {found.winner, fastest}
    if is_found_elsewhere and not is_faster:
        # An entry for the default would answer other sizes than the winner's does, and where the
        # one is found and not the other FlashInfer alone may serve what is faster. It stores one
        # itself only where the default is in its own race, and has won it.
        return found
    return _with_default(found, task, fastest, margin)


def _with_default(outcome: Outcome, task: Task, place: int, margin: float) -> Outcome:
    """Return the outcome with FlashInfer's default for a winner: an entry, so that it is found.

    No entry where the runner would refuse it, since FlashInfer asks it about any entry it finds. It
    serves the default of the first runner then, and the batch may put another one first: where
    there are several, the winner that it has found stands.
    """
    assert outcome.entry is not None
    policy = outcome.entry.policy
    call = task.recorded()
    runner = call.runners[call.places[place]]
    by = f" by {margin:.0%}" if margin else ""
    is_accepted = compat.accepts(runner, askable(call, task.shapes), DEFAULT)
    if not is_accepted and len(call.runners) > 1:
        return outcome
    outcome = msgspec.structs.replace(outcome, reason=f"nothing is faster than the default{by}")
    if not is_accepted:
        return msgspec.structs.replace(outcome, kind="default", winner=None, entry=None)
    entry = Entry(type(runner).__name__, DEFAULT, policy)
    return msgspec.structs.replace(outcome, winner=place, entry=entry)


def _with_winner(
    outcome: Outcome,
    task: Task,
    stored: list[compat.Winner],
    error: str,
    seen: Observations,
    *,
    raced: Sequence[Time],
) -> Outcome:
    """Find the winner among what FlashInfer has stored, under the keys recorded in the survey.

    ``raced``: the times of FlashInfer's own race, without those of a default timed after it.
    """
    found = [(task.keys.index(w.key), w) for w in stored if w.key in task.keys]
    if not found:
        if stored:
            reason = "its winner is stored under another key than looked up"
            return msgspec.structs.replace(outcome, kind="unshared", reason=reason)
        if task.bucket_id and not (seen.times or error):
            answered = _of_another_size(outcome, task)
            if answered is not None:
                return answered
        return _without_winner(outcome, error, seen)
    index, winner = found[0]
    try:
        tactic = canonical_tactic(winner.tactic)
    except (TypeError, ValueError) as unfit:
        return msgspec.structs.replace(outcome, kind="unshared", reason=str(unfit))
    # FlashInfer drops these when it loads a table (`load_configs`): the tuner would serve them from
    # memory while every other rank served its default.
    if winner.runner.startswith("Cudnn") and isinstance(tactic, int) and tactic >= 0:
        reason = "an integer cuDNN tactic cannot be shared"
        return msgspec.structs.replace(outcome, kind="unshared", reason=reason)
    entry = Entry(winner.runner, tactic, compat.policy_of(task.recorded().config))
    ms = time_of(raced, winner.runner, winner.tactic)
    return msgspec.structs.replace(outcome, kind="tuned", winner=index, entry=entry, ms=ms)


def _of_another_size(outcome: Outcome, task: Task) -> Outcome | None:
    """Return the winner at another size of the bucket, where FlashInfer has found that one."""
    call = task.recorded()
    found, index, tactic = compat.look_up(
        compat.tuner(), call.op, call.runners, task.shapes, call.config,
        inputs=askable(call, task.shapes),
    )  # fmt: skip
    if not found:
        return None
    entry = Entry(
        type(call.runners[index]).__name__, canonical_tactic(tactic), compat.policy_of(call.config)
    )
    reason = "the winner at another size of its bucket"
    winner = call.places.index(index)
    return msgspec.structs.replace(
        outcome, kind="adopted", winner=winner, entry=entry, reason=reason
    )


def _without_winner(outcome: Outcome, error: str, seen: Observations) -> Outcome:
    """Tell what says something about the task from what was only in the way this time."""
    if error:
        return msgspec.structs.replace(outcome, kind="failed", reason=error)
    # FlashInfer gives an op up where making inputs or listing candidates finds no memory; else it
    # looks for the winner once more at the end.
    if seen.out_of_memory or seen.lookups % 2:
        return msgspec.structs.replace(outcome, kind="failed", reason="out of memory")
    if any(tactic != DEFAULT for _, tactic, _ in seen.times):
        reason = f"all tactics failed, the first with {seen.first_error}"
        return msgspec.structs.replace(outcome, kind="failed", reason=reason)
    return msgspec.structs.replace(outcome, reason="no tactic was timed")
