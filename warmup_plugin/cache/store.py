# SPDX-License-Identifier: Apache-2.0
"""One identity's directory: a start reads, writes and moves its tables and manifests through it.

    rank_tp0_pp0_dp0.json            a table, readable by FlashInfer alone
    rank_tp0_pp0_dp0.manifest.json   its manifest, written after it
    identity.json                    the config factors in clear, written once
    foreign/                         files set aside: <name>.<8 hex digits>
    reports/                         the last reports

Owns the directory: what is read there, published (`publishing.py`), set aside. Every file appears
whole: unique temporary file in the same directory, fsync (but for a report), `os.replace`, fsync of
the directory. A file that cannot be used is moved, never deleted.
What the disk cannot do is a value (`Miss`, `NotPublished`), never an `OSError`, and is logged once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from warmup_plugin.cache.cached_table import CachedTable, NotPublished, Published, Source
from warmup_plugin.cache.files import (
    exposed,
    is_inside,
    keep_newest,
    make_directory,
    mark_of,
    move_aside,
    said,
    takes_files,
    write_files,
)
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.paths import (
    IDENTITY_NAME,
    JOURNAL,
    JOURNAL_SUFFIX,
    manifest_name,
    parse_table_name,
    table_name,
)
from warmup_plugin.cache.reader import Shelf
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.runtime.safe_json import Miss

if TYPE_CHECKING:
    from warmup_plugin.identity import Identity
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

REPORTS: Final = "reports"


class Reading(msgspec.Struct):
    """What the directory holds for this environment; `misses` says why not the rest of it.

    ``parts`` of the layers come after the directory's own; what is amiss in a layer is a warning,
    since this engine cannot heal it.
    """

    parts: list[CachedTable] = msgspec.field(default_factory=list)
    misses: list[tuple[Path, Miss]] = msgspec.field(default_factory=list)
    writable: bool = False
    warnings: list[str] = msgspec.field(default_factory=list)


def unsafe(directory: Path, root: Path, settings: Settings) -> str:
    """Return why a directory of this root must not be used, or an empty string.

    Every rank asks, not only those that have a `Store`: each keeps a journal there.
    """
    if not is_inside(directory, root):
        return (
            f"{directory}: a link that leads out of {root} (to keep tables elsewhere, make the "
            "root itself the link)"
        )
    if settings.require_private and (place := exposed(directory, root)) is not None:
        return f"{place}: every user may write there (WARMUP_PLUGIN_REQUIRE_PRIVATE)"
    return ""


class Store:
    """The files of one identity; without a directory, memory only for the `reason` given.

    No link is followed out of the `root`, which is the directory itself where none is given.
    ``layers`` are read-only directories of the same identity: read after it, never written.
    """

    def __init__(
        self,
        directory: Path | None,
        settings: Settings,
        *,
        root: Path | None = None,
        layers: Sequence[Path] = (),
        reason: str = "no directory",
    ) -> None:
        self.directory = directory
        self._root = root or directory or Path("/")
        self.layers = tuple(layers)
        self._limit = settings.table_bytes
        self._num_reports = settings.reports
        self._mode = settings.mode
        self._reason = reason
        self._has_warned = False
        self._warning = ""
        if directory is not None and (why := unsafe(directory, self._root, settings)):
            self.directory, self._reason = None, self._warn(f"{why}; nothing is read or kept there")
        elif directory is not None and (place := exposed(directory, self._root)) is not None:
            self._warning = (
                f"{place}: every user may write there, and so choose the kernels that run"
            )

    def read(
        self,
        stamp: Mapping[str, str],
        *,
        identity: str | None = None,
        seen: Callable[[bytes, str], None] = lambda _table, _sha256: None,
    ) -> Reading:
        """Read every table made under `stamp`; move what is of no use to `foreign/`.

        With `identity`, a manifest of another one is foreign too. ``seen``: as of `Shelf`, of the
        directory's own tables. Never raises `OSError`.
        """
        reading = self._read_own(stamp, identity, seen)
        for layer in self.layers:
            with contextlib.suppress(OSError):  # a layer that is not there holds nothing
                for found in self._shelf(layer).look(stamp, identity):
                    reading.parts += [found.part] if found.part else []
                    reading.warnings += [f"{path}: {m.reason}" for path, m in found.misses]
        return reading

    @property
    def has_journals(self) -> bool:
        """Whether starts that have not finished have left word of what they tuned."""
        if self.directory is None:
            return False
        with contextlib.suppress(OSError):
            return any(p.suffix == JOURNAL_SUFFIX for p in (self.directory / JOURNAL).iterdir())
        return False

    def _read_own(
        self, stamp: Mapping[str, str], identity: str | None, seen: Callable[[bytes, str], None]
    ) -> Reading:
        if self.directory is None:
            return Reading(warnings=[self._reason])
        try:
            is_there = self.directory.exists()
            shelf = msgspec.structs.replace(self._shelf(self.directory), seen=seen)
            look = list(shelf.look(stamp, identity)) if is_there else []
        except OSError as error:
            return Reading(
                warnings=[self._warn(f"{said(error, self.directory)}; nothing is kept on disk")]
            )
        reading = Reading(writable=self._mode == "on" and takes_files(self.directory))
        if self._warning:
            reading.warnings.append(self._warning)
            logger.warning("warmup-plugin: %s", self._warning)
            self._warning = ""
        if self._mode == "on" and not reading.writable:
            warning = f"{self.directory}: not writable; used as it is, nothing will be added"
            reading.warnings.append(self._warn(warning))
        for found in look:
            reading.parts += [found.part] if found.part else []
            reading.misses += found.misses
            if reading.writable:
                with contextlib.suppress(OSError):  # ignored where it stands
                    move_aside(self.directory, found.obstacles)
        return reading

    def _shelf(self, directory: Path) -> Shelf:
        """Return a directory to be read: our own, or a layer, which is its own root."""
        root = self._root if directory == self.directory else directory
        return Shelf(directory, root, self._limit)

    def publish(
        self,
        name: Source,
        table: Table,
        manifest: Manifest,
        identity: Identity | bytes,
        *,
        thrown_out: Mapping[str, Entry] | None = None,
    ) -> Published | NotPublished:
        """Write the union of `table` and the file of that (tp, pp, dp), with its manifest.

        `table` wins where both have a task. `manifest.generation` is the highest one known; the
        union's is one more. Where the file says all of it already, nothing is written. Entries
        `thrown_out` are no good: where the file has the very same ones, they go.
        Never raises `OSError`.
        """
        if self.directory is None:
            return NotPublished(self._reason)
        if self._mode != "on":
            return NotPublished(f"mode is {self._mode}")
        try:
            from warmup_plugin.cache.publishing import publish_union  # a warm start writes no table

            make_directory(self.directory, self._root)
            mine = CachedTable(table, manifest, name)
            published = publish_union(self._shelf(self.directory), mine, thrown_out or {})
            if isinstance(published, Published):
                _write_once(self.directory / IDENTITY_NAME, identity)
        except OSError as error:
            return NotPublished(self._warn(f"{said(error, self.directory)}; the table is not kept"))
        if isinstance(published, NotPublished):
            self._warn(published.reason)
        return published

    def set_aside(self, name: Source, reason: str) -> None:
        """Move the table of that (tp, pp, dp) and its manifest away: they were found wrong in use.

        Never raises `OSError`; what cannot be moved stays.
        """
        if self.directory is None or self._mode != "on":
            return
        paths = [self.directory / each for each in (table_name(*name), manifest_name(*name))]
        self._warn(f"{paths[0]}: set aside: {reason}")
        with contextlib.suppress(OSError):
            found = [(path, mark_of(path.stat())) for path in paths if path.exists()]
            move_aside(self.directory, found)

    def disown(self, reason: str) -> None:
        """Move all manifests away: no table is verified any more, those of other writers included.

        Never raises `OSError`; what cannot be moved stays.
        """
        if self.directory is None or self._mode != "on":
            return
        with contextlib.suppress(OSError):
            names = filter(None, (parse_table_name(p.name) for p in self.directory.iterdir()))
            paths = [self.directory / manifest_name(*name) for name in names]
            found = [(path, mark_of(path.stat())) for path in paths if path.exists()]
            if found:
                self._warn(f"{self.directory}: its manifests are set aside: {reason}")
            move_aside(self.directory, found)

    def leave_mark(self, name: str) -> bool:
        """Put an empty file of that name here, for other nodes to see; False where it cannot be."""
        if self.directory is None or self._mode != "on":
            return False
        with contextlib.suppress(OSError):
            make_directory(self.directory, self._root)
            write_files({self.directory / f".{name}.mark": b""})
            return True
        return False

    def sees_mark(self, name: str) -> bool:
        """Return whether the file is here: then two nodes have one directory."""
        return self.directory is not None and (self.directory / f".{name}.mark").exists()

    def remove_mark(self, name: str) -> None:
        """Take the file away again."""
        if self.directory is not None:
            with contextlib.suppress(OSError):
                (self.directory / f".{name}.mark").unlink()

    def write_report(self, data: bytes, name: str) -> Path | NotPublished:
        """Keep a report; the oldest make room, as told by the time they were written.

        Raises `ValueError` for a `name` that is not a plain file name; never `OSError`.
        """
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"a report is named {name!r}: must be a plain file name")
        if self.directory is None or self._mode != "on" or not self._num_reports:
            return NotPublished(self._reason if self.directory is None else "no reports are kept")
        folder = self.directory / REPORTS
        try:
            make_directory(folder, self.directory)
            write_files({folder / name: data}, synced=False)
            keep_newest(folder, self._num_reports)
        except OSError as error:
            return NotPublished(self._warn(f"{said(error, folder)}; the report is not kept"))
        return folder / name

    def _warn(self, message: str) -> str:
        """Log the first trouble as a warning: the next ones mostly have the same cause."""
        logger.log(
            logging.DEBUG if self._has_warned else logging.WARNING, "warmup-plugin: %s", message
        )
        self._has_warned = True
        return message


def _write_once(path: Path, identity: Identity | bytes) -> None:
    if not path.exists():
        write_files({path: identity if isinstance(identity, bytes) else identity.canonical()})
