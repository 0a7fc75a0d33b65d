# SPDX-License-Identifier: Apache-2.0
"""One identity's table as it travels: an archive, checked as a table of this host would be.

Owns what a bundle must hold to be used (one identity's files, whose names, sha256, schema,
environment stamp and winners fit together), and what becomes of two hosts' tables: their union by
the rules of `merge`, a generation above both, so that each host that has a part of it takes all of
it at its next start. A bundle that is no good is a `Miss`. Pure but for `own_part`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache import archive
from warmup_plugin.cache.archive import ArchiveError, Packed
from warmup_plugin.cache.cached_table import CachedTable, Source
from warmup_plugin.cache.checking import faults_of
from warmup_plugin.cache.files import read_file
from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.merge import merge
from warmup_plugin.cache.paths import (
    IDENTITY_NAME,
    LAYOUT,
    manifest_name,
    parse_table_name,
    table_name,
)
from warmup_plugin.cache.stamps import stamp_conflicts
from warmup_plugin.cache.table import Table, parse_table, render_table
from warmup_plugin.errors import IdentityError
from warmup_plugin.fleet.pointer import Whose
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss, decode, digest

#: The one table of a bundle that `render` makes.
_SOURCE: Final[Source] = (0, 0, 0)
_FACTORS: Final = msgspec.json.Decoder(dict[str, Any])


class Bundle(NamedTuple):
    """A bundle that holds. ``files``: what is in it, by name; ``part``: its tables as one."""

    sha256: str
    data: bytes
    files: Mapping[str, bytes]
    part: CachedTable

    @property
    def manifest(self) -> Manifest:
        """Return its manifest, which every part of a bundle has."""
        assert self.part.manifest is not None
        return self.part.manifest


def limit_of(table_bytes: int) -> int:
    """Return the most bytes of an archive whose files keep to their limit."""
    return 2 * table_bytes + (1 << 20)


def parse_bundle(data: bytes, whose: Whose, table_bytes: int) -> Bundle | Miss:
    """Read and check a bundle of an identity; nothing of a bad one is used."""
    try:
        packed = list(archive.read(io.BytesIO(data), table_bytes))
    except ArchiveError as error:
        return Miss(f"the bundle: {error}", "unreadable")
    for file in packed:
        if (file.version, file.arch, file.identity) != tuple(whose):
            return Miss(f"the bundle holds {file.path}, which is another identity's", "foreign")
    files = {file.name: file.data for file in packed}
    part = _part(files, whose, table_bytes)
    if isinstance(part, Miss):
        return Miss(f"the bundle: {part.reason}", part.kind)
    return Bundle(digest(data), data, files, part)


def own_part(directory: Path, whose: Whose, table_bytes: int) -> CachedTable | Miss:
    """Return this host's tables of an identity as one; those that do not hold are left out."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError as error:
        return Miss(f"{directory}: {error.strerror or error}", "absent")
    files = dict(_read(directory, names, table_bytes))
    return _part(files, whose, table_bytes, is_strict=False)


def identity_bytes(directory: Path, table_bytes: int) -> bytes:
    """Return the factors that lie beside this host's tables; empty where they cannot be read."""
    found = read_file(directory / IDENTITY_NAME, table_bytes, directory).content
    return found if isinstance(found, bytes) else b""


def render_bundle(part: CachedTable, identity: bytes, whose: Whose) -> bytes:
    """Return the archive of one table: the same bytes for the same table on every host."""
    assert part.manifest is not None
    table = render_table(part.table)
    manifest = render_manifest(replace(part.manifest, table_sha256=digest(table)))
    names = {
        IDENTITY_NAME: identity, table_name(*_SOURCE): table, manifest_name(*_SOURCE): manifest,
    }  # fmt: skip
    folder = f"{LAYOUT}/{whose.version}/{whose.arch}/{whose.identity}"
    return archive.render(
        Packed(f"{folder}/{name}", data, *whose, name) for name, data in names.items()
    )


def united(mine: CachedTable, theirs: CachedTable | None) -> CachedTable | None:
    """Return what the fleet is to hold, None where it holds all of this host's already.

    At equal generations the fleet's winner stands: others serve it by now. Its generation is one
    more than either's, so that it wins on every host, also on those whose tables it is made of.
    """
    assert mine.manifest is not None
    if theirs is None or stamp_conflicts(mine.table.stamp, theirs.table.stamp):
        # In conflict though both fit the identity: its stamp leaves that field open.
        generation = max(mine.generation, theirs.generation if theirs else 0) + 1
        return CachedTable(mine.table, replace(mine.manifest, generation=generation), _SOURCE)
    assert theirs.manifest is not None
    union = merge([theirs, mine])
    assert union.manifest is not None
    answers_more = mine.manifest.complete and not theirs.manifest.complete
    has_new_tasks = not mine.manifest.tasks.keys() <= theirs.manifest.tasks.keys()
    if union.table == theirs.table and not answers_more and not has_new_tasks:
        return None
    whole = next((each for each in (mine.manifest, theirs.manifest) if each.complete), None)
    header = whole or mine.manifest
    manifest = replace(
        union.manifest,
        generation=max(mine.generation, theirs.generation) + 1,
        complete=header.complete, inventory=header.inventory,
        engine=header.engine, engine_version=header.engine_version,
    )  # fmt: skip
    return CachedTable(union.table, manifest, _SOURCE)


def _read(directory: Path, names: list[str], limit: int) -> Iterator[tuple[str, bytes]]:
    sources = [source for source in map(parse_table_name, sorted(names)) if source]
    wanted = [each for s in sources for each in (table_name(*s), manifest_name(*s))]
    for name in (IDENTITY_NAME, *wanted):
        content = read_file(directory / name, limit, directory).content
        if isinstance(content, bytes):
            yield name, content


def _part(
    files: Mapping[str, bytes], whose: Whose, limit: int, *, is_strict: bool = True
) -> CachedTable | Miss:
    """Return the union of these tables, or why there is none.

    ``is_strict``: one that does not hold spoils all of them.
    """
    identity = _identity(files.get(IDENTITY_NAME))
    parts, why = [], Miss("no table", "absent")
    for source in sorted(filter(None, map(parse_table_name, files))):
        found = _judged(files, source, identity, whose, limit)
        if isinstance(found, CachedTable):
            parts.append(found)
            continue
        why = found
        if is_strict:
            return found
    if not parts:
        return why
    union = merge(parts)
    return CachedTable(union.table, union.manifest, _SOURCE)


def _identity(data: bytes | None) -> Identity | Miss:
    if data is None:
        return Miss("no such file", "absent")
    factors = decode(_FACTORS, data)
    if isinstance(factors, Miss):
        return factors
    try:
        return Identity(factors)
    except IdentityError as error:
        return Miss(str(error), "unreadable")


def _judged(
    files: Mapping[str, bytes], source: Source, identity: Identity | Miss, whose: Whose, limit: int
) -> CachedTable | Miss:
    name, data = table_name(*source), files[table_name(*source)]
    table = parse_table(data, limit=limit)
    words = files.get(manifest_name(*source))
    absent = Miss("no such file", "absent")
    manifest = absent if words is None else parse_manifest(words, limit=limit)
    is_vouched = isinstance(manifest, Manifest) and manifest.table_sha256 == digest(data)
    faults = faults_of(table, manifest, identity, is_vouched=is_vouched, named=whose.identity)
    if fault := next(faults, ""):
        return Miss(f"{name}: {fault}", "unreadable")
    assert isinstance(table, Table)
    assert isinstance(manifest, Manifest)
    return CachedTable(table, manifest, source)
