# SPDX-License-Identifier: Apache-2.0
"""Steps 5 and 7: tune recorded tasks through FlashInfer's own ``choose_one``; build winners.

Owns how a task is replayed: the recorded runner copy, inputs and effective config with only the
bucket generator narrowed to the task's bucket, so that keys come out as the whole call's would.
One tuning context at a time, FlashInfer's process group unset. A task that fails has no winner, and
says why: that is no fact about the task, and it is tuned again. Only interrupts leave `tune`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch

from warmup_plugin.cache.table import Entry, Tactic, canonical_tactic
from warmup_plugin.tuner import capture, compat
from warmup_plugin.tuner.counters import OUT_OF_MEMORY, Observations, Time
from warmup_plugin.tuner.default_tactic import DEFAULT, beats_default, time_of
from warmup_plugin.tuner.intercepted_call import dynamic_inputs
from warmup_plugin.tuner.task import Call, Shapes, Task

logger = logging.getLogger("warmup_plugin")


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


def tune(
    tasks: Iterable[Task],
    seen: Observations,
    on_task: Callable[[Task], None],
    *,
    empty: bool,
    margin: float = 0.0,
) -> Iterator[Outcome]:
    """Time the tactics of every task on this rank; yield each outcome as soon as it is known.

    The tuner holds this rank's winners in memory afterwards. With ``empty`` it is emptied first, so
    that nothing loaded answers in place of a measurement. A task is asked for when the one before
    has been dealt with. Beyond a ``margin`` of 0 the default is timed in any case, and serves
    unless the winner is faster by that share.
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
                        yield _tune_one(tuner, task, seen, margin)
    finally:
        compat.forget_profiles(tuner)


def _options(task: Task) -> compat.Options:
    return task.recorded().options


def _tune_one(tuner: Any, task: Task, seen: Observations, margin: float) -> Outcome:
    try:
        return _tuned(tuner, task, seen, margin)
    except Exception as raised:  # noqa: BLE001  # no memory to ask a runner with, or its own: it costs its task alone
        return Outcome(task.id, kind="failed", reason=_told(task, raised))


def _tuned(tuner: Any, task: Task, seen: Observations, margin: float) -> Outcome:
    assert compat.process_group() is None, "FlashInfer's process group is set in step 5"
    seen.begin_task()
    began, stored = time.monotonic(), len(tuner.profiling_cache)
    recorded = task.recorded()
    error, candidates = _run(tuner, task, recorded, seen)
    raced = tuple(seen.times)
    defaults = _time_defaults(task, seen, raced, margin)
    rivals = [_run(tuner, task, rival, seen) for rival in task.rivals]
    winners = compat.winners_since(tuner, stored)
    outcome = Outcome(
        task.id, default_ms=min(defaults.values(), default=None),
        samples=compat.samples_of(tuner, recorded.config), candidates=len(candidates),
        began=began, seconds=time.monotonic() - began,
    )  # fmt: skip
    if any(others != candidates for _, others in rivals):
        reason = "one file key, runners with different candidates"
        return msgspec.structs.replace(outcome, kind="unshared", reason=reason)
    error = next((said for said in (error, *(said for said, _ in rivals)) if said), "")
    found = _with_winner(outcome, task, winners, error, seen, raced=raced)
    if found.entry is None or beats_default(found.ms, found.default_ms, margin):
        return found
    fastest = min(defaults, key=lambda place: defaults[place])
    is_faster = recorded.options.memory_only_v2 and beats_default(defaults[fastest], found.ms, 0.0)
    is_found_elsewhere = found.winner != fastest and task.sized & {found.winner, fastest}
    if is_found_elsewhere and not is_faster:
        # An entry for the default would answer other sizes than the winner's does, and where the
        # one is found and not the other FlashInfer alone may serve what is faster. It stores one
        # itself only where the default is in its own race, and has won it.
        return found
    return _with_default(found, task, fastest, margin)


def _run(tuner: Any, task: Task, call: Call, seen: Observations) -> tuple[str, set[str]]:
    """Have FlashInfer choose at the task's bucket; return error, candidates.

    The candidates that it timed are named by runner class and tactic.
    """
    before, error = len(seen.times), ""
    config = narrow(call.config, task.buckets)
    try:
        with _as_recorded(call):
            inputs = _askable(call, task.shapes)
            tuner.choose_one(call.op, call.runners, config, inputs, **call.kwargs)
    except Exception as raised:  # noqa: BLE001  # a broken runner costs its task, never the session
        error = _told(task, raised)
    return error, {f"{name} {tactic!r}" for name, tactic, _ in seen.times[before:]}


def _told(task: Task, raised: Exception) -> str:
    error = f"{type(raised).__name__}: {raised}"[:400]
    logger.warning("warmup-plugin: %s has no winner: %s", task.label, error)
    return error


def _time_defaults(
    task: Task, seen: Observations, raced: Sequence[Time], margin: float
) -> dict[int, float]:
    """Return the time of each default that may serve, by the place of its runner's key.

    They are in the race where the engine's context has them there, and beyond a margin of 0. The
    batch may order an op's runners, and so choose another default at another call.
    """
    call, found = task.recorded(), dict[int, float]()
    if not (margin or call.options.memory_only_v2):
        return found
    for place in sorted(task.firsts):
        runner, before = call.runners[call.places[place]], len(seen.times)
        name, timed = type(runner).__name__, raced
        if call.places[place] or not any(time[:2] == (name, DEFAULT) for time in raced):
            with _as_recorded(call):
                seen.time_default(runner, DEFAULT)
            timed = seen.times[before:]
        if (ms := time_of(timed, name, DEFAULT)) is not None:
            found[place] = ms
    return found


def _askable(call: Call, shapes: Shapes) -> list[Any]:
    """Return the call's inputs at these shapes, of which a runner may be asked its key."""
    return capture.at_size(call.inputs, shapes, dynamic_inputs(call.config))


def _with_default(outcome: Outcome, task: Task, place: int, margin: float) -> Outcome:
    """Return the outcome with FlashInfer's default for a winner: an entry, so that it is found.

    No entry where the runner would refuse it, since FlashInfer asks it about any entry it finds.
    """
    assert outcome.entry is not None
    policy = outcome.entry.policy
    call = task.recorded()
    runner = call.runners[call.places[place]]
    by = f" by {margin:.0%}" if margin else ""
    outcome = msgspec.structs.replace(outcome, reason=f"nothing is faster than the default{by}")
    if not compat.accepts(runner, _askable(call, task.shapes), DEFAULT):
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
        inputs=_askable(call, task.shapes),
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


def narrow(config: Any, buckets: tuple[int, ...]) -> Any:
    """Return the config generating these buckets only, one per dynamic spec; its mapper is kept."""
    specs = tuple(
        replace(spec, gen_tuning_buckets=(bucket,))
        for spec, bucket in zip(config.dynamic_tensor_specs, buckets, strict=True)
    )
    return replace(config, dynamic_tensor_specs=specs)


class RefusedError(ValueError):
    """A stored tactic that its runner does not offer."""


def prepare(task: Task, entry: Entry, key: str = "", *, at_bucket: bool = True) -> None:
    """Run a winner once, untimed, outside tuning mode, so that it is built before it serves.

    ``key``: the file key under which it stands, which tells two runners of one class apart. At its
    bucket, and at the size of the recorded call if that is served by this task, too: a tactic need
    not take every size between two buckets. Raises `RefusedError` where its runner is not there or
    refuses the tactic, and whatever it raises: that winner cannot be served here.
    """
    tuner, call = compat.tuner(), task.recorded()
    places = (call.places[i] for i, own in enumerate(task.keys) if key in ("", own))
    runners = (call.runners[place] for place in places)
    runner = next((r for r in runners if type(r).__name__ == entry.runner), None)
    if runner is None:
        raise RefusedError(f"no runner is called {entry.runner!r}")
    if compat.is_blocked(tuner, call.op, runner, entry.tactic):
        raise RefusedError(f"{entry.runner}'s tactic {entry.tactic!r} is on FlashInfer's blocklist")
    sizes = [task.buckets] if at_bucket or hasattr(runner, "validate_tactic") else []
    own = task.recorded_buckets()
    if own != task.buckets and compat.nearest_profile(
        _shapes(call.inputs), call.config
    ) == compat.nearest_profile(task.shapes, call.config):
        sizes.append(own)
    for size in sizes:
        profile = compat.profiles(tuner, narrow(call.config, size), call.inputs)[0]
        with _as_recorded(call):
            inputs = compat.synthesise(tuner, profile, call.inputs, call.config)
            is_accepted = compat.accepts(runner, inputs, entry.tactic)
            if not is_accepted and size != task.buckets:
                continue  # FlashInfer looks past it at this size, as it does without this package
            if not is_accepted:
                raise RefusedError(f"{entry.runner} does not offer tactic {entry.tactic!r}")
            try:
                runner(inputs, tactic=entry.tactic, **call.kwargs)
            except OUT_OF_MEMORY:
                raise
            except Exception as error:  # at its bucket it has run: no trouble of this start
                if size == task.buckets:
                    raise
                at = "x".join(map(str, size))
                reason = f"{entry.runner}'s tactic {entry.tactic!r} does not take {at}: "
                raise RefusedError(f"{reason}{type(error).__name__}: {error}") from error


def _shapes(inputs: list[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else (0,) for x in inputs)


def served(task: Task) -> tuple[str, Tactic] | None:
    """Return what the tuner serves for a task outside tuning: (runner class, tactic), or None.

    Where no call is kept to ask with: what it has loaded under the task's file keys.
    """
    call, tuner = task.call, compat.tuner()
    if call is None:
        return compat.loaded_answer(tuner, task.keys)
    try:
        with _as_recorded(call):
            found, index, tactic, _ = tuner.search_cache(
                call.op, call.runners, task.shapes, call.config,
                inputs=_askable(call, task.shapes),
            )  # fmt: skip
    except Exception:  # noqa: BLE001  # no memory to ask with, or a key that cannot be told at this size
        return compat.loaded_answer(tuner, task.keys)
    return (type(call.runners[index]).__name__, canonical_tactic(tactic)) if found else None


@contextlib.contextmanager
def _as_recorded(call: Call) -> Iterator[None]:
    """Run the body in the call's inference mode and on its stream."""
    stream = torch.cuda.stream(call.stream) if call.stream is not None else contextlib.nullcontext()
    with torch.inference_mode(call.inference), stream:
        yield
