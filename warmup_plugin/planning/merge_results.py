# SPDX-License-Identifier: Apache-2.0
"""Step 6: from the ranks' results to one table. Pure.

Owns the rule that a task has one winner: its entry stands under the winning runner's key of every
rank that has the task, and under no other key of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import cast

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.manifest import DEFAULTS, Manifest, Outcome, TaskRecord
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.cache.task_result import LASTING, Result
from warmup_plugin.planning.inventory import Item, Lots, find_refused, find_unshared

_COLLISION = "one file key has come to mean two configurations"


class Settled(msgspec.Struct, frozen=True):
    """The table all ranks install, with one record for each task of the job."""

    table: Table
    tasks: Mapping[str, TaskRecord]
    complete: bool


def settle(
    base: Table,
    records: Mapping[str, TaskRecord],
    lots: Lots,
    results: Iterable[Result],
    *,
    suspects: Collection[str] = (),
    blocked: Mapping[str, str] | None = None,
) -> Settled:
    """Merge results into the agreed table.

    ``records`` are the task records of the agreed table; tasks of it that this job does not have
    keep entry and record (another model or phase may share the file). ``suspects``: tasks in which
    a process has died, which no older entry answers. ``blocked``: those that serve their default
    for it, with the driver under which that was found.
    """
    blocked = blocked or {}
    entries: dict[str, Entry] = dict(base.entries)
    found = {result.task: result for result in results}
    items, keys = _by_task(lots)
    merged = dict(records)
    complete = True
    unshared = find_unshared(lots)
    unheld = {*suspects, *find_refused(lots)}
    for name, item in items.items():
        if name in blocked:
            found[name] = Result(name, "default", reason=item.reason)
        elif (
            name not in found
            and name not in unheld
            and (held := _held(name, item, keys[name], base, records))
        ):
            found[name] = held
        for key in (key for key_list in keys[name] for key in key_list):
            entries.pop(key, None)
    found |= _for_whole_buckets(items, keys, found, unshared | blocked.keys())
    for name, item in items.items():
        result = found.get(name)
        is_unshared = name in unshared or (result is not None and result.kind == "unshared")
        if is_unshared and name in records:
            # A record, since the union with the file would bring back what is left out here.
            result = Result(name, "default", reason=item.reason or _COLLISION)
        elif result is None or result.kind not in LASTING or is_unshared:
            complete = complete and is_unshared
            merged.pop(name, None)
            continue
        entries.update(_under_each_key(result, keys[name]))
        record = _record(item.op, keys[name], result, records.get(name))
        merged[name] = msgspec.structs.replace(record, blocked=blocked.get(name))
    return Settled(Table(base.stamp, entries, {}), merged, complete)


def _by_task(lots: Lots) -> tuple[dict[str, Item], dict[str, dict[tuple[str, ...], None]]]:
    """Return by task an item, one that adopts if there is one, and all lists of keys it has."""
    items: dict[str, Item] = {}
    keys: dict[str, dict[tuple[str, ...], None]] = {}
    for lot in lots:
        for item in lot.items:
            keys.setdefault(item.id, {})[item.keys] = None
            if item.id not in items or item.adopt:
                items[item.id] = item
    return items, keys


def _under_each_key(result: Result, key_lists: Iterable[tuple[str, ...]]) -> dict[str, Entry]:
    """Return the winner's entry under the winning runner's key of every rank; none without one."""
    if result.entry is None or result.winner is None:
        return {}
    return {key_list[result.winner]: result.entry for key_list in key_lists}


def _held(
    name: str,
    item: Item,
    key_lists: Iterable[tuple[str, ...]],
    base: Table,
    records: Mapping[str, TaskRecord],
) -> Result | None:
    """Return the result that the agreed table holds already."""
    if item.adopt and item.adopt in base.entries:
        entry = base.entries[item.adopt]
        index = _index_of(entry.runner, item.keys)
        return Result(name, "adopted", index, entry, "an entry of an old file")
    for key_list in key_lists:
        for index, key in enumerate(key_list):
            if key in base.entries:
                known = records.get(name)
                is_tuned = known is not None and known.outcome == "tuned"
                return Result(name, "tuned" if is_tuned else "adopted", index, base.entries[key])
    known = records.get(name)
    if known is not None and known.outcome in DEFAULTS:
        return Result(name, known.outcome, reason=known.reason)
    return Result(name, item.state, reason=item.reason) if item.state in DEFAULTS else None


def _for_whole_buckets(
    items: Mapping[str, Item],
    keys: Mapping[str, Iterable[tuple[str, ...]]],
    found: Mapping[str, Result],
    apart: Collection[str],
) -> dict[str, Result]:
    """Return the results of tasks that are answered by the winner at another size of their bucket.

    The first winner, in the order met, under a key that is another size's too: FlashInfer finds it
    there and tunes no more. ``apart``: tasks that take no part in it.
    """
    buckets: dict[str, list[str]] = {}
    for name in sorted(items.keys() - {*apart}, key=lambda name: (items[name].met, name)):
        if items[name].bucket_id:
            buckets.setdefault(items[name].bucket_id, []).append(name)
    answered: dict[str, Result] = {}
    for names in buckets.values():
        if (first := _found_at_all_sizes(names, keys, found)) is not None:
            reason = f"the winner at another size of its bucket: {items[first.task].at}"
            others = (name for name in names if name != first.task)
            answered |= {
                name: msgspec.structs.replace(first, task=name, kind="adopted", reason=reason)
                for name in others
            }
    return answered


def _found_at_all_sizes(
    names: Collection[str],
    keys: Mapping[str, Iterable[tuple[str, ...]]],
    found: Mapping[str, Result],
) -> Result | None:
    """Return the first winner of a bucket under a key that several of its tasks have."""
    owners = Counter(key for name in names for key in {*chain.from_iterable(keys[name])})
    for result in (found[name] for name in names if name in found):
        if any(owners[key] > 1 for key in _under_each_key(result, keys[result.task])):
            return result
    return None


def fallen_with(
    dropped: Mapping[str, str], lots: Lots, entries: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Return the tasks whose entry goes with those that are dropped: that task and its reason.

    An entry may answer several sizes of a bucket.
    """
    gone: dict[str, str] = {}
    found: dict[str, tuple[str, str]] = {}
    for item in (item for lot in lots for item in lot.items if item.id in dropped):
        gone |= {key: item.id for key in item.keys if key in entries}
    for item in (item for lot in lots for item in lot.items if item.bucket_id):
        fallen = next((gone[key] for key in item.keys if key in gone), "")
        if fallen and item.id not in dropped:
            found[item.id] = fallen, dropped[fallen]
    return found


def _index_of(runner: str, keys: tuple[str, ...]) -> int:
    """Return which key is of this runner class; the class is the key's second field."""
    return next((i for i, key in enumerate(keys) if f", {runner!r}, " in key), 0)


def record_of(op: str, keys: tuple[str, ...], result: Result) -> TaskRecord:
    """Return the record of a task that one rank has tuned."""
    return _record(op, [keys], result, None)


def _record(
    op: str, keys: Iterable[tuple[str, ...]], result: Result, before: TaskRecord | None
) -> TaskRecord:
    if before is not None and before.outcome == result.kind and not result.at:
        return msgspec.structs.replace(before, keys=tuple(sorted({*before.keys, *keys})))
    return TaskRecord(
        op=op,
        keys=tuple(sorted(keys)),
        outcome=cast("Outcome", result.kind),
        reason=result.reason,
        ms=result.ms,
        default_ms=result.default_ms,
        rank=result.rank,
        host=result.host,
        gpu=result.gpu,
        at=result.at,
        samples=result.samples,
        candidates=result.candidates,
        tied=result.tied,
        confidence=result.confidence,
    )


def without(
    table: Table, manifest: Manifest, dropped: Mapping[str, str], *, again: Collection[str] = ()
) -> tuple[Table, Manifest]:
    """Return table and manifest with these tasks on their defaults. ``dropped``: id -> reason.

    Those of ``again`` were not tuned here: somebody else's entry was no good, and the next start
    tunes them.
    """
    records = dict(manifest.tasks)
    entries = dict(table.entries)
    for name, reason in dropped.items():
        for key in (key for keys in records[name].keys for key in keys):
            entries.pop(key, None)
        if name in again:
            del records[name]
        else:
            records[name] = msgspec.structs.replace(records[name], outcome="default", reason=reason)
    complete = manifest.complete and dropped.keys().isdisjoint(again)
    manifest = replace(manifest, tasks=records, complete=complete)
    return Table(table.stamp, entries, table.records), manifest
