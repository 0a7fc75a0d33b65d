# SPDX-License-Identifier: Apache-2.0
"""Two engines that start cold on one directory: one tunes, the other waits and adopts.

Owns whose turn it is, and the wait for it, between two rounds of step 4 and in no decision. It ends
when the other engine has published or is gone, and after ``replica_wait_s`` in any case; then this
engine tunes what is still missing.
"""

from __future__ import annotations

import contextlib
import time

from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.lease import hold
from warmup_plugin.cache.merge import merge
from warmup_plugin.observability.report_rows import Wait
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.work import Work


def take_turn(job: Job) -> str:
    """Become the engine that tunes for this directory until the session ends.

    Returns which other process does, or an empty string. Nothing is waited for.
    """
    if job.store is None or not job.may_write or job.store.directory is None:
        return ""
    with contextlib.ExitStack() as turn:
        if holder := turn.enter_context(hold(job.store.directory)):
            return holder
        job.stack.push(turn.pop_all())  # ours until the session ends
    return ""


def await_turn(job: Job, holder: str) -> None:
    """Wait on rank 0, at most ``replica_wait_s``, for the ``holder`` of the turn to end."""
    limit_s, began = job.options.settings.replica_wait_s, time.monotonic()

    def is_ours() -> bool:
        nonlocal holder
        if found := take_turn(job):
            holder = found
            job.coordinator.note("wait", f"for {holder} to tune the same tasks")
        return not found

    try:
        wait_until(is_ours, within(limit_s))
    except TimeoutError:
        job.warn(f"another engine has tuned here for over {limit_s:.0f} s; not waiting any longer")
    seconds = round(time.monotonic() - began, 4)
    job.trace.waited.append(Wait("wait", (0,), holder, seconds))


def grow(job: Job, work: Work) -> bool:
    """Take in what the directory holds now, under the table all ranks have agreed on.

    Returns whether the ``base`` has entries of another engine then that it did not have.
    """
    if job.store is None or not job.may_write:
        return False
    parts, base = job.store.read(job.stamp, identity=job.identity.digest).parts, work.base
    if not parts:
        return False
    mine = CachedTable(base.table, base.manifest)
    union = merge([mine, *parts] if base.table.entries else parts)
    if union.table.entries.keys() <= base.table.entries.keys():
        return False
    work.base = union.changed(replace(union.table, stamp=base.table.stamp), union.manifest)
    return True


def answered(work: Work) -> set[str]:
    """Return the tasks of all ranks that the table answers now, with one entry each."""
    entries = work.base.table.entries
    held = {
        item.id: sum(key in entries for key in item.keys)
        for lot in work.lots
        for item in lot.items
        if item.state == "missing"
    }
    return {name for name, count in held.items() if count == 1}
