# SPDX-License-Identifier: Apache-2.0
"""The union of tables that several ranks, nodes or replicas wrote for one identity.

Owns who wins: task by task, the table of the higher generation, then of the lowest (tp, pp, dp). A
task has one winner, so with it go the keys under which other parts have another runner's; a union
by key would keep both, and FlashInfer serves the first listed, not the faster. Entries that no
manifest verifies fill gaps and displace nothing. Pure; raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable, Source
from warmup_plugin.cache.manifest import TaskRecord, Tasks
from warmup_plugin.cache.stamps import INDETERMINATE
from warmup_plugin.cache.table import Entry, Table


def merge(parts: Sequence[CachedTable]) -> CachedTable:
    """Return the union of parts whose stamps do not conflict, in any order.

    Its manifest has the table's sha256 only where one part was taken whole.
    """
    ordered = sorted(parts, key=_precedence)
    if ordered and ordered[0].manifest and all(_alike(ordered[0], part) for part in ordered[1:]):
        return ordered[0]
    union = _Union()
    for part in ordered:
        union.add_tasks(part)
    for vouched in (True, False):
        for part in ordered:
            union.add_rest(part, vouched=vouched)
    return union.merged(ordered)


def differ(one: Entry | None, other: Entry | None) -> bool:
    """Return whether two entries of a key are two answers; how each was chosen makes none."""
    if one is None or other is None:
        return one is not other
    return one.winner != other.winner


def give_way(part: CachedTable, kept: Mapping[str, Entry]) -> CachedTable:
    """Return the part without the tasks that are answered otherwise by what is ``kept``."""
    table, manifest = part.table, part.manifest
    other = {key for key, entry in kept.items() if differ(table.entries.get(key, entry), entry)}
    names = {
        name: keys
        for name, record in (manifest.tasks if manifest else {}).items()
        if not (keys := {*chain.from_iterable(record.keys)}).isdisjoint(kept)
        and any(differ(table.entries.get(key), kept.get(key)) for key in keys)
    }
    if not (other or names) or manifest is None:
        entries = {key: entry for key, entry in table.entries.items() if key not in other}
        return part.changed(replace(table, entries=entries), manifest) if other else part
    gone = other.union(*names.values())
    entries = {key: entry for key, entry in table.entries.items() if key not in gone}
    tasks = {name: record for name, record in manifest.tasks.items() if name not in names}
    manifest = replace(manifest, tasks=Tasks(tasks), complete=False, table_sha256="")
    return part.changed(replace(table, entries=entries), manifest)


def less(part: CachedTable, entries: Mapping[str, Entry]) -> CachedTable:
    """Return a part without these very entries, nor the tasks that they answered."""
    out = {key for key, entry in entries.items() if part.table.entries.get(key) == entry}
    if not out:
        return part
    kept = {key: entry for key, entry in part.table.entries.items() if key not in out}
    manifest = part.manifest
    if manifest is not None:
        tasks = {
            task: record
            for task, record in manifest.tasks.items()
            if out.isdisjoint(chain.from_iterable(record.keys))
        }
        loose = tuple(key for key in manifest.loose if key not in out)
        manifest = replace(manifest, tasks=Tasks(tasks), loose=loose)
    return part.changed(Table(part.table.stamp, kept, part.table.records), manifest)


def _precedence(part: CachedTable) -> tuple[bool, int, Source]:
    return part.manifest is None, -part.generation, part.source


def _alike(one: CachedTable, other: CachedTable) -> bool:
    """Return whether two parts say the same, as when every node wrote what the leader shared."""
    return (
        one.manifest is not None
        and other.manifest is not None
        and one.manifest.known_defaults == other.manifest.known_defaults
        and one.manifest.loose == other.manifest.loose
        and one.table == other.table
    )


class _Union(msgspec.Struct):
    """What has been taken so far, from the parts in their order."""

    entries: dict[str, Entry] = msgspec.field(default_factory=dict)
    tasks: dict[str, TaskRecord] = msgspec.field(default_factory=dict)
    claimed: set[str] = msgspec.field(default_factory=set)
    loose: set[str] = msgspec.field(default_factory=set)
    conflicts: int = 0

    def add_tasks(self, part: CachedTable) -> None:
        """Take the tasks that no part before this one has, each with its winner."""
        for task, record in (part.manifest.tasks if part.manifest else {}).items():
            keys = set(chain.from_iterable(record.keys))
            found = {key: part.table.entries[key] for key in keys if key in part.table.entries}
            if task in self.tasks:
                self.conflicts += self._disagrees(found)
                continue
            self.tasks[task] = record
            self.entries.update((k, e) for k, e in found.items() if k not in self.claimed)
            self.claimed |= keys
            self.loose |= found.keys() & part.unverified

    def add_rest(self, part: CachedTable, *, vouched: bool) -> None:
        """Take entries under keys that are no task's: the verified ones first, then the others."""
        loose = part.unverified
        keys = part.table.entries.keys() - loose if vouched else loose & part.table.entries.keys()
        for key in keys - self.claimed if vouched else keys:
            entry = part.table.entries[key]
            if key in self.entries or key in self.claimed:
                self.conflicts += self._disagrees({key: entry})
                continue
            self.entries[key] = entry
            if not vouched:
                self.loose.add(key)

    def _disagrees(self, found: Mapping[str, Entry]) -> bool:
        return any(differ(self.entries.get(key), entry) for key, entry in found.items())

    def merged(self, ordered: Sequence[CachedTable]) -> CachedTable:
        """Return the union; the first part gives the manifest's header."""
        stamp = _first_known(part.table.stamp for part in ordered)
        records = dict(chain.from_iterable(p.table.records.items() for p in reversed(ordered)))
        manifest = ordered[0].manifest if ordered else None
        if manifest is not None:
            # What a later version has written stays, whoever writes the file anew.
            manifests = [part.manifest for part in reversed(ordered) if part.manifest]
            extra = dict(chain.from_iterable(each.extra.items() for each in manifests))
            manifest = replace(
                manifest, tasks=Tasks(self.tasks), loose=tuple(sorted(self.loose)), table_sha256="",
                extra=extra,
            )  # fmt: skip
        return CachedTable(
            Table(stamp, self.entries, records), manifest, conflicts=self.conflicts
        )  # fmt: skip


def _first_known(stamps: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the union of stamps that do not conflict: what any of them knows."""
    known: dict[str, str] = {}
    for name, value in _fields(stamps):
        if known.get(name) in INDETERMINATE:
            known[name] = value
    return known


def _fields(stamps: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    return chain.from_iterable(stamp.items() for stamp in stamps)
