# SPDX-License-Identifier: Apache-2.0
"""One file with tables in it: how it is laid out, written and read.

    warmup-tables.json                                            every file: path, bytes, sha256
    flashinfer_autotune/<version>/<arch>/<identity>/<file>        tables, manifests, identity.json

An uncompressed tar, members in order, no times, no owners: equal tables give equal bytes on every
machine. Owns the format. Refuses, when reading, whatever it would not have written: other names or
types, another order, more or fewer bytes, another sha256. Nothing is written here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from warmup_plugin.cache.paths import IDENTITY_NAME, LAYOUT, manifest_name, parse_table_name
from warmup_plugin.cli import inventory
from warmup_plugin.cli.output import CommandError

LISTING: Final = "warmup-tables.json"
SCHEMA: Final = 1
_MOST_FILES: Final = 100_000
_PATH: Final = re.compile(
    rf"{LAYOUT}/(?P<version>[0-9][0-9A-Za-z.+!_-]*)/(?P<arch>sm[0-9]+|cpu)/(?P<identity>[0-9a-f]{{64}})/"
    r"(?P<name>rank_tp\d+_pp\d+_dp\d+(\.manifest)?\.json|identity\.json)"
)


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


def files_of(found: Iterable[inventory.Kept]) -> Iterator[Packed]:
    """Yield what of these identities goes into an archive.

    Raises:
        CommandError: a file cannot be read, or it is not known for which machine a table is.
    """
    for kept in found:
        version, arch = kept.version, kept.arch
        if not version:
            version, arch = _environment(kept)
        sources = [parse_table_name(name) for name in kept.tables]
        manifests = [manifest_name(*source) for source in sources if source]
        for name in sorted([*kept.tables, *(m for m in manifests if m in kept.files),
                            IDENTITY_NAME]):  # fmt: skip
            path = f"{LAYOUT}/{version}/{arch}/{kept.identity}/{name}"
            try:
                data = Path(kept.directory, name).read_bytes()
            except OSError as error:
                raise CommandError(f"{kept.directory}/{name}: {error.strerror}") from None
            yield Packed(path, data, version, arch, kept.identity, name)


def _environment(kept: inventory.Kept) -> tuple[str, str]:
    """Return version and architecture of a table whose path does not say them."""
    factors = inventory.factors_of(kept)
    version = str((factors.get("stamp") or {}).get("flashinfer_version", ""))
    capability = str((factors.get("gpu") or {}).get("capability", ""))
    if not version:
        raise CommandError(f"{kept.directory}: its identity does not say which FlashInfer it is of")
    return version, f"sm{capability.replace('.', '')}" if capability else "cpu"


def render(files: Iterable[Packed]) -> bytes:
    """Return the archive of these files: the same bytes for the same files."""
    ordered = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
    rows = [{"path": f.path, "bytes": len(f.data), "sha256": _sha256(f.data)} for f in ordered]
    listing = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA, "files": rows}), indent=1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in ((LISTING, listing), *((file.path, file.data) for file in ordered)):
            member = tarfile.TarInfo(name)  # no time, no owner, mode 0644
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read(path: Path, limit: int, sha256: str = "") -> list[Packed]:
    """Return the files of an archive, each checked; none is larger than ``limit``.

    Raises:
        CommandError: it is not the archive that was pinned, or not one of this package's.
    """
    try:
        with _opened(path) as file:
            if sha256:
                found = _digest_of(file)
                if found != sha256.lower().removeprefix("sha256:"):
                    raise CommandError(
                        f"{path}: sha256 {found}, not the {sha256} that was asked for"
                    )
                file.seek(0)
            # "r:": uncompressed, or a small file could unfold into a disk full.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                return list(_members(archive, limit))
    except _BadError as error:
        raise CommandError(f"{path}: {error}") from None
    except OSError as error:
        raise CommandError(f"{error.filename or path}: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise CommandError(f"{path}: not an archive of tables: {error}") from None


def _digest_of(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while part := file.read(1 << 20):
        found.update(part)
    return found.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open an archive, ``-`` for standard input; what comes as a stream is put aside whole first.

    A tar's digest and its members are read one after the other, which no stream allows.
    """
    is_stdin = str(path) == "-"
    if is_stdin and sys.stdin is None:
        raise _BadError("standard input is closed")
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if is_stdin else stack.enter_context(path.open("rb"))
        if not is_stdin and source.seekable():
            yield source
            return
        whole = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, whole)
        whole.seek(0)
        yield whole


class _BadError(Exception):
    """What is wrong with an archive."""


def _members(archive: tarfile.TarFile, limit: int) -> Iterator[Packed]:
    listing = _listing(archive, limit)
    for row in listing.files:
        match = _PATH.fullmatch(row.path)
        if match is None:
            raise _BadError(f"{row.path!r}: not a name that a table's file has")
        data = _next(archive, row.path, limit)
        if len(data) != row.bytes or _sha256(data) != row.sha256:
            raise _BadError(f"{row.path}: other bytes than listed")
        yield Packed(row.path, data, match["version"], match["arch"], match["identity"],
                     match["name"])  # fmt: skip
    if (more := archive.next()) is not None:
        raise _BadError(f"{more.name!r}: not in the list of files")


def _listing(archive: tarfile.TarFile, limit: int) -> _Listing:
    try:
        found = msgspec.json.decode(_next(archive, LISTING, limit), type=_Listing)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _BadError(f"{LISTING}: {error}") from None
    if found.schema != SCHEMA:
        raise _BadError(f"schema {found.schema}, this version reads {SCHEMA}")
    if len(found.files) > _MOST_FILES:
        raise _BadError(f"{len(found.files)} files, more than {_MOST_FILES}")
    paths = [row.path for row in found.files]
    if paths != sorted(set(paths)):
        raise _BadError(f"{LISTING}: its files are not in order")
    return found


def _next(archive: tarfile.TarFile, name: str, limit: int) -> bytes:
    member = archive.next()
    if member is None or member.name != name:
        raise _BadError(f"{name} should come next, not {member.name if member else 'the end'!r}")
    if member.type != tarfile.REGTYPE or member.issparse():
        raise _BadError(f"{name}: not a plain file")
    if member.size > limit:
        raise _BadError(f"{name}: {member.size} bytes, more than the {limit} allowed")
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise _BadError(f"{name}: cut off")
    return data


def digest_of(data: bytes) -> str:
    """Return the digest to pin an archive by."""
    return f"sha256:{_sha256(data)}"


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in place, whole.

    Raises:
        CommandError: it cannot be written.
    """
    if not path.name or path.is_dir():
        raise CommandError(f"{path}: a directory, not a file")
    if path.exists() and not path.is_file():  # a pipe or a device: nothing to put in place
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CommandError(f"{path}: {error.strerror}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def summary(files: Iterable[Packed]) -> list[dict[str, Any]]:
    """Return the identities in an archive as JSON values."""
    found: dict[tuple[str, str, str], list[Packed]] = {}
    for file in files:
        found.setdefault((file.version, file.arch, file.identity), []).append(file)
    return [
        {
            "flashinfer": version, "arch": arch, "identity": identity,
            "files": [file.name for file in group], "bytes": sum(len(f.data) for f in group),
        }
        for (version, arch, identity), group in sorted(found.items())
    ]  # fmt: skip
