# SPDX-License-Identifier: Apache-2.0
"""Two engines that start cold on one directory: one tunes, the other waits and adopts.

Owns that wait, on rank 0 before anything is assigned. It ends when the other engine has published
or is gone, and after ``replica_wait_s`` in any case; then this engine tunes what is still missing.
"""

from __future__ import annotations

import contextlib
import time

from msgspec.structs import replace

from warmup_plugin.cache.lease import hold
from warmup_plugin.cache.merge import Part, merge
from warmup_plugin.planning.inventory import Lots
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job


def take_turn(job: Job, agreed: Agreed) -> bool:
    """Become the engine that tunes for this directory, until the session ends.

    Returns whether ``agreed`` has grown by what another engine has published meanwhile.
    """
    if job.store is None or not job.may_write or job.store.directory is None:
        return False
    directory = job.store.directory

    holder_was: list[str] = []

    def is_ours() -> bool:
        with contextlib.ExitStack() as turn:
            if holder := turn.enter_context(hold(directory)):
                job.coordinator.note("plan", f"waiting for {holder} to tune the same tasks")
                holder_was.append(holder)
                return False
            job.stack.push(turn.pop_all())  # ours until the session ends
            return True

    limit_s, began = job.options.settings.replica_wait_s, time.monotonic()
    try:
        wait_until(is_ours, within(limit_s))
    except TimeoutError:
        job.warn(f"another engine has tuned here for over {limit_s:.0f} s; not waiting any longer")
    if holder_was:
        seconds = round(time.monotonic() - began, 4)
        job.waited.append({"at": "plan", "ranks": [0], "for": holder_was[-1], "seconds": seconds})
    return _grow(job, agreed)


def _grow(job: Job, agreed: Agreed) -> bool:
    """Take in what the directory holds now, under the table all ranks have agreed on."""
    assert job.store is not None
    parts = job.store.read(job.stamp, identity=job.identity.digest).parts
    if not parts:
        return False
    mine = Part(agreed.table, agreed.manifest, (0, 0, 0))
    union = merge([mine, *parts] if agreed.table.entries else parts)
    if union.table.entries.keys() <= agreed.table.entries.keys():
        return False
    agreed.table, agreed.manifest = replace(union.table, stamp=agreed.table.stamp), union.manifest
    return True


def answered(agreed: Agreed, lots: Lots) -> set[str]:
    """Return the tasks of all ranks that the agreed table answers now, with one entry each."""
    entries = agreed.table.entries
    held = {
        item.id: sum(key in entries for key in item.keys)
        for lot in lots
        for item in lot.items
        if item.state == "missing"
    }
    return {name for name, count in held.items() if count == 1}
