# SPDX-License-Identifier: Apache-2.0
"""How an identity's directory is deleted, on every file system, and what of it stayed.

Owns the deletion: away in one rename where directories can be renamed, so that no start sees half
of it; else file by file, the manifests first, since a table without one is not trusted. Never
raises `OSError`: what stays is named with its reason, in its own place, and is not counted as gone.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from dataclasses import dataclass
from pathlib import Path

from warmup_plugin.cache.files import is_inside, said
from warmup_plugin.cache.locks import locked
from warmup_plugin.cli import inventory
from warmup_plugin.cli.in_use import user_of

_MANIFEST_END = ".manifest.json"


@dataclass(frozen=True)
class Removed:
    """What became of a directory: bytes that went, and each path that stayed with the reason."""

    directory: str
    bytes: int
    stayed: tuple[str, ...] = ()
    user: str = ""

    @property
    def is_gone(self) -> bool:
        """Return whether nothing of it is left."""
        return not (self.stayed or self.user)


def remove_identity(kept: inventory.Kept, limit: int) -> Removed:
    """Delete an identity's directory unless it has come into use since it was chosen."""
    directory = Path(kept.directory)
    if fault := _link_fault(kept):
        return Removed(kept.directory, 0, (fault,))
    try:
        with locked(directory):  # no table is published meanwhile
            if user := user_of(kept, limit):
                return Removed(kept.directory, 0, user=user)
            away = _renamed(directory)
            if away is None:
                return _deleted(directory, directory)
    except FileNotFoundError:
        return Removed(kept.directory, 0)  # somebody else was faster
    except OSError as error:
        return Removed(kept.directory, 0, (said(error, directory),))
    return _deleted(away, directory)


def remove_folder(kept: inventory.Kept, name: str) -> Removed:
    """Delete one folder of an identity's directory."""
    folder = Path(kept.directory, name)
    if fault := _link_fault(kept):
        return Removed(str(folder), 0, (fault,))
    return _deleted(folder, folder)


def _link_fault(kept: inventory.Kept) -> str:
    """Return where a link leads to other people's files; it is not followed."""
    directory = Path(kept.directory)
    if directory.is_symlink() or not is_inside(directory, kept.root.path):
        return f"{kept.directory}: a link; not followed"
    return ""


def _renamed(directory: Path) -> Path | None:
    """Take a directory out of sight in one step; None where that cannot be done.

    It cannot within an image's lower layer (EXDEV), on object stores (ENOSYS), on mount points.
    """
    away = directory.with_name(f".{directory.name[:12]}.pruned.{secrets.token_hex(4)}")
    try:
        directory.rename(away)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    return away


def _deleted(place: Path, home: Path) -> Removed:
    """Delete a tree; what cannot go is moved back to where it was, if it was moved."""
    gone, faults = _delete_below(place)
    if not faults:
        return Removed(str(home), gone)
    if place != home:
        with contextlib.suppress(OSError):
            place.rename(home)
            place = home
    stayed = tuple(f"{_at_home(path, place, home)}: {reason}" for path, reason in faults)
    return Removed(str(home), gone, stayed)


def _at_home(path: Path, place: Path, home: Path) -> Path:
    """Return where a path lies after the way back; it is still away where that has failed."""
    if place == home and not path.is_relative_to(home):
        return home.joinpath(*path.parts[len(home.parts) :])
    return path


def _delete_below(folder: Path) -> tuple[int, list[tuple[Path, str]]]:
    """Delete a directory and all in it; return the bytes that went and what did not go, and why.

    A directory that stays only since a part of it does is not named.
    """
    gone, faults = 0, list[tuple[Path, str]]()
    try:
        inside = sorted(folder.iterdir(), key=lambda path: not path.name.endswith(_MANIFEST_END))
    except FileNotFoundError:
        return 0, []
    except OSError as error:
        return 0, [(folder, error.strerror or str(error))]
    for path in inside:
        if path.is_dir() and not path.is_symlink():
            more, below = _delete_below(path)
            gone, faults = gone + more, faults + below
            continue
        try:
            size = path.lstat().st_size
            path.unlink()
            gone += size
        except FileNotFoundError:
            continue
        except OSError as error:
            faults.append((path, error.strerror or str(error)))
    if not faults:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.ENOENT:
                faults.append((folder, error.strerror or str(error)))
    return gone, faults
