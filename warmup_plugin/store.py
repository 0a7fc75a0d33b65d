# SPDX-License-Identifier: Apache-2.0
"""One identity's directory: the only place where this package touches the disk.

    rank_tp0_pp0_dp0.json            a table, readable by FlashInfer alone
    rank_tp0_pp0_dp0.manifest.json   its manifest, written after it
    identity.json                    the config factors in clear, written once
    foreign/                         files set aside: <name>.<8 hex digits>
    reports/                         the last reports

Owns reading, publishing and setting aside. Every file appears whole: unique temporary file in the
same directory, fsync, `os.replace`, fsync of the directory. Refuses to overwrite a table unread: it
publishes the union with what is there now, and a file that cannot be used is moved, never deleted.
What the disk cannot do is a value (`Miss`, `NotPublished`), never an `OSError`, and is logged once.

Not promised: where the file system has no locks between hosts (some NFS), two that publish one name
in the same instant keep the later union; what the other found is tuned again by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from warmup_plugin.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.merge import Merged, Part, Source, merge
from warmup_plugin.paths import IDENTITY_NAME, manifest_name, parse_table_name, table_name
from warmup_plugin.table import Miss, Table, digest, parse_table, render_table, stamp_conflicts

if TYPE_CHECKING:
    from warmup_plugin.identity import Identity
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

FOREIGN: Final = "foreign"
REPORTS: Final = "reports"

#: Judged, and of no use to anybody here: these files make room. Others may be fine for somebody.
_SET_ASIDE: Final = frozenset({"foreign", "too_large", "unreadable"})
#: A writer that holds the lock for longer than this is stopped or gone; go on without.
_LOCK_WAIT_S: Final = 5.0


@dataclass
class Reading:
    """What the directory holds for this environment; `misses` says why not the rest of it."""

    parts: list[Part] = field(default_factory=list)
    misses: list[tuple[Path, Miss]] = field(default_factory=list)
    writable: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """The table as it now stands on disk; `written` is false where it stood there already."""

    path: Path
    sha256: str
    bytes: int
    generation: int
    written: bool


@dataclass(frozen=True)
class NotPublished:
    """Why nothing was written."""

    reason: str


class _Mark(NamedTuple):
    """Which file it was that was read: a file replaced since then has another mark."""

    device: int
    inode: int
    size: int
    changed_ns: int


class _File(NamedTuple):
    path: Path
    content: bytes | Miss
    mark: _Mark | None = None


class _Found(NamedTuple):
    """A table's place: what can be used, what cannot and why, and what should make room."""

    part: Part | None
    misses: list[tuple[Path, Miss]]
    obstacles: list[tuple[Path, _Mark]]
    table: bytes = b""


class Store:
    """The files of one identity; without a directory, memory only for the `reason` given."""

    def __init__(
        self, directory: Path | None, settings: Settings, *, reason: str = "no directory"
    ) -> None:
        self.directory = directory
        self._limit = settings.table_bytes
        self._num_reports = settings.reports
        self._mode = settings.mode
        self._reason = reason
        self._has_warned = False

    def read(self, stamp: Mapping[str, str], *, identity: str | None = None) -> Reading:
        """Read every table made under `stamp`; move what is of no use to `foreign/`.

        With `identity`, a manifest of another one is foreign too. Never raises `OSError`.
        """
        if self.directory is None:
            return Reading(warnings=[self._reason])
        try:
            names = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            return Reading(
                warnings=[self._warn(f"{_said(error, self.directory)}; nothing is kept on disk")]
            )
        reading = Reading(writable=self._mode == "on" and _takes_files(self.directory))
        if self._mode == "on" and not reading.writable:
            warning = f"{self.directory}: not writable; used as it is, nothing will be added"
            reading.warnings.append(self._warn(warning))
        for source in sorted(filter(None, map(parse_table_name, names))):
            found = self._find(self.directory, source, stamp, identity)
            reading.parts += [found.part] if found.part else []
            reading.misses += found.misses
            if reading.writable:
                with contextlib.suppress(OSError):  # ignored where it stands
                    _set_aside(self.directory, found.obstacles)
        return reading

    def publish(
        self, name: Source, table: Table, manifest: Manifest, identity: Identity | bytes
    ) -> Published | NotPublished:
        """Write the union of `table` and the file of that (tp, pp, dp), with its manifest.

        `table` wins where both have a task. `manifest.generation` is the highest one known; the
        union's is one more. Where the file says all of it already, nothing is written.
        Never raises `OSError`.
        """
        if self.directory is None:
            return NotPublished(self._reason)
        if self._mode != "on":
            return NotPublished(f"mode is {self._mode}")
        try:
            _make_directory(self.directory)
            with _locked(self.directory):
                published = self._publish(self.directory, Part(table, manifest, name))
                if isinstance(published, Published):
                    _write_once(self.directory / IDENTITY_NAME, identity)
        except OSError as error:
            return NotPublished(
                self._warn(f"{_said(error, self.directory)}; the table is not kept")
            )
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
            found = [(path, _mark(path.stat())) for path in paths if path.exists()]
            _set_aside(self.directory, found)

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
            _make_directory(folder)
            _write({folder / name: data})
            _keep_newest(folder, self._num_reports)
        except OSError as error:
            return NotPublished(self._warn(f"{_said(error, folder)}; the report is not kept"))
        return folder / name

    def _find(
        self, directory: Path, source: Source, stamp: Mapping[str, str], identity: str | None
    ) -> _Found:
        """Read a table and its manifest, and judge both."""
        found = self._find_once(directory, source, stamp, identity)
        if any(miss.kind == "stale" for _, miss in found.misses):
            # Perhaps only a writer between its two files; a manifest that stays stale is one.
            found = self._find_once(directory, source, stamp, identity)
        return found

    def _find_once(
        self, directory: Path, source: Source, stamp: Mapping[str, str], identity: str | None
    ) -> _Found:
        table_file = _read(directory / table_name(*source), self._limit)
        manifest_file = _read(directory / manifest_name(*source), self._limit)
        table = _judge_table(table_file.content, stamp, self._limit)
        if isinstance(table, Miss):
            obstacles = [*_obstacle(table_file), *_obstacle(manifest_file)]
            goes = table.kind in _SET_ASIDE
            return _Found(None, [(table_file.path, table)], obstacles if goes else [])
        assert isinstance(table_file.content, bytes)
        manifest = _judge_manifest(manifest_file.content, table_file.content, identity, self._limit)
        if isinstance(manifest, Manifest):
            part = Part(table, manifest, source, table_file.content, manifest_file.content)
            return _Found(part, [], [], table_file.content)
        obstacles = _obstacle(manifest_file) if manifest.kind in _SET_ASIDE else []
        misses = [(manifest_file.path, manifest)]
        return _Found(Part(table, None, source), misses, obstacles, table_file.content)

    def _publish(self, directory: Path, mine: Part) -> Published | NotPublished:
        assert mine.manifest is not None
        found = self._find(directory, mine.source, mine.table.stamp, mine.manifest.identity)
        for path, miss in found.misses:
            if miss.kind in ("denied", "newer"):  # somebody's, and perhaps in use: leave it alone
                return NotPublished(self._warn(f"{path}: {miss.reason}; the table is not kept"))
        _set_aside(directory, found.obstacles)
        path = directory / table_name(*mine.source)
        there = found.part.manifest if found.part else None
        generation = max(mine.manifest.generation, there.generation if there else 0) + 1
        newest = replace(mine, manifest=replace(mine.manifest, generation=generation))
        union = merge([newest, found.part] if found.part else [newest])
        assert union.manifest is not None
        if there and _says_all(found, union):
            size = len(found.table)
            return Published(path, there.table_sha256, size, there.generation, written=False)
        return self._replace(path, mine.source, union.table, union.manifest)

    def _replace(
        self, path: Path, source: Source, table: Table, manifest: Manifest
    ) -> Published | NotPublished:
        body = render_table(table)
        sha256 = digest(body)
        words = render_manifest(replace(manifest, table_sha256=sha256))
        # Never put in place what the next start would only set aside.
        readable = parse_table(body, limit=self._limit), parse_manifest(words, limit=self._limit)
        for miss in readable:
            if isinstance(miss, Miss):
                return NotPublished(self._warn(f"{path}: {miss.reason}; the table is not kept"))
        # The table first: to die in between leaves a stale manifest, which vouches for nothing.
        _write({path: body, path.with_name(manifest_name(*source)): words})
        return Published(path, sha256, len(body), manifest.generation, written=True)

    def _warn(self, message: str) -> str:
        """Log the first trouble as a warning: the next ones mostly have the same cause."""
        logger.log(
            logging.DEBUG if self._has_warned else logging.WARNING, "warmup-plugin: %s", message
        )
        self._has_warned = True
        return message


def _says_all(found: _Found, union: Merged) -> bool:
    """Return whether the files say already what the union would."""
    if found.part is None or found.part.manifest is None or union.manifest is None:
        return False
    same_table = union.table == found.part.table
    return same_table and union.manifest.answers_like(found.part.manifest)


def _said(error: OSError, path: Path) -> str:
    return f"{error.filename or path}: {error.strerror or error}"


def _judge_table(content: bytes | Miss, stamp: Mapping[str, str], limit: int) -> Table | Miss:
    table = content if isinstance(content, Miss) else parse_table(content, limit=limit)
    if isinstance(table, Miss):
        return table
    conflicts = stamp_conflicts(table.stamp, stamp).items()
    if conflicts:
        words = ", ".join(f"{name} {theirs}, here {ours}" for name, (theirs, ours) in conflicts)
        return Miss(f"tuned with {words}", "foreign")
    return table


def _judge_manifest(
    content: bytes | Miss, table: bytes, identity: str | None, limit: int
) -> Manifest | Miss:
    manifest = content if isinstance(content, Miss) else parse_manifest(content, limit=limit)
    if isinstance(manifest, Miss):
        return manifest
    if identity is not None and manifest.identity != identity:
        return Miss(f"of identity {manifest.identity}, here {identity}", "foreign")
    if manifest.table_sha256 != digest(table):
        return Miss("vouches for a table with another sha256", "stale")
    return manifest


def _read(path: Path, limit: int) -> _File:
    """Read a file, unless it is none or too large; what stands in the way is a `Miss`."""
    try:
        # Not blocking: somebody may have put a pipe here, and opening one waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _File(path, Miss("no such file", "absent"))
    except OSError as error:
        return _File(path, Miss(_said(error, path), "denied"))
    try:
        status = os.fstat(descriptor)
        mark = _mark(status)
        if not stat.S_ISREG(status.st_mode):
            return _File(path, Miss("not a regular file", "unreadable"), mark)
        if status.st_size > limit:
            reason = f"{status.st_size} bytes, more than the {limit} allowed"
            return _File(path, Miss(reason, "too_large"), mark)
        with open(descriptor, "rb", closefd=False) as file:
            return _File(path, file.read(status.st_size + 1), mark)
    except OSError as error:
        return _File(path, Miss(_said(error, path), "denied"))
    finally:
        os.close(descriptor)


def _obstacle(file: _File) -> list[tuple[Path, _Mark]]:
    return [(file.path, file.mark)] if file.mark else []


def _mark(status: os.stat_result) -> _Mark:
    return _Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _takes_files(directory: Path) -> bool:
    """Return whether files can be written here, or directories made down to here."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        return False


def _make_directory(directory: Path) -> None:
    """Make a directory and its parents, closed to other users; those there stay as they are."""
    if directory.is_dir():
        return
    if directory != directory.parent:
        _make_directory(directory.parent)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():  # made by another process, or a file in its place?
            raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other publishers of this directory out, as far as the file system knows locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(descriptor) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here: the union and os.replace are what is left
    return True


def _write(files: Mapping[Path, bytes]) -> None:
    """Put files of one directory in place, each whole and none before all are on the disk.

    Raises `OSError`, leaving nothing behind that was not there.
    """
    unique = f"{os.uname().nodename}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = {path: path.with_name(f".{path.name}.{unique}.tmp") for path in files}
    try:
        for path, data in files.items():
            _write_new(temporary[path], data)
        for path in files:
            temporary[path].replace(path)
            _sync_directory(path.parent)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Make a rename durable where directories can be synchronised; the file is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_once(path: Path, identity: Identity | bytes) -> None:
    if not path.exists():
        _write({path: identity if isinstance(identity, bytes) else identity.canonical()})


def _set_aside(directory: Path, obstacles: list[tuple[Path, _Mark]]) -> None:
    """Move files to `foreign/`, all under one new suffix; raises `OSError`."""
    if not obstacles:
        return
    folder = directory / FOREIGN
    _make_directory(folder)
    suffix = _unused_suffix(folder, [path.name for path, _ in obstacles])
    for path, mark in obstacles:
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            # Or has put a good file here since this one was read.
            if _mark(path.stat()) == mark:
                path.rename(folder / f"{path.name}.{suffix}")


def _unused_suffix(folder: Path, names: list[str]) -> str:
    """Return 8 hex digits under which nothing is set aside yet: a rename would replace it."""
    taken = {path.name for path in folder.iterdir()}
    while True:
        suffix = secrets.token_hex(4)
        if taken.isdisjoint(f"{name}.{suffix}" for name in names):
            return suffix


def _keep_newest(folder: Path, number: int) -> None:
    kept = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    kept.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in kept[:-number]:
        path.unlink(missing_ok=True)
