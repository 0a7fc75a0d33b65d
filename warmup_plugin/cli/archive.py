# SPDX-License-Identifier: Apache-2.0
"""Archives of tables as files of the command line: what goes in, and where they come from.

Owns which files of which identities are packed, and reading an archive from a path or from standard
input, or an image from its folder; `warmup_plugin.cache.archive` and `image` have the formats.
Raises `CommandError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from warmup_plugin.cache import image, image_layout
from warmup_plugin.cache.archive import ArchiveError, Packed
from warmup_plugin.cache.archive import read as read_files
from warmup_plugin.cache.paths import IDENTITY_NAME, LAYOUT, manifest_name, parse_table_name
from warmup_plugin.cli import inventory
from warmup_plugin.cli.output import CommandError
from warmup_plugin.runtime.safe_json import digest


def files_of(found: Iterable[inventory.Kept]) -> Iterator[Packed]:
    """Yield what of these identities goes into an archive.

    Raises:
        CommandError: a file cannot be read, or it is not known for which machine a table is.
    """
    for kept in found:
        version, arch = kept.version, kept.arch
        if not version:
            version, arch = environment_of(kept)
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


def environment_of(kept: inventory.Kept) -> tuple[str, str]:
    """Return version and architecture of a table whose path does not say them."""
    factors = inventory.factors_of(kept)
    version = str((factors.get("stamp") or {}).get("flashinfer_version", ""))
    capability = str((factors.get("gpu") or {}).get("capability", ""))
    if not version:
        raise CommandError(f"{kept.directory}: its identity does not say which FlashInfer it is of")
    return version, f"sm{capability.replace('.', '')}" if capability else "cpu"


def read(path: Path, limit: int, sha256: str = "") -> list[Packed]:
    """Return the files of an archive or an image, each checked; none is larger than ``limit``.

    Raises:
        CommandError: it is not the one that was pinned, or not one of this package's.
    """
    try:
        if path.is_dir():
            return _of_image(path, limit, sha256)
        with _opened(path) as file:
            if sha256:
                _check_pinned(_digest_of(file), sha256)
                file.seek(0)
            return list(read_files(file, limit))
    except ArchiveError as error:
        raise CommandError(f"{path}: {error}") from None
    except OSError as error:
        raise CommandError(f"{error.filename or path}: {error.strerror or error}") from None


def _of_image(folder: Path, limit: int, sha256: str) -> list[Packed]:
    """Return the files of an image that lies in OCI's layout; its digest is the manifest's."""
    whole = image_layout.read(folder, limit)
    if sha256:
        _check_pinned(whole.manifest.digest.removeprefix("sha256:"), sha256)
    return image.read(whole, limit)


def _check_pinned(found: str, wanted: str) -> None:
    if found != wanted.lower().removeprefix("sha256:"):
        raise ArchiveError(f"sha256 {found}, not the {wanted} that was asked for")


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
        raise ArchiveError("standard input is closed")
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if is_stdin else stack.enter_context(path.open("rb"))
        if not is_stdin and source.seekable():
            yield source
            return
        whole = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, whole)
        whole.seek(0)
        yield whole


def digest_of(data: bytes) -> str:
    """Return the digest to pin an archive by."""
    return f"sha256:{digest(data)}"


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
