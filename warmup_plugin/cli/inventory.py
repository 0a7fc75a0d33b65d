# SPDX-License-Identifier: Apache-2.0
"""Every identity that is kept on this machine, found and judged quickly: ten thousand in a second.

    <root>/flashinfer_autotune/<version>/<arch>/<identity>/     below a cache root, or a layer
    <override>/<identity>/                                      below the override

Owns the walk, and what a glance tells: names, sizes, times, the head of a manifest and whether its
sha256 is the table's. What stands in a table is only counted (`verify` checks it). Changes nothing;
what cannot be read is told in a word.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from warmup_plugin.cache.manifest import SCHEMA
from warmup_plugin.cache.paths import IDENTITY_NAME, LAYOUT, parse_table_name
from warmup_plugin.cli.load import factors_in_words
from warmup_plugin.cli.output import SHORT, CommandError
from warmup_plugin.cli.places import Root
from warmup_plugin.runtime.safe_json import digest

DIGITS: Final = 64
_IDENTITY: Final = re.compile(f"[0-9a-f]{{{DIGITS}}}")
_HEAD: Final = 4096
_FEW: Final = 4
_TASKS: Final = b'\n"tasks": '
_ENTRY: Final = b'\n"('
_ANY: Final = msgspec.json.Decoder(dict[str, Any])


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
        raise CommandError(f"several identities begin with {prefix}: {few(names)}")
    return found


def few(names: list[str]) -> str:
    """Return names of identities for a message: the first of them, short, and how many more."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(name[:SHORT] for name in names[:_FEW]) + more


def glance(kept: Kept) -> Glance:
    """Return what a line says about an identity: its largest table stands for all of them."""
    seen = [_seen(kept.directory, name) for name in kept.tables]
    most = max(seen, key=lambda each: each.entries, default=_Seen({}, 0, whole=True))
    head = most.head or {}
    engine = f"{head.get('engine', '')} {head.get('engine_version', '')}"
    has_fault = any(not each.whole for each in seen)
    state = "has faults" if has_fault else _state(seen, most.head)
    return Glance(kept, _words(kept), most.entries, state, engine.strip())


class _Seen(NamedTuple):
    """A table at a glance: the head of its manifest, its entries; ``whole``: it ends as it should.

    The head is None without a manifest.
    """

    head: dict[str, Any] | None
    entries: int
    whole: bool


def _seen(directory: str, name: str) -> _Seen:
    head = _head(f"{directory}/{name.removesuffix('.json')}.manifest.json")
    try:
        with open(f"{directory}/{name}", "rb") as file:  # noqa: PTH123  # of ten thousand, as above
            data = file.read()
    except OSError:
        return _Seen(head, 0, whole=False)
    vouched = head.get("table_sha256") if head else None
    whole = data.rstrip().endswith(b"}") if vouched is None else vouched == digest(data)
    return _Seen(head, data.count(_ENTRY) if whole else 0, whole)


def _state(seen: list[_Seen], head: dict[str, Any] | None) -> str:
    if not seen:
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


def factors_of(kept: Kept) -> dict[str, Any]:
    """Return the factors as they stand in the file; empty where it cannot be read."""
    found = _factors(kept)
    return {} if isinstance(found, str) else found


def _factors(kept: Kept) -> dict[str, Any] | str:
    """Return the factors, or why there are none."""
    try:
        with open(f"{kept.directory}/{IDENTITY_NAME}", "rb") as file:  # noqa: PTH123  # as above
            return _ANY.decode(file.read(1 << 20))
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return error.strerror or str(error)
    except (msgspec.DecodeError, RecursionError) as error:
        return str(error)


def _words(kept: Kept) -> str:
    factors = _factors(kept)
    if isinstance(factors, str):
        return f"? ({IDENTITY_NAME}: {factors})"
    return factors_in_words(factors)
