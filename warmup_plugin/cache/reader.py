# SPDX-License-Identifier: Apache-2.0
"""One directory's tables as they stand: found, read, judged.

Owns what makes a file of use here: its form, its stamp, its identity, and the sha256 by which a
manifest verifies a table. Reads only; what is to become of a file is `store.py`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.cache.cached_table import CachedTable, Source
from warmup_plugin.cache.files import Mark, obstacle, read_file
from warmup_plugin.cache.lazy_table import unread_table
from warmup_plugin.cache.manifest import Manifest, parse_manifest
from warmup_plugin.cache.paths import manifest_name, parse_table_name, table_name
from warmup_plugin.cache.stamps import stamp_conflicts
from warmup_plugin.cache.table import Table, parse_table
from warmup_plugin.runtime.safe_json import Miss, digest

#: Judged, and of no use to anybody here: these files make room. Others may be fine for somebody.
_SET_ASIDE: Final = frozenset({"foreign", "too_large", "unreadable"})


class Found(msgspec.Struct, frozen=True):
    """A table's place: what can be used, what cannot and why, and what should make room."""

    part: CachedTable | None
    mark: Mark | None
    misses: list[tuple[Path, Miss]]
    obstacles: list[tuple[Path, Mark]]


class Shelf(msgspec.Struct, frozen=True):
    """A directory of one identity; no link is followed out of ``root``, no file above ``limit``.

    ``seen`` is told each table's bytes and sha256 as soon as they are read, before they are judged.
    """

    directory: Path
    root: Path
    limit: int
    seen: Callable[[bytes, str], None] = lambda _table, _sha256: None

    def look(self, stamp: Mapping[str, str], identity: str | None) -> Iterator[Found]:
        """Read every table; raises `OSError` where the directory cannot be listed."""
        names = [path.name for path in self.directory.iterdir()]
        for source in sorted(filter(None, map(parse_table_name, names))):
            yield self.find(source, stamp, identity)

    def find(self, source: Source, stamp: Mapping[str, str], identity: str | None) -> Found:
        """Read a table and its manifest, and judge both; never raises `OSError`."""
        found = self._find_once(source, stamp, identity)
        if any(miss.kind == "stale" for _, miss in found.misses):
            # Perhaps only a writer between its two files; a manifest that stays stale is one.
            found = self._find_once(source, stamp, identity)
        return found

    def _find_once(self, source: Source, stamp: Mapping[str, str], identity: str | None) -> Found:
        table_file = read_file(self.directory / table_name(*source), self.limit, self.root)
        sha256 = ""
        if isinstance(table_file.content, bytes):
            sha256 = digest(table_file.content)
            self.seen(table_file.content, sha256)
        manifest_file = read_file(self.directory / manifest_name(*source), self.limit, self.root)
        manifest = _judge_manifest(manifest_file.content, sha256, identity, self.limit)
        is_vouched = isinstance(manifest, Manifest)
        table = _judge_table(table_file.content, stamp, self.limit, is_vouched=is_vouched)
        if isinstance(table, Miss):
            obstacles = [*obstacle(table_file), *obstacle(manifest_file)]
            goes = table.kind in _SET_ASIDE
            return Found(None, None, [(table_file.path, table)], obstacles if goes else [])
        assert isinstance(table_file.content, bytes), "only bytes are parsed"
        if isinstance(manifest, Manifest):
            assert isinstance(manifest_file.content, bytes), "only bytes are parsed"
            part = CachedTable(
                table, manifest, source, table_file.content, manifest_file.content, sha256,
                str(table_file.path),
            )  # fmt: skip
            return Found(part, table_file.mark, [], [])
        if found := self._left_behind(source, sha256, identity):
            part = CachedTable(
                table, found[0], source, table_file.content, found[1], sha256, str(table_file.path)
            )  # fmt: skip
            return Found(part, table_file.mark, [], [])
        obstacles = obstacle(manifest_file) if manifest.kind in _SET_ASIDE else []
        misses = [(manifest_file.path, manifest)]
        part = CachedTable(
            table, None, source, table_file.content, sha256=sha256, path=str(table_file.path)
        )
        return Found(part, table_file.mark, misses, obstacles)

    def _left_behind(
        self, source: Source, sha256: str, identity: str | None
    ) -> tuple[Manifest, bytes] | None:
        """Return the manifest of this very table that its writer did not come to put in place.

        It was whole on the disk before the table was: a writer that died between its two files, or
        has not come to the second yet.
        """
        with contextlib.suppress(OSError):
            for path in sorted(self.directory.glob(f".{manifest_name(*source)}.*.tmp")):
                content = read_file(path, self.limit, self.root).content
                manifest = _judge_manifest(content, sha256, identity, self.limit)
                if isinstance(manifest, Manifest):
                    assert isinstance(content, bytes), "only bytes are parsed"
                    return manifest, content
        return None


def _judge_table(
    content: bytes | Miss, stamp: Mapping[str, str], limit: int, *, is_vouched: bool
) -> Table | Miss:
    if isinstance(content, Miss):
        return content
    table = unread_table(content) if is_vouched else parse_table(content, limit=limit)
    if isinstance(table, Miss):
        return table
    conflicts = stamp_conflicts(table.stamp, stamp).items()
    if conflicts:
        words = ", ".join(f"{name} {theirs}, here {ours}" for name, (theirs, ours) in conflicts)
        return Miss(f"tuned with {words}", "foreign")
    return table


def _judge_manifest(
    content: bytes | Miss, sha256: str, identity: str | None, limit: int
) -> Manifest | Miss:
    manifest = content if isinstance(content, Miss) else parse_manifest(content, limit=limit)
    if isinstance(manifest, Miss):
        return manifest
    if identity is not None and manifest.identity != identity:
        return Miss(f"of identity {manifest.identity}, here {identity}", "foreign")
    if manifest.table_sha256 != sha256:
        return Miss("vouches for a table with another sha256", "stale")
    return manifest
