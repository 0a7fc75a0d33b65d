# SPDX-License-Identifier: Apache-2.0
"""Tables in one piece, as bytes: how an archive of them is laid out, rendered and read.

    warmup-tables.json                                            every file: path, bytes, sha256
    flashinfer_autotune/<version>/<arch>/<identity>/<file>        tables, manifests, identity.json

An uncompressed tar, members in order, no times, no owners: equal tables give equal bytes on every
machine. Owns the format. Refuses, when reading, what it would not have written: other names or
types, another order, more or fewer bytes, another sha256. Raises `ArchiveError`. Pure.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import msgspec

from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.errors import WarmupError
from warmup_plugin.runtime.safe_json import Miss, decode, digest

LISTING: Final = "warmup-tables.json"
SCHEMA: Final = 1
_MOST_FILES: Final = 100_000
_PATH: Final = re.compile(
    rf"{LAYOUT}/(?P<version>[0-9][0-9A-Za-z.+!_-]*)/(?P<arch>sm[0-9]+|cpu)/(?P<identity>[0-9a-f]{{64}})/"
    r"(?P<name>rank_tp\d+_pp\d+_dp\d+(\.manifest)?\.json|identity\.json)"
)


class ArchiveError(WarmupError):
    """What is wrong with an archive."""


class Row(msgspec.Struct, frozen=True):
    path: str
    bytes: int
    sha256: str


class Listing(msgspec.Struct, frozen=True):
    """Every file of an archive, in order."""

    schema: int
    files: list[Row]


_LISTING: Final = msgspec.json.Decoder(Listing)


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
    files = in_order(files)
    listing = msgspec.json.format(msgspec.json.encode(listing_of(files)), indent=1)
    return tar((LISTING, listing), *((file.path, file.data) for file in files))


def in_order(files: Iterable[Packed]) -> list[Packed]:
    """Return these files, each once, as an archive has them."""
    return sorted({file.path: file for file in files}.values(), key=lambda file: file.path)


def listing_of(files: Iterable[Packed]) -> Listing:
    """Return the list of these files."""
    return Listing(SCHEMA, [Row(f.path, len(f.data), digest(f.data)) for f in files])


def tar(*members: tuple[str, bytes | None]) -> bytes:
    """Return a tar of these files, and of a folder where there are no bytes.

    It has no times and no owners: equal members give equal bytes.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)  # no time, no owner, mode 0644
            if data is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))
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
    data = next_file(archive, LISTING, limit)
    yield from listed_files(archive, decoded(_LISTING, data, LISTING), limit)


def decoded(decoder: msgspec.json.Decoder[Any], data: bytes, what: str) -> Any:
    """Return what a document says.

    Raises:
        ArchiveError: it cannot be read; ``what`` comes before the reason.
    """
    found = decode(decoder, data)
    if isinstance(found, Miss):
        raise ArchiveError(f"{what}: {found.reason}")
    return found


def listed_files(
    archive: tarfile.TarFile, listing: Listing, limit: int, *, below: str = ""
) -> Iterator[Packed]:
    """Yield what comes next in a tar: these files and no other, each as it is listed.

    ``below``: the folder in which they lie; the folders above them may come before each.

    Raises:
        ArchiveError: the list is none of this package's, or other files come.
    """
    _check(listing)
    for row in listing.files:
        match = _PATH.fullmatch(row.path)
        if match is None:
            raise ArchiveError(f"{row.path!r}: not a name that a table's file has")
        data = next_file(archive, below + row.path, limit, may_have_folders=bool(below))
        if len(data) != row.bytes or digest(data) != row.sha256:
            raise ArchiveError(f"{row.path}: other bytes than listed")
        yield Packed(row.path, data, match["version"], match["arch"], match["identity"],
                     match["name"])  # fmt: skip
    if (more := archive.next()) is not None:
        raise ArchiveError(f"{more.name!r}: not in the list of files")


def _check(listing: Listing) -> None:
    if listing.schema != SCHEMA:
        raise ArchiveError(f"schema {listing.schema}, this version reads {SCHEMA}")
    if len(listing.files) > _MOST_FILES:
        raise ArchiveError(f"{len(listing.files)} files, more than {_MOST_FILES}")
    paths = [row.path for row in listing.files]
    if paths != sorted(set(paths)):
        raise ArchiveError("the list of files is not in order")


def next_file(
    archive: tarfile.TarFile, name: str, limit: int, *, may_have_folders: bool = False
) -> bytes:
    """Return the bytes of the file that must come next, after folders above it where they may.

    Raises:
        ArchiveError: another one comes, it is no plain file, or it is too large or cut off.
    """
    member = archive.next()
    while may_have_folders and member is not None and _is_above(member, name):
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


def _is_above(member: tarfile.TarInfo, name: str) -> bool:
    return member.isdir() and name.startswith(f"{member.name}/")
