# SPDX-License-Identifier: Apache-2.0
"""How a table is put where another one may be: one union of both, and no writer's work lost.

Owns that. A table is never overwritten unread. Locks only spare work (`locks.py`): a file that has
changed since it was read is not replaced, and who has written looks again whether that stands: what
was lost without a lock is written once more. Not promised: what is lost to a process that is
stopped for longer than others wait for it, between that question and the rename; the next start
tunes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable, NotPublished, Published, Source
from warmup_plugin.cache.files import Mark, is_marked, move_aside, write_files
from warmup_plugin.cache.locks import locked
from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.merge import less, merge
from warmup_plugin.cache.paths import manifest_name, table_name
from warmup_plugin.cache.reader import Shelf
from warmup_plugin.cache.table import Entry, Table, parse_table, render_table
from warmup_plugin.runtime.safe_json import Miss, digest

#: More often than this nobody comes in between.
_MOST_TRIES: Final = 16


def publish_union(
    shelf: Shelf, mine: CachedTable, thrown_out: Mapping[str, Entry]
) -> Published | NotPublished:
    """Write the union of a part, with its manifest, and what the directory has under its name.

    Again where another writer that no lock has kept out came in between. Entries ``thrown_out`` are
    no good: where the file has the very same ones, they go. Raises `OSError`.
    """
    for _ in range(_MOST_TRIES):
        with locked(shelf.directory):
            published, marks = _publish_once(shelf, mine, thrown_out)
        if not (isinstance(published, Published) and published.written):
            return published
        if marks and _stands(shelf, mine, marks):
            return published
    return NotPublished(f"{shelf.directory}: others write all the time; not kept")


def _stands(shelf: Shelf, mine: CachedTable, marks: Mapping[Path, Mark]) -> bool:
    """Return whether all tasks are in the file, as it is now."""
    if all(is_marked(path, mark) for path, mark in marks.items()):
        return True
    assert mine.manifest is not None
    found = shelf.find(mine.source, mine.table.stamp, mine.manifest.identity).part
    manifest = found.manifest if found else None
    return manifest is not None and mine.manifest.tasks.keys() <= manifest.tasks.keys()


def _publish_once(
    shelf: Shelf, mine: CachedTable, thrown_out: Mapping[str, Entry]
) -> tuple[Published | NotPublished, Mapping[Path, Mark]]:
    """Write the union once; no marks where the file has changed while that was done."""
    assert mine.manifest is not None
    found = shelf.find(mine.source, mine.table.stamp, mine.manifest.identity)
    for path, miss in found.misses:
        if miss.kind in ("denied", "newer"):  # somebody's, and perhaps in use: leave it alone
            reason = f"{path}: {miss.reason}; the table is not kept"
            return NotPublished(reason), {}
    move_aside(shelf.directory, found.obstacles)
    path = shelf.directory / table_name(*mine.source)
    theirs = found.part.generation if found.part else 0
    generation = max(mine.manifest.generation, theirs) + 1
    newest = replace(mine, manifest=replace(mine.manifest, generation=generation))
    union = merge([newest, less(found.part, thrown_out)] if found.part else [newest])
    assert union.manifest is not None
    standing = _as_it_stands(path, found.part, union)
    if standing is not None:
        return standing, {}
    mark = found.mark if found.part else None
    return _replace(shelf, mine.source, union.table, union.manifest, mark)


def _replace(
    shelf: Shelf, source: Source, table: Table, manifest: Manifest, mark: Mark | None
) -> tuple[Published | NotPublished, Mapping[Path, Mark]]:
    path = shelf.directory / table_name(*source)
    body = render_table(table)
    sha256 = digest(body)
    words = render_manifest(replace(manifest, table_sha256=sha256))
    # Never put in place what the next start would only set aside.
    readable = parse_table(body, limit=shelf.limit), parse_manifest(words, limit=shelf.limit)
    for miss in readable:
        if isinstance(miss, Miss):
            reason = f"{path}: {miss.reason}; the table is not kept"
            return NotPublished(reason), {}
    # The table first: to die in between leaves a stale manifest, which vouches for nothing.
    both = {path: body, path.with_name(manifest_name(*source)): words}
    marks = write_files(both, lambda: is_marked(path, mark))
    return Published(path, sha256, len(body), manifest.generation, written=True), marks


def _as_it_stands(path: Path, there: CachedTable | None, union: CachedTable) -> Published | None:
    """Return the file that is there as published, if it says already what the union would."""
    if there is None or there.manifest is None or union.manifest is None:
        return None
    if union.table != there.table or not union.manifest.answers_like(there.manifest):
        return None
    size, manifest = len(there.table_bytes), there.manifest
    return Published(path, manifest.table_sha256, size, manifest.generation, written=False)
