# SPDX-License-Identifier: Apache-2.0
"""Entries of others that answer tasks of ours: an engine's own tables, and sibling identities.

    <sha256 of another identity>/     beside ours: same FlashInfer, same architecture
    <an engine's table>.json          a document that FlashInfer can load
    <root>/v2/<environment>/          FlashInfer's managed store: one file per entry

Owns what may be borrowed: entries of this very environment, by exact key, and from a sibling only
for the very task that it was tuned for (a key is shared by tasks with other runner lists). Reads
only: nothing here is written, moved or judged for others. What cannot be read is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from warmup_plugin.files import read_file
from warmup_plugin.manifest import Manifest
from warmup_plugin.store import Store
from warmup_plugin.table import Entry, Miss, Table, decode, parse_table, stamp_conflicts

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: The most recent siblings are asked, no more: a directory may have seen hundreds of configs.
MOST_SIBLINGS: Final = 16
_MOST_FILES: Final = 20_000
_IDENTITY: Final = re.compile("[0-9a-f]{64}")
_MANIFEST: Final = "manifest.json"
_SCHEMA: Final = "cache_schema"  # of the store, beside the environment's fields


@dataclass
class Borrowed:
    """Entries by key. ``owners``: the tasks a key's entry may answer; none named is any task."""

    entries: dict[str, Entry] = field(default_factory=dict)
    owners: dict[str, frozenset[str]] = field(default_factory=dict)

    def take_sibling(self, table: Table, manifest: Manifest) -> None:
        """Take the winners of tasks that are not here yet."""
        known = frozenset().union(*self.owners.values())
        for task, record in manifest.tasks.items():
            keys = {key for keys in record.keys for key in keys}
            if task in known or not keys.isdisjoint(self.entries):
                continue
            for key in keys & table.entries.keys():
                self.entries[key], self.owners[key] = table.entries[key], frozenset({task})

    def take_engine(self, table: Table) -> None:
        """Take an engine's entries: of the same calls, without a word about whose they are."""
        for key, entry in table.entries.items():
            if key not in self.entries:
                self.entries[key], self.owners[key] = entry, frozenset()

    def without(self, keys: Collection[str]) -> Borrowed:
        """Return what is not under these keys."""
        kept = [key for key in self.entries if key not in keys]
        return Borrowed({k: self.entries[k] for k in kept}, {k: self.owners[k] for k in kept})

    def answers(self, task: str, keys: Iterable[str]) -> bool:
        """Return whether a task is answered from here and may be."""
        owners = [self.owners[key] for key in keys if key in self.owners]
        return bool(owners) and all(not named or task in named for named in owners)

    def pick(self, task: str, keys: Collection[str]) -> str:
        """Return the key to go by where several answer a task, else nothing; the first read wins.

        So it is where the stages of an engine's pipeline have chosen differently.
        """
        found = [key for key in self.entries if key in keys]
        return found[0] if len(found) > 1 and self.answers(task, keys) else ""

    def misleads(self, task: str, keys: Iterable[str]) -> bool:
        """Return whether an entry from here stands under a key of a task it was not tuned for."""
        owners = [self.owners[key] for key in keys if key in self.owners]
        return any(named and task not in named for named in owners)


def borrow(
    directory: Path | None,
    others: Iterable[Path],
    stamp: Mapping[str, str],
    settings: Settings,
    root: Path | None = None,
) -> Borrowed:
    """Return what others have found out in this environment; the engine's own tables come first.

    No link is followed out of the ``root``, nor out of the folder of an engine's table.
    """
    found = Borrowed()
    for path in others:
        table = _read(path, settings.table_bytes)
        if isinstance(table, Table) and not stamp_conflicts(table.stamp, stamp):
            found.take_engine(table)
    for sibling in _siblings(directory):
        reading = Store(sibling, replace(settings, mode="read-only"), root=root).read(stamp)
        for part in reading.parts:
            if part.manifest is not None:
                found.take_sibling(part.table, part.manifest)
    return found


def _siblings(directory: Path | None) -> list[Path]:
    """Return the directories of other identities beside this one, the latest first."""
    if directory is None or not _IDENTITY.fullmatch(directory.name):
        return []
    try:
        beside = [p for p in directory.parent.iterdir() if _IDENTITY.fullmatch(p.name)]
        ages = {path: path.stat().st_mtime for path in beside if path != directory}
    except OSError:
        return []
    return sorted(ages, key=lambda path: ages[path], reverse=True)[:MOST_SIBLINGS]


def _read(path: Path, limit: int) -> Table | Miss:
    if path.is_dir():
        return _read_managed(path, limit)
    content = read_file(path, limit, path.parent).content
    return content if isinstance(content, Miss) else parse_table(content, limit=limit)


class _Row(msgspec.Struct):
    key: str
    runner: str
    tactic: msgspec.Raw
    profiling_policy: msgspec.Raw = msgspec.Raw(b"null")


_ROW: Final = msgspec.json.Decoder(_Row)
_STAMP: Final = msgspec.json.Decoder(dict[str, str | None])


def _read_managed(folder: Path, limit: int) -> Table | Miss:
    """Read a managed store as the one document it would be, under the rules for documents."""
    stamp = _decoded(_STAMP, folder / _MANIFEST, limit, folder)
    if isinstance(stamp, Miss):
        return stamp
    stamp.pop(_SCHEMA, None)
    document: dict[str, Any] = {"_metadata": stamp}
    for row in _rows(folder / "entries", limit, folder):
        has_policy = bytes(row.profiling_policy) != b"null"
        policy = [row.profiling_policy] if has_policy else []
        document[row.key] = [row.runner, row.tactic, *policy]
    return parse_table(msgspec.json.encode(document), limit=limit)


def _rows(folder: Path, limit: int, root: Path) -> Iterator[_Row]:
    try:
        paths = sorted(folder.glob("*.json"))[:_MOST_FILES]
    except OSError:
        return
    for path in paths:
        row = _decoded(_ROW, path, limit, root)
        if isinstance(row, _Row):
            yield row


def _decoded(decoder: msgspec.json.Decoder[Any], path: Path, limit: int, root: Path) -> Any:
    content = read_file(path, limit, root).content
    return content if isinstance(content, Miss) else decode(decoder, content)
