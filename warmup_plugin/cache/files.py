# SPDX-License-Identifier: Apache-2.0
"""How files are read, put in place and moved away: the mechanics under `store.py`.

Owns the promises of single files: one appears whole or not at all, what is in the way is moved and
never deleted, a pipe or a huge file blocks no process. Parses no file. Raises `OSError`
where it says so; reading never does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.runtime.safe_json import Miss

FOREIGN: Final = "foreign"


class Mark(msgspec.Struct, frozen=True):
    """Which file it was that was read: a file replaced since then has another mark."""

    device: int
    inode: int
    size: int
    changed_ns: int


class File(msgspec.Struct, frozen=True):
    path: Path
    content: bytes | Miss
    mark: Mark | None = None


def said(error: OSError, path: Path) -> str:
    return f"{error.filename or path}: {error.strerror or error}"


def is_inside(path: Path, root: Path) -> bool:
    """Return whether a path, its links followed, lies below a root or is it."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def exposed(directory: Path, root: Path) -> Path | None:
    """Return the first directory from the root down into which every user may write."""
    between = [path for path in (directory, *directory.parents) if path.is_relative_to(root)]
    for path in reversed(between):
        with contextlib.suppress(OSError):
            if path.stat().st_mode & stat.S_IWOTH:
                return path
    return None


def read_file(path: Path, limit: int, root: Path | None = None) -> File:
    """Read a file, unless it is none or too large; what stands in the way is a `Miss`.

    With a ``root``, links that lead out of it are not followed; nor is another user's file read of
    which this is only one name (a hard link can be made to any file that its maker can see).
    """
    try:
        # Not blocking: somebody may have put a pipe here, and opening one waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return File(path, Miss("no such file", "absent"))
    except OSError as error:
        return File(path, Miss(said(error, path), "denied"))
    try:
        status = os.fstat(descriptor)
        mark = mark_of(status)
        if reason := _unfit(descriptor, path, status, root):
            return File(path, Miss(reason, "unreadable"), mark)
        if status.st_size > limit:
            reason = f"{status.st_size} bytes, more than the {limit} allowed"
            return File(path, Miss(reason, "too_large"), mark)
        with open(descriptor, "rb", closefd=False) as file:
            return File(path, file.read(status.st_size + 1), mark)
    except OSError as error:
        return File(path, Miss(said(error, path), "denied"))
    finally:
        os.close(descriptor)


def _unfit(descriptor: int, path: Path, status: os.stat_result, root: Path | None) -> str:
    """Return why an open file is none, or none of the root's; an empty string where it is."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if root is None:
        return ""
    opened = Path(f"/proc/self/fd/{descriptor}")  # the file that was opened, whatever is there now
    place = opened if opened.exists() else path
    if not is_inside(place, root):
        return f"a link that leads out of {root}"
    if status.st_nlink > 1 and status.st_uid not in (os.geteuid(), 0, root.stat().st_uid):
        return f"one of {status.st_nlink} names of a file of user {status.st_uid}"
    return ""


def obstacle(file: File) -> list[tuple[Path, Mark]]:
    return [(file.path, file.mark)] if file.mark else []


def is_marked(path: Path, mark: Mark | None) -> bool:
    """Return whether this is still that file; for None, whether there is still none."""
    try:
        return mark_of(path.stat()) == mark
    except OSError:
        return mark is None


def mark_of(status: os.stat_result) -> Mark:
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def takes_files(directory: Path) -> bool:
    """Return whether files can be written here, or directories made down to here."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        return False


def make_directory(directory: Path, root: Path | None = None) -> None:
    """Make a directory and its parents, closed to other users; those there stay as they are.

    Raises `OSError` too where a link in its path leads out of ``root``.
    """
    if root is not None and not is_inside(directory, root):
        raise OSError(errno.EPERM, f"a link that leads out of {root}", str(directory))
    if directory.is_dir():
        return
    if directory != directory.parent:
        make_directory(directory.parent)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():  # made by another process, or a file in its place?
            raise


def write_files(
    files: Mapping[Path, bytes],
    is_current: Callable[[], bool] = lambda: True,
    *,
    synced: bool = True,
) -> dict[Path, Mark]:
    """Put files of one directory in place, each whole and none before all are on the disk.

    Unless ``synced`` they outlive this process and not the machine. Returns which files they are;
    none where `is_current` says, at the last moment, that what they were made from has changed.
    Raises `OSError`, leaving nothing behind that was not there.
    """
    unique = f"{os.uname().nodename}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = {path: path.with_name(f".{path.name}.{unique}.tmp") for path in files}
    try:
        marks = {
            path: _write_new(temporary[path], data, synced=synced) for path, data in files.items()
        }
        if not is_current():
            for path in temporary.values():
                path.unlink()
            return {}
        for path in files:
            temporary[path].replace(path)
            if synced:
                _sync_directory(path.parent)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return marks


def _write_new(path: Path, data: bytes, *, synced: bool) -> Mark:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())
        return mark_of(os.fstat(file.fileno()))


def _sync_directory(directory: Path) -> None:
    """Make a rename durable where directories can be synchronised; the file is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_aside(directory: Path, obstacles: list[tuple[Path, Mark]]) -> None:
    """Move files to `foreign/`, all under one new suffix; raises `OSError`."""
    if not obstacles:
        return
    folder = directory / FOREIGN
    make_directory(folder, directory)
    suffix = _unused_suffix(folder, [path.name for path, _ in obstacles])
    for path, mark in obstacles:
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            # Or has put a good file here since this one was read.
            if mark_of(path.stat()) == mark:
                path.rename(folder / f"{path.name}.{suffix}")


def _unused_suffix(folder: Path, names: list[str]) -> str:
    """Return 8 hex digits under which nothing is set aside yet: a rename would replace it."""
    taken = {path.name for path in folder.iterdir()}
    while True:
        suffix = secrets.token_hex(4)
        if taken.isdisjoint(f"{name}.{suffix}" for name in names):
            return suffix


def keep_newest(folder: Path, number: int) -> None:
    """Remove the oldest of our files in a folder; what others have put there is not counted."""
    kept = [path for path in folder.glob("[!.]*.json") if path.is_file() and not path.is_symlink()]
    kept.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in kept[:-number]:
        path.unlink(missing_ok=True)
