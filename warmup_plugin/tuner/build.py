# SPDX-License-Identifier: Apache-2.0
"""Recorded tasks with a winner: built by one untimed run, and asked for what FlashInfer serves now.

Owns `prepare`, which runs a winner at the size of its task, and `served`, the answer that
FlashInfer gives to the recorded call.
"""

from __future__ import annotations

from typing import Any

from warmup_plugin.cache.table import Entry, Tactic, canonical_tactic
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.counters import OUT_OF_MEMORY
from warmup_plugin.tuner.intercepted_call import shapes_of
from warmup_plugin.tuner.recorded import as_recorded, askable, narrow
from warmup_plugin.tuner.task import Task


class RefusedError(ValueError):
    """A stored tactic that its runner does not offer."""


def prepare(task: Task, entry: Entry, key: str = "", *, at_bucket: bool = True) -> None:
    """Run a winner once, untimed, outside tuning mode, so that it is built before it serves.

    ``key``: the file key under which it stands, which tells two runners of one class apart. At its
    bucket, and at the size of the recorded call if that is served by this task, too: a tactic need
    not take every size between two buckets. Raises `RefusedError` where its runner is not there or
    refuses the tactic, and what it raises: that winner cannot be served here.
    """
    tuner, call, runner = compat.tuner(), task.recorded(), runner_of(task, entry, key)
    if compat.is_blocked(tuner, call.op, runner, entry.tactic):
        raise RefusedError(f"{entry.runner}'s tactic {entry.tactic!r} is on FlashInfer's blocklist")
    sizes = [task.buckets] if at_bucket or hasattr(runner, "validate_tactic") else []
    own = task.recorded_buckets()
    if own != task.buckets and compat.nearest_profile(
        shapes_of(call.inputs), call.config
    ) == compat.nearest_profile(task.shapes, call.config):
        sizes.append(own)
    for size in sizes:
        profile = compat.profiles(tuner, narrow(call.config, size), call.inputs)[0]
        with as_recorded(call):
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


def runner_of(task: Task, entry: Entry, key: str = "") -> Any:
    """Return the runner of an entry, which stands under this file key, or under any.

    Raises `RefusedError` where the call has none of its class.
    """
    call = task.recorded()
    places = (call.places[i] for i, own in enumerate(task.keys) if key in ("", own))
    runners = (call.runners[place] for place in places)
    runner = next((r for r in runners if type(r).__name__ == entry.runner), None)
    if runner is None:
        raise RefusedError(f"no runner is called {entry.runner!r}")
    return runner


def served(task: Task) -> tuple[str, Tactic] | None:
    """Return what the tuner serves for a task outside tuning: (runner class, tactic), or None.

    Where no call is kept to ask with: what it has loaded under the task's file keys.
    """
    call, tuner = task.call, compat.tuner()
    if call is None:
        return compat.loaded_answer(tuner, task.keys)
    try:
        with as_recorded(call):
            found, index, tactic, _ = tuner.search_cache(
                call.op, call.runners, task.shapes, call.config,
                inputs=askable(call, task.shapes),
            )  # fmt: skip
    except Exception:  # noqa: BLE001  # no memory to ask with, or a key that cannot be told at this size
        return compat.loaded_answer(tuner, task.keys)
    return (type(call.runners[index]).__name__, canonical_tactic(tactic)) if found else None
