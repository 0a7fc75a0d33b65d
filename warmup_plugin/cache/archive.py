# SPDX-License-Identifier: Apache-2.0
"""Tables in one piece, as bytes: how an archive of them is laid out, rendered and read.

    warmup-tables.json                                            every file: path, bytes, sha256
    flashinfer_autotune/<version>/<arch>/<identity>/<file>        tables, manifests, identity.json

An uncompressed tar, members in order, no times, no owners: equal tables give equal bytes on every
machine. Owns the format. Refuses, when reading, whatever it would not have written: other names or
types, another order, more or fewer bytes, another sha256. Raises `ArchiveError`. Pure.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.errors import WarmupError
from warmup_plugin.runtime.safe_json import digest

LISTING: Final = "warmup-tables.json"
SCHEMA: Final = 1
_MOST_FILES: Final = 100_000
_PATH: Final = re.compile(
    rf"{LAYOUT}/(?P<version>[0-9][0-9A-Za-z.+!_-]*)/(?P<arch>sm[0-9]+|cpu)/(?P<identity>[0-9a-f]{{64}})/"
    r"(?P<name>rank_tp\d+_pp\d+_dp\d+(\.manifest)?\.json|identity\.json)"
)


class ArchiveError(WarmupError):
    """What is wrong with an archive."""


class _Row(msgspec.Struct, frozen=True):
    path: str
    bytes: int
    sha256: str


class _Listing(msgspec.Struct, frozen=True):
    schema: int
    files: list[_Row]


@dataclass(frozen=True)
class Packed:
    """One file of an archive; ``identity`` with version and architecture says whose."""

    path: str
    data: bytes
    version: str
    arch: str
    identity: str
    name: str


def render(files: Iterable[Packed]) -> bytes:
    """Return the archive of these files: the same bytes for the same files."""
    ordered = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
    rows = [{"path": f.path, "bytes": len(f.data), "sha256": digest(f.data)} for f in ordered]
    listing = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA, "files": rows}), indent=1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in ((LISTING, listing), *((file.path, file.data) for file in ordered)):
            member = tarfile.TarInfo(name)  # no time, no owner, mode 0644
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read(file: BinaryIO, limit: int) -> Iterator[Packed]:
    """Yield the files of an archive, each checked; none is larger than ``limit``.

    Raises:
        ArchiveError: it is not what `render` writes.
    """
    try:
        # "r:": uncompressed, or a small file could unfold into a disk full.
        with tarfile.open(fileobj=file, mode="r:") as archive:
            yield from _members(archive, limit)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArchiveError(f"not an archive of tables: {error}") from None


def _members(archive: tarfile.TarFile, limit: int) -> Iterator[Packed]:
    listing = _listing(archive, limit)
    for row in listing.files:
        match = _PATH.fullmatch(row.path)
        if match is None:
            raise ArchiveError(f"{row.path!r}: not a name that a table's file has")
        data = _next(archive, row.path, limit)
        if len(data) != row.bytes or digest(data) != row.sha256:
            raise ArchiveError(f"{row.path}: other bytes than listed")
        yield Packed(row.path, data, match["version"], match["arch"], match["identity"],
                     match["name"])  # fmt: skip
    if (more := archive.next()) is not None:
        raise ArchiveError(f"{more.name!r}: not in the list of files")


def _listing(archive: tarfile.TarFile, limit: int) -> _Listing:
    try:
        found = msgspec.json.decode(_next(archive, LISTING, limit), type=_Listing)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArchiveError(f"{LISTING}: {error}") from None
    if found.schema != SCHEMA:
        raise ArchiveError(f"schema {found.schema}, this version reads {SCHEMA}")
    if len(found.files) > _MOST_FILES:
        raise ArchiveError(f"{len(found.files)} files, more than {_MOST_FILES}")
    paths = [row.path for row in found.files]
    if paths != sorted(set(paths)):
        raise ArchiveError(f"{LISTING}: its files are not in order")
    return found


def _next(archive: tarfile.TarFile, name: str, limit: int) -> bytes:
    member = archive.next()
    if member is None or member.name != name:
        raise ArchiveError(f"{name} should come next, not {member.name if member else 'the end'!r}")
    if member.type != tarfile.REGTYPE or member.issparse():
        raise ArchiveError(f"{name}: not a plain file")
    if member.size > limit:
        raise ArchiveError(f"{name}: {member.size} bytes, more than the {limit} allowed")
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise ArchiveError(f"{name}: cut off")
    return data
