# SPDX-License-Identifier: Apache-2.0
"""What starts that did not finish have left in their journals, and when it may go.

Owns the way of a journal's records into this start: what was found is one more table, which every
rank tries apart before it serves it; a task in which a process has died once is found out anew,
last of all, and after a second death serves its default until driver or operator changes that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.journal import (
    Death,
    Past,
    deaths_in,
    read_journals,
    remove,
    remove_session,
    shorten,
)
from warmup_plugin.cache.journal_records import Found
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.stamps import stamp_conflicts
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.cache.task_result import LASTING
from warmup_plugin.steps.context import Job
from warmup_plugin.tuner import environment


class Resumed(msgspec.Struct):
    """What the journals of one directory come to."""

    parts: list[CachedTable] = msgspec.field(default_factory=list)
    deaths: Mapping[str, Death] = msgspec.field(default_factory=dict)


def resume(job: Job, store: Store) -> Resumed:
    """Read the journals beside this node's tables."""
    if store.directory is None:
        return Resumed()
    journals = read_journals(store.directory, job.options.settings.table_bytes)
    if not journals:
        return Resumed()
    if job.may_write:
        remove(p for p in journals if p.is_dead and not p.found and p.in_hand is None)
    deaths = deaths_in(journals, environment.driver())
    past = [
        p for p in journals if not p.is_running and not stamp_conflicts(p.opened.stamp, job.stamp)
    ]
    rows = (found for p in past for found in p.found)
    part = part_of(rows, job.stamp, identity=job.identity.digest, without=deaths)
    manifest = part.manifest
    if manifest is None or not manifest.tasks:
        return Resumed(deaths=deaths)
    return Resumed([part], deaths)


def part_of(
    rows: Iterable[Found],
    stamp: Mapping[str, str],
    *,
    identity: str = "",
    without: Collection[str] = (),
) -> CachedTable:
    """Return journal records as a table; the first one of a task counts.

    No manifest vouches for the entries: so far they have run on one rank only.
    """
    from warmup_plugin.planning.merge_results import record_of  # not where there is no journal

    entries: dict[str, Entry] = {}
    tasks: dict[str, TaskRecord] = {}
    for row in rows:
        name, result = row.result.task, row.result
        if name in tasks or name in without or result.kind not in LASTING:
            continue
        if result.kind == "tuned":
            winner = -1 if result.winner is None else result.winner
            if result.entry is None or not 0 <= winner < len(row.keys):
                continue
            entries[row.keys[winner]] = result.entry
        tasks[name] = record_of(row.op, row.keys, result)
    manifest = Manifest(identity=identity, tasks=tasks, loose=tuple(sorted(entries)))
    return CachedTable(Table(stamp, entries), manifest, (0, 0, 0))


def tidy(job: Job, store: Store, manifest: Manifest) -> None:
    """Remove the journals that a table has taken in; a blocked task's marks stay.

    Those of this session are over on every rank by now.
    """
    if store.directory is None:
        return
    remove_session(store.directory, job.opened.session)
    journals = read_journals(store.directory, job.options.settings.table_bytes)
    stay = [past for past in journals if _is_needed(past, manifest)]
    remove(past for past in journals if past not in stay)
    for past in stay:
        if past.is_dead:
            shorten(past)


def _is_needed(past: Past, manifest: Manifest) -> bool:
    if not past.is_dead:
        return True
    if past.in_hand is None:
        return False
    record = manifest.tasks.get(past.in_hand.task)
    return record is None or record.blocked is not None
