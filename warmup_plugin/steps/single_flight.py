# SPDX-License-Identifier: Apache-2.0
"""Engines that start cold on one directory, or in one fleet: one tunes, the others wait and adopt.

Owns whose turn it is, and the waits for it, between two rounds of step 4 and in no decision. They
end when the other engine has published or is gone, and after ``replica_wait_s`` together in any
case; then this engine tunes what is still missing.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.lease import hold
from warmup_plugin.cache.merge import merge
from warmup_plugin.observability.report_rows import Wait
from warmup_plugin.planning.assignment import Plan
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.read import known_defaults
from warmup_plugin.steps.work import Work

#: What is waited for where it is not an engine on the same directory.
_FLEET: Final = "the fleet"


class Turns(msgspec.Struct):
    """Whom rank 0 has waited for before the job tunes, and until when it may.

    ``is_here``: the directory's turn is this engine's, or is not waited for any longer.
    ``answered``: tasks that an entry has come to answer since the survey.
    """

    until: float = 0.0
    is_here: bool = False
    answered: frozenset[str] = frozenset()

    def next(self, job: Job) -> str:
        """Return who is to be waited for next in this directory; nothing is waited for here."""
        if self.is_here:
            return ""
        holder = take_turn(job)
        self.is_here = not holder
        return holder

    def next_in_fleet(self, job: Job) -> str:
        """Return whether the fleet is to be waited for next, in words; empty where it is not."""
        is_over = self.until and time.monotonic() > self.until
        if job.fleet is None or is_over or not job.fleet.may_wait(job):
            return ""
        return _FLEET

    def await_next(self, job: Job, holder: str, plan: Plan) -> None:
        """Wait on rank 0, between two rounds, with this plan for what is left."""
        if not self.until:
            self.until = time.monotonic() + job.options.settings.replica_wait_s
        if not self.is_here:
            _await_directory(job, holder, self.until)
            self.is_here = True
        elif job.fleet is not None:
            job.fleet.await_turn(job, [*plan.tasks], self.until)


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


def _await_directory(job: Job, holder: str, until: float) -> None:
    """Wait for the ``holder`` of the directory's turn to end."""
    began = time.monotonic()
    limit_s = until - began

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
    """Take in what directory and fleet hold now, under the table all ranks have agreed on.

    Returns whether the ``base`` has entries of another engine then that it did not have.
    """
    adopted = job.fleet.adopted if job.fleet is not None else ""
    if job.store is None or not (job.may_write or adopted):
        return False
    parts, base = job.store.read(job.stamp, identity=job.identity.digest).parts, work.base
    if not parts:
        return False
    mine = CachedTable(base.table, base.manifest)
    union = merge([mine, *parts] if base.table.entries else parts)
    new = union.table.entries.keys() - base.table.entries.keys()
    if not new:
        return False
    if adopted:
        job.trace.lenders = {**job.trace.lenders, **dict.fromkeys(new, adopted)}
    work.base = union.changed(replace(union.table, stamp=base.table.stamp), union.manifest)
    return True


def answered(work: Work) -> set[str]:
    """Return the tasks that the table answers now, with one entry each, or is known not to."""
    entries, manifest = work.base.table.entries, work.base.manifest
    held = {
        item.id: sum(key in entries for key in item.keys)
        for lot in work.lots
        for item in lot.items
        if item.state == "missing"
    }
    found = {name for name, count in held.items() if count == 1}
    return found | (held.keys() & set(known_defaults(manifest) if manifest else ()))
