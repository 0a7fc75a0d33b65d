# SPDX-License-Identifier: Apache-2.0
"""Every identity that is kept on this machine, found and judged quickly: ten thousand in a second.

    <root>/flashinfer_autotune/<version>/<arch>/<identity>/     below a cache root, or a layer
    <override>/<identity>/                                      below the override

Owns the walk, and what a glance tells: names, sizes, times, the head of a manifest. Tables are not
checked, only counted (`verify` checks). Changes nothing; what cannot be read is told in a word.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.reading import factors_in_words
from warmup_plugin.errors import PlacementError
from warmup_plugin.manifest import SCHEMA
from warmup_plugin.paths import IDENTITY_NAME, LAYOUT, parse_table_name, resolve
from warmup_plugin.settings import Settings

DIGITS: Final = 64
_IDENTITY: Final = re.compile(f"[0-9a-f]{{{DIGITS}}}")
_HEAD: Final = 4096
_TASKS: Final = b'\n"tasks": '
_ENTRY: Final = b'\n"('
_ANY: Final = msgspec.json.Decoder(dict[str, Any])
_FACTORS: Final = msgspec.json.Decoder(dict[str, Any])

Kind = Literal["root", "override", "layer"]


@dataclass(frozen=True)
class Root:
    """A place where identities lie, and what says so. A layer is never written."""

    path: Path
    source: str
    kind: Kind


@dataclass(frozen=True)
class Kept:
    """The directory of one identity. Version and architecture are empty below an override."""

    root: Root
    directory: str
    identity: str
    version: str
    arch: str
    files: Mapping[str, os.stat_result] = field(repr=False)
    folders: tuple[str, ...]

    @property
    def tables(self) -> list[str]:
        """Return the names of its tables."""
        return sorted(name for name in self.files if parse_table_name(name))

    @property
    def bytes(self) -> int:
        """Return the size of its own files, without reports and what is set aside."""
        return sum(status.st_size for status in self.files.values())

    @property
    def changed(self) -> float:
        """Return when the newest table was written, unix seconds."""
        return max((self.files[name].st_mtime for name in self.tables), default=0.0)


@dataclass(frozen=True)
class Glance:
    """What is to be told of an identity in a line."""

    kept: Kept
    words: str
    entries: int
    state: str
    engine: str


def add_root_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to look: the same options for every verb that asks."""
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="cache root, as given to warm_up(root=...)"
    )
    parser.add_argument(
        "--engine-root", metavar="DIR", type=Path, help="the engine's own cache root"
    )


def find_roots(
    root: Path | None, engine_root: Path | None, settings: Settings, environ: Mapping[str, str]
) -> list[Root]:
    """Return the writable root first, then the layers.

    Raises:
        CommandError: there is no root at all.
    """
    try:
        place = resolve(
            settings, "0" * DIGITS, version="0", arch="cpu", argument=_absolute(root),
            engine_root=_absolute(engine_root), environ=environ,
        )  # fmt: skip
    except PlacementError as error:
        raise CommandError(str(error)) from None
    first = place.components[0]
    source = {"argument": "--root", "engine root": "--engine-root"}.get(first.source, first.source)
    kind: Kind = "override" if first.name == "override" else "root"
    layers = [Root(path, "WARMUP_PLUGIN_LAYERS", "layer") for path in settings.layers]
    return [Root(Path(first.value), source, kind), *layers]


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def walk(roots: list[Root]) -> Iterator[Kept]:
    """Yield every identity below these roots."""
    for root in roots:
        for shelf, version, arch in shelves(root):
            for name in _names(shelf):
                if _IDENTITY.fullmatch(name):
                    yield _look(root, f"{shelf}/{name}", name, version, arch)


def shelves(root: Root) -> Iterator[tuple[str, str, str]]:
    """Yield the directories that hold identities: path, version, architecture."""
    if root.kind == "override":
        yield str(root.path), "", ""
        return
    top = str(root.path / LAYOUT)
    for version in _names(top):
        for arch in _names(f"{top}/{version}"):
            yield f"{top}/{version}/{arch}", version, arch


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208  # of ten thousand; paths cost seconds
    except OSError:
        return []


def _look(root: Root, directory: str, identity: str, version: str, arch: str) -> Kept:
    files, folders = {}, []
    with contextlib.suppress(OSError), os.scandir(directory) as found:
        for entry in found:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    files[entry.name] = entry.stat()
    return Kept(root, directory, identity, version, arch, files, tuple(sorted(folders)))


def matching(
    roots: list[Root], prefix: str, version: str | None = None, arch: str | None = None
) -> list[Kept]:
    """Return the identities that begin with these digits, below all of the roots.

    Raises:
        CommandError: there is none, or there are several different ones.
    """
    found = [
        kept
        for kept in walk(roots)
        if kept.identity.startswith(prefix)
        and version in (None, kept.version)
        and arch in (None, kept.arch)
    ]
    names = sorted({kept.identity for kept in found})
    if not names:
        where = ", ".join(str(root.path) for root in roots)
        raise CommandError(f"no identity below {where} begins with {prefix}")
    if len(names) > 1:
        raise CommandError(f"several identities begin with {prefix}: {', '.join(names)}")
    return found


def glance(kept: Kept) -> Glance:
    """Return what a line says about an identity: its largest table stands for all of them."""
    tables = kept.tables
    name = max(tables, key=lambda each: kept.files[each].st_size, default="")
    head = _head(f"{kept.directory}/{name.removesuffix('.json')}.manifest.json") if name else None
    entries = _count_entries(f"{kept.directory}/{name}") if name else 0
    engine = f"{head.get('engine', '')} {head.get('engine_version', '')}" if head else ""
    return Glance(kept, _words(kept), entries, _state(tables, head), engine.strip())


def _state(tables: list[str], head: dict[str, Any] | None) -> str:
    if not tables:
        return "empty"
    if head is None:
        return "no manifest"
    if "schema" not in head:
        return "has faults"
    if not isinstance(head["schema"], int) or head["schema"] > SCHEMA:
        return "newer"
    return "complete" if head.get("complete") is True else "incomplete"


def _head(path: str) -> dict[str, Any] | None:
    """Return a manifest's header without its tasks; empty where it is none, None without a file."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as above
            data = file.read(_HEAD)
            end = data.find(_TASKS)
            if end < 0:
                data += file.read()
                end = data.find(_TASKS)
    except OSError:
        return None
    whole = data if end < 0 else data[:end].rstrip().rstrip(b",") + b"}"
    try:
        return _ANY.decode(whole)
    except (msgspec.DecodeError, RecursionError):
        return {}


def _count_entries(path: str) -> int:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as above
            return file.read().count(_ENTRY)
    except OSError:
        return 0


def factors_of(kept: Kept) -> dict[str, Any]:
    """Return the factors as they stand in the file; empty where it cannot be read."""
    try:
        with open(f"{kept.directory}/{IDENTITY_NAME}", "rb") as file:  # noqa: PTH123  # as above
            return _FACTORS.decode(file.read(1 << 20))
    except (OSError, msgspec.DecodeError, RecursionError):
        return {}


def _words(kept: Kept) -> str:
    factors = factors_of(kept)
    return factors_in_words(factors) if factors else f"? (no {IDENTITY_NAME})"
