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
from warmup_plugin.planning.inventory import Lots
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job


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
    job.waited.append({"at": "wait", "ranks": [0], "for": holder, "seconds": seconds})


def grow(job: Job, agreed: Agreed) -> bool:
    """Take in what the directory holds now, under the table all ranks have agreed on.

    Returns whether ``agreed`` has entries of another engine then that it did not have.
    """
    if job.store is None or not job.may_write:
        return False
    parts = job.store.read(job.stamp, identity=job.identity.digest).parts
    if not parts:
        return False
    mine = CachedTable(agreed.table, agreed.manifest, (0, 0, 0))
    union = merge([mine, *parts] if agreed.table.entries else parts)
    if union.table.entries.keys() <= agreed.table.entries.keys():
        return False
    agreed.table, agreed.manifest = replace(union.table, stamp=agreed.table.stamp), union.manifest
    return True


def answered(agreed: Agreed, lots: Lots) -> set[str]:
    """Return the tasks that the agreed table answers now, with one entry each.

    It answers none in which a process has died.
    """
    entries = agreed.table.entries
    held = {
        item.id: sum(key in entries for key in item.keys)
        for lot in lots
        for item in lot.items
        if item.state == "missing"
    }
    return {name for name, count in held.items() if count == 1} - agreed.deaths.keys()
