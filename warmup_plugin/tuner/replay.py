# SPDX-License-Identifier: Apache-2.0
"""Steps 5 and 7: tune recorded tasks through FlashInfer's own ``choose_one``; build winners.

Owns how a task is replayed: the recorded runner copy, inputs and effective config with only the
bucket generator narrowed to the task's bucket, so that keys come out as the whole call's would.
One tuning context at a time, FlashInfer's process group unset. A task that fails has no winner, and
says why; only interrupts leave `tune`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from warmup_plugin.table import Entry, Tactic, canonical_tactic
from warmup_plugin.tuner import probe
from warmup_plugin.tuner.observe import Observations
from warmup_plugin.tuner.race import DEFAULT, beats_default, is_alone, racing_default, times_of
from warmup_plugin.tuner.task import Call, Task

logger = logging.getLogger("warmup_plugin")


@dataclass(frozen=True)
class Outcome:
    """What tuning one task gave.

    ``winner`` is the index of the winning runner, ``entry`` its table entry; both None without a
    winner, ``reason`` says why then. ``ms`` is the fastest tactic's time and ``default_ms`` that of
    FlashInfer's default, None where not measured: each the mean of ``samples``.
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
    tuner = probe.tuner()
    assert probe.open_contexts(tuner) == 0, "a tuning context is open in step 5"
    if empty:
        probe.clear(tuner)
    try:
        with probe.no_process_group(), probe.no_bars():
            for v2, group in itertools.groupby(tasks, key=_is_v2):
                with probe.tuning_context(memory_only_v2=v2):
                    for task in group:
                        on_task(task)
                        yield _tune_one(tuner, task, seen, margin)
    finally:
        probe.forget_profiles(tuner)


def _is_v2(task: Task) -> bool:
    return task.recorded().memory_only_v2


def _tune_one(tuner: Any, task: Task, seen: Observations, margin: float) -> Outcome:
    assert probe.process_group() is None, "FlashInfer's process group is set in step 5"
    seen.begin_task()
    began, stored = time.monotonic(), len(tuner.profiling_cache)
    error, candidates = "", []
    for call in (task.recorded(), *task.rivals):
        before = len(seen.times)
        config = narrow(call.config, task.buckets)
        with_default = racing_default(call.runners) if margin else contextlib.nullcontext()
        try:
            with _as_recorded(call), with_default:
                tuner.choose_one(call.op, call.runners, config, call.inputs, **call.kwargs)
        except Exception as raised:  # noqa: BLE001  # a broken runner costs its task, never the session
            error = f"{type(raised).__name__}: {raised}"[:400]
            logger.warning("warmup-plugin: %s has no winner: %s", task.label, error)
        candidates.append([(name, tactic) for name, tactic, _ in seen.times[before:]])
    winners = probe.winners_since(tuner, stored)
    recorded = task.recorded()
    ms, default_ms = times_of(type(recorded.runners[0]).__name__, seen.times)
    outcome = Outcome(
        task.id, ms=ms, default_ms=default_ms, samples=probe.samples_of(tuner, recorded.config),
        candidates=len(candidates[0]), began=began, seconds=time.monotonic() - began,
    )  # fmt: skip
    if any(found != candidates[0] for found in candidates[1:]):
        task.state, task.reason = "unshared", "one file key, runners with different candidates"
        return replace(outcome, kind="unshared", reason=task.reason)
    found = _with_winner(outcome, task, winners, error, seen)
    if found.entry is None or beats_default(ms, default_ms, margin):
        return found
    if is_alone(seen.times) and not recorded.memory_only_v2:  # it raced for our sake only
        return replace(outcome, reason=_why_none(seen))
    return _with_default(found, task, margin)


def _with_default(outcome: Outcome, task: Task, margin: float) -> Outcome:
    """Return the outcome with FlashInfer's default for a winner: an entry, so that it is known.

    No entry where FlashInfer would ask the runner about it at every lookup.
    """
    assert outcome.entry is not None
    first = task.recorded().runners[0]
    reason = f"nothing is faster than the default by {margin:.0%}"
    if hasattr(first, "validate_tactic"):
        return replace(outcome, kind="default", winner=None, entry=None, reason=reason)
    entry = Entry(type(first).__name__, DEFAULT, outcome.entry.policy)
    return replace(outcome, winner=0, entry=entry, reason=reason)


def _with_winner(
    outcome: Outcome, task: Task, stored: list[probe.Winner], error: str, seen: Observations
) -> Outcome:
    """Find the winner among what FlashInfer has stored, under the keys recorded in the survey."""
    found = [(task.keys.index(w.key), w) for w in stored if w.key in task.keys]
    if not found:
        if stored:
            reason = "the winner is stored under another key than looked up"
            return replace(outcome, kind="unstable", reason=reason)
        return replace(outcome, reason=error or _why_none(seen))
    index, winner = found[0]
    try:
        tactic = canonical_tactic(winner.tactic)
    except (TypeError, ValueError) as unfit:
        return replace(outcome, reason=str(unfit))
    # FlashInfer drops these when it loads a table (`load_configs`): the tuner would serve them from
    # memory while every other rank served its default.
    if winner.runner.startswith("Cudnn") and isinstance(tactic, int) and tactic >= 0:
        return replace(outcome, reason="an integer cuDNN tactic cannot be shared")
    policy = probe.policy_of(task.recorded().config)
    return replace(outcome, kind="tuned", winner=index, entry=Entry(winner.runner, tactic, policy))


def _why_none(seen: Observations) -> str:
    if seen.out_of_memory:
        return "out of memory"
    is_timed = any(tactic != DEFAULT for _, tactic, _ in seen.times)
    return "all tactics failed" if is_timed else "no tactic was timed"


def narrow(config: Any, buckets: tuple[int, ...]) -> Any:
    """Return the config generating these buckets only, one per dynamic spec; its mapper is kept."""
    specs = tuple(
        replace(spec, gen_tuning_buckets=(bucket,))
        for spec, bucket in zip(config.dynamic_tensor_specs, buckets, strict=True)
    )
    return replace(config, dynamic_tensor_specs=specs)


class RefusedError(ValueError):
    """A stored tactic that its runner does not offer."""


def prepare(task: Task, entry: Entry, *, at_bucket: bool = True) -> None:
    """Run a winner once, untimed, outside tuning mode, so that it is built before it serves.

    At its bucket, and at the size of the recorded call if that is served by this task, too: a
    tactic need not take every size between two buckets. Raises `RefusedError` where its runner is
    not there or refuses the tactic, and whatever it raises: that winner cannot be served here.
    """
    tuner, call = probe.tuner(), task.recorded()
    runner = next((r for r in call.runners if type(r).__name__ == entry.runner), None)
    if runner is None:
        raise RefusedError(f"no runner is called {entry.runner!r}")
    sizes = [task.buckets] if at_bucket or hasattr(runner, "validate_tactic") else []
    own = task.recorded_buckets()
    if own != task.buckets and probe.nearest_profile(
        _shapes(call.inputs), call.config
    ) == probe.nearest_profile(task.shapes, call.config):
        sizes.append(own)
    for size in sizes:
        profile = probe.profiles(tuner, narrow(call.config, size), call.inputs)[0]
        with _as_recorded(call):
            inputs = probe.synthesise(tuner, profile, call.inputs, call.config)
            if not probe.accepts(runner, inputs, entry.tactic):
                raise RefusedError(f"{entry.runner} does not offer tactic {entry.tactic!r}")
            runner(inputs, tactic=entry.tactic, **call.kwargs)


def _shapes(inputs: list[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else (0,) for x in inputs)


def served(task: Task) -> tuple[str, Tactic] | None:
    """Return what the tuner serves for a task outside tuning: (runner class, tactic), or None.

    Where no call is kept to ask with: what it has loaded under the task's file keys.
    """
    call, tuner = task.call, probe.tuner()
    if call is None:
        return probe.loaded_answer(tuner, task.keys)
    with _as_recorded(call):
        found, index, tactic, _ = tuner.search_cache(
            call.op, call.runners, task.shapes, call.config, inputs=call.inputs
        )
        if not found and any(hasattr(runner, "validate_tactic") for runner in call.runners):
            # Asked with stand-ins, which are of another size and have no storage.
            profile = probe.profiles(tuner, narrow(call.config, task.buckets), call.inputs)[0]
            inputs = probe.synthesise(tuner, profile, call.inputs, call.config)
            found, index, tactic, _ = tuner.search_cache(
                call.op, call.runners, task.shapes, call.config, inputs=inputs
            )
    return (type(call.runners[index]).__name__, canonical_tactic(tactic)) if found else None


@contextlib.contextmanager
def _as_recorded(call: Call) -> Iterator[None]:
    """Run the body in the call's inference mode and on its stream."""
    stream = torch.cuda.stream(call.stream) if call.stream is not None else contextlib.nullcontext()
    with torch.inference_mode(call.inference), stream:
        yield
