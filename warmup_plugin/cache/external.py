# SPDX-License-Identifier: Apache-2.0
"""Entries of others that answer tasks of ours: an engine's own tables, and sibling identities.

    <sha256 of another identity>/     beside ours: same FlashInfer, same architecture
    <an engine's table>.json          a document that FlashInfer can load
    <root>/v2/<environment>/          FlashInfer's managed store: one file per entry
    imported/<sha256>.json            beside ours: such tables, put there by `warmup-plugin import`

Owns what may be borrowed: entries of this very environment, by exact key, and from a sibling only
for the very task that it was tuned for (a key is shared by tasks with other runner lists), among
the candidates that there are here. Reads only: nothing here is written, moved or judged for others.
What cannot be read is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from warmup_plugin.cache.borrowed import Borrowed
from warmup_plugin.cache.files import read_file
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.stamps import BLOCKLIST, stamp_conflicts
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table, parse_entry, parse_table
from warmup_plugin.runtime.safe_json import Miss, decode

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: The most recent siblings are asked, no more: a directory may have seen hundreds of configs.
MOST_SIBLINGS: Final = 16
IMPORTED: Final = "imported"
#: The switch that says how candidates are timed, and takes none away.
_TIMER: Final = "FLASHINFER_AUTOTUNE_TIMER"
_MOST_FILES: Final = 20_000
_IDENTITY: Final = re.compile("[0-9a-f]{64}")
_MANIFEST: Final = "manifest.json"
_SCHEMA: Final = "cache_schema"  # of the store, beside the environment's fields
#: How the key of a record begins that is no winner: of an op that tunes in a loop of its own.
_PROTOCOL: Final = "('__protocol__', "


def borrow(
    directories: Iterable[Path],
    others: Iterable[Path],
    stamp: Mapping[str, str],
    settings: Settings,
    *,
    root: Path | None = None,
    kept: Mapping[str, Entry] | None = None,
    switches: Mapping[str, str] | None = None,
) -> Borrowed:
    """Return what others have found out in this environment.

    Not where they may have had other candidates: ``switches`` are this job's factors of that name,
    and a sibling's must be the same. Which ones a table without an identity was tuned under is
    not known, so it is taken where none is set that takes candidates away. A blocklist alone is no
    hindrance: every rank asks it about each borrowed tactic before it serves (`replay.prepare`).

    In order: what is ``kept`` from an earlier session of the process, the engine's own tables
    (``others``), those imported, then siblings; ``directories`` are this identity's, the writable
    one first. No link is followed out of that one's ``root``, out of a layer's directory, nor out
    of the folder of an engine's table.
    """
    found, directories, switches = Borrowed(), tuple(directories), dict(switches or {})
    found.take_engine(Table(stamp, kept or {}))
    if switches.keys() - {BLOCKLIST, _TIMER}:
        others = ()
    else:
        others = (*others, *(path for each in directories for path in imported(each.parent)))
    for path in others:
        table = read_any(path, settings.table_bytes)
        if isinstance(table, Table) and not stamp_conflicts(table.stamp, stamp):
            found.take_engine(table, str(path))
    siblings = [(path, i) for i, each in enumerate(directories) for path in _siblings(each)]
    for sibling, index in siblings:
        within = None if index else root
        if not _has_our_candidates(sibling, switches, settings.table_bytes):
            continue
        reading = Store(sibling, replace(settings, mode="read-only"), root=within).read(stamp)
        for part in reading.parts:
            if part.manifest is not None:
                found.take_sibling(part.table, part.manifest, part.path)
    return found


def _has_our_candidates(sibling: Path, switches: Mapping[str, str], limit: int) -> bool:
    """Return whether a sibling was tuned among the candidates that there are here.

    A tactic that is blocked here is refused later; one that was blocked there may be the best.
    """
    factors = _decoded(_FACTORS, sibling / IDENTITY_NAME, limit, sibling)
    theirs = dict(getattr(factors, "switches", {"": "not known"}))
    is_blocked_there = theirs.pop(BLOCKLIST, None) not in (None, switches.get(BLOCKLIST))
    return not is_blocked_there and theirs == {
        name: value for name, value in switches.items() if name != BLOCKLIST
    }


def imported(shelf: Path) -> list[Path]:
    """Return the tables that `warmup-plugin import` has put beside all identities."""
    try:
        return sorted((shelf / IMPORTED).glob("*.json"))
    except OSError:
        return []


def _siblings(directory: Path) -> list[Path]:
    """Return the directories of other identities beside this one, the latest first."""
    if not _IDENTITY.fullmatch(directory.name):
        return []
    try:
        beside = [p for p in directory.parent.iterdir() if _IDENTITY.fullmatch(p.name)]
        ages = {path: path.stat().st_mtime for path in beside if path != directory}
    except OSError:
        return []
    return sorted(ages, key=lambda path: ages[path], reverse=True)[:MOST_SIBLINGS]


def read_any(path: Path, limit: int) -> Table | Miss:
    """Return a file that FlashInfer can load, or a folder of its managed store, as one table."""
    if path.is_dir():
        return _read_managed(path, limit)
    content = read_file(path, limit, path.parent).content
    return content if isinstance(content, Miss) else parse_table(content, limit=limit)


class _Row(msgspec.Struct):
    key: str
    runner: str
    tactic: msgspec.Raw
    profiling_policy: msgspec.Raw = msgspec.Raw(b"null")


class _Factors(msgspec.Struct):
    switches: dict[str, str] = {}


_FACTORS: Final = msgspec.json.Decoder(_Factors)
_ROW: Final = msgspec.json.Decoder(_Row)
_STAMP: Final = msgspec.json.Decoder(dict[str, str | None])


def _read_managed(folder: Path, limit: int) -> Table | Miss:
    """Read a managed store as one table; a file of it that holds no winner is left out.

    So are the records of ops with a loop of their own (0.7.4), which lie among the winners.
    """
    stamp = _decoded(_STAMP, folder / _MANIFEST, limit, folder)
    if isinstance(stamp, Miss):
        return stamp
    stamp.pop(_SCHEMA, None)
    table = parse_table(msgspec.json.encode({"_metadata": stamp}), limit=limit)
    if isinstance(table, Miss):
        return table
    entries: dict[str, Entry] = {}
    for row in _rows(folder / "entries", limit, folder):
        has_policy = bytes(row.profiling_policy) != b"null"
        policy = [row.profiling_policy] if has_policy else []
        entry = parse_entry(msgspec.json.encode([row.runner, row.tactic, *policy]))
        if isinstance(entry, Entry) and row.key[:1] != "_" and not row.key.startswith(_PROTOCOL):
            entries[row.key] = entry
    return msgspec.structs.replace(table, entries=entries)


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
