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

from warmup_plugin.table import Entry, Table, parse_table
from warmup_plugin.tuner import probe
from warmup_plugin.tuner.install import saved_document
from warmup_plugin.tuner.observe import Observations
from warmup_plugin.tuner.task import Call, Task

logger = logging.getLogger("warmup_plugin")


@dataclass(frozen=True)
class Outcome:
    """What tuning one task gave.

    ``winner`` is the index of the winning runner, ``entry`` its table entry; both None without a
    winner, ``reason`` says why then. Times in milliseconds, None where not measured.
    """

    task: str
    winner: int | None
    entry: Entry | None
    kind: str
    reason: str = ""
    ms: float | None = None
    default_ms: float | None = None
    began: float = 0.0
    seconds: float = 0.0


def tune(
    tasks: Iterable[Task], seen: Observations, on_task: Callable[[Task], None], *, empty: bool
) -> dict[str, Outcome]:
    """Time the tactics of every task on this rank; return the outcomes by task id.

    The tuner holds this rank's winners in memory afterwards. With ``empty`` it is emptied first, so
    that nothing loaded answers in place of a measurement.
    """
    tuner = probe.tuner()
    assert probe.open_contexts(tuner) == 0, "a tuning context is open in step 5"
    if empty:
        tuner.clear_cache()
    ordered = sorted(tasks, key=lambda task: task.call.memory_only_v2)
    measured: dict[str, Outcome] = {}
    with probe.no_process_group():
        for v2, group in itertools.groupby(ordered, key=lambda task: task.call.memory_only_v2):
            with probe.tuning_context(memory_only_v2=v2):
                for task in group:
                    on_task(task)
                    measured[task.id] = _tune_one(tuner, task, seen)
    table = parse_table(saved_document(tuner), limit=1 << 40)
    winners = table if isinstance(table, Table) else Table(stamp={}, entries={})
    return {task.id: _with_winner(measured[task.id], task, winners) for task in ordered}


def _tune_one(tuner: Any, task: Task, seen: Observations) -> Outcome:
    assert probe.process_group() is None, "FlashInfer's process group is set in step 5"
    seen.begin_task()
    began, stored = time.monotonic(), len(tuner.profiling_cache)
    reason, candidates = "", []
    for call in (task.call, *task.rivals):
        before = len(seen.times)
        try:
            with _as_recorded(call):
                tuner.choose_one(
                    call.op, call.runners, narrow(call.config, task.buckets), call.inputs,
                    **call.kwargs,
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # a broken runner costs its task, never the session
            reason = f"{type(error).__name__}: {error}"[:400]
            logger.warning("warmup-plugin: %s has no winner: %s", task.label, reason)
        candidates.append([(name, tactic) for name, tactic, _ in seen.times[before:]])
    kind = "default"
    if any(found != candidates[0] for found in candidates[1:]):
        kind, reason = "unshared", "one file key, runners with different candidates"
    elif len(tuner.profiling_cache) > stored:
        kind = "unstable"  # until the winner turns out to stand under a recorded key
    timed = [ms for _, _, ms in seen.times]
    if not reason and kind == "default":
        reason = "all tactics failed" if timed and min(timed) == float("inf") else "nothing to time"
        reason = "out of memory" if seen.times and not timed else reason
    defaults = [ms for name, tactic, ms in seen.times
                if tactic == -1 and name == type(task.call.runners[0]).__name__]  # fmt: skip
    best = min(timed, default=float("inf"))
    return Outcome(
        task.id, None, None, kind, reason,
        ms=best if best < float("inf") else None,
        default_ms=defaults[0] if defaults and defaults[0] < float("inf") else None,
        began=began, seconds=time.monotonic() - began,
    )  # fmt: skip


def _with_winner(outcome: Outcome, task: Task, table: Table) -> Outcome:
    """Find the winner under the recorded keys, in what FlashInfer itself would save."""
    if outcome.kind == "unshared":
        return outcome
    held = [(i, table.entries[key]) for i, key in enumerate(task.keys) if key in table.entries]
    if not held:
        if outcome.kind == "unstable":
            return replace(outcome, reason="the winner is stored under another key than looked up")
        return outcome
    index, entry = held[0]
    # FlashInfer drops these when it loads a table (`load_configs`): the tuner would serve them from
    # memory while every other rank served its default.
    if entry.runner.startswith("Cudnn") and isinstance(entry.tactic, int) and entry.tactic >= 0:
        return replace(outcome, kind="default", reason="an integer cuDNN tactic cannot be shared")
    return replace(outcome, winner=index, entry=entry, kind="tuned", reason="")


def narrow(config: Any, buckets: tuple[int, ...]) -> Any:
    """Return the config generating these buckets only, one per dynamic spec; its mapper is kept."""
    specs = tuple(
        replace(spec, gen_tuning_buckets=(bucket,))
        for spec, bucket in zip(config.dynamic_tensor_specs, buckets, strict=True)
    )
    return replace(config, dynamic_tensor_specs=specs)


def prepare(task: Task, entry: Entry) -> None:
    """Run a winner once, untimed, outside tuning mode, so that it is built before it serves.

    Raises whatever the runner raises: that winner cannot be served on this rank.
    """
    tuner, call = probe.tuner(), task.call
    runner = next(r for r in call.runners if type(r).__name__ == entry.runner)
    profile = probe.profiles(tuner, narrow(call.config, task.buckets), call.inputs)[0]
    with _as_recorded(call):
        inputs = probe.synthesise(tuner, profile, call.inputs, call.config)
        runner(inputs, tactic=entry.tactic, **call.kwargs)


def served(task: Task) -> tuple[str, Any] | None:
    """Return what the tuner serves for a task outside tuning: (runner class, tactic), or None."""
    call = task.call
    with _as_recorded(call):
        found, index, tactic, _ = probe.tuner().search_cache(
            call.op, call.runners, task.shapes, call.config, inputs=call.inputs
        )
    return (type(call.runners[index]).__name__, tactic) if found else None


@contextlib.contextmanager
def _as_recorded(call: Call) -> Iterator[None]:
    """Run the body in the call's inference mode and on its stream."""
    stream = torch.cuda.stream(call.stream) if call.stream is not None else contextlib.nullcontext()
    with torch.inference_mode(call.inference), stream:
        yield
