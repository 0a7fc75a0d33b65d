# SPDX-License-Identifier: Apache-2.0
"""What `doctor` tries of the disks that tables are written to: all that a start needs of them.

Owns these trials: a file, its time, a rename, a lock that keeps a second descriptor out, fsync,
room. Writes small files in a folder of its own where tables are written, and takes them away
again. A file system that does not answer is given up after a while, with its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from warmup_plugin.cache.files import is_inside
from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.cli import inventory
from warmup_plugin.cli.doctor_checks import Finding
from warmup_plugin.cli.output import plural, size
from warmup_plugin.cli.places import Root

_LITTLE_BYTES: Final = 256 * 10**6
_SKEW_S: Final = 5.0
_PATIENCE_S: Final = 10.0


def directories(roots: list[Root]) -> Iterator[Finding]:
    """Where tables are written, each place once, and the layers."""
    writable = [root for root in roots if root.kind != "layer"]
    used = [root for root in writable if root.matters] or writable[-1:]
    for root in used:
        yield from _writable(root)
    for root in roots:
        if root.kind == "layer":
            yield _layer(root)


def _layer(root: Root) -> Finding:
    if not os.access(root.path, os.R_OK | os.X_OK):
        words = f"{root.path}: not there, or not readable by this user"
        fix = "mount it, or take it out of WARMUP_PLUGIN_LAYERS; chmod -R a+rX if it is there"
        return Finding("layer", "bad", words, fix)
    number = sum(1 for _ in inventory.walk([root]))
    many = plural(number, "identity", "identities")
    return Finding("layer", "good" if number else "note", f"{root.path}: {many}")


def _writable(root: Root) -> Iterator[Finding]:
    path = next(p for p in (root.path, *root.path.parents) if p.exists())
    where = f"{root.path} ({root.source})"
    if not path.is_dir():
        fix = "choose another place with WARMUP_PLUGIN_CACHE_ROOT, or move that file away"
        yield Finding("directory", "bad", f"{where}: {path} is a file", fix)
        return
    if (link := _link_out(root)) is not None:
        fix = f"make the root itself the link ({root.path}), or let {root.source} name its target"
        words = f"{where}: {link} is a link that leads out of it; starts keep nothing there"
        yield Finding("directory", "bad", words, fix)
        return
    if not os.access(path, os.W_OK | os.X_OK):
        fix = f"chown it to user {os.getuid()}, or set WARMUP_PLUGIN_CACHE_ROOT"
        yield Finding("directory", "bad", f"{where}: user {os.getuid()} may not write there", fix)
        return
    yield Finding("directory", "good", f"{where}{'' if path == root.path else ', not made yet'}")
    free = shutil.disk_usage(path).free
    if free < _LITTLE_BYTES:
        fix = "make room, for instance with warmup-plugin prune --older-than 30d"
        yield Finding("disk", "bad", f"{size(free)} free at {path}", fix)
    else:
        yield Finding("disk", "good", f"{size(free)} free")
    yield from _in_time(lambda: _tried(path), path)


def _link_out(root: Root) -> Path | None:
    """Return the first folder of the tables that is a link to somewhere else."""
    top = root.path if root.kind == "override" else root.path / LAYOUT
    shelves = [Path(shelf) for shelf, _, _ in inventory.shelves(root)]
    for path in (top, *(shelf.parent for shelf in shelves), *shelves):
        if path.exists() and not is_inside(path, root.path):
            return path
    return None


def _in_time(trial: Callable[[], list[Finding]], path: Path) -> list[Finding]:
    """Run a trial; a file system may keep its caller for ever, so it has a thread of its own."""
    done: list[list[Finding]] = []
    thread = threading.Thread(target=lambda: done.append(trial()), daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if done:
        return done[0]
    fix = "look at the mount: a server that is away, or a lock daemon that does not answer"
    words = f"{path}: the file system has not answered within {_PATIENCE_S:.0f} s"
    return [Finding("write", "bad", words, fix)]


def _tried(folder: Path) -> list[Finding]:
    place = folder / f".doctor.{secrets.token_hex(8)}"
    try:
        place.mkdir(mode=0o700)
        path = place / "file"
        with path.open("xb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            skew = path.stat().st_mtime - time.time()
        found = [_clock(skew), _locks(path), *_renames(place, path)]
    except OSError as error:
        fix = "look at quotas and mount options of that file system"
        found = [Finding("write", "bad", f"{folder}: {error.strerror}", fix)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if place.exists():
        fix = f"remove {place} by hand; prune and rm cannot delete there either"
        found.append(Finding("delete", "note", f"{folder}: files cannot be deleted", fix))
    return found


def _clock(skew: float) -> Finding:
    if abs(skew) > _SKEW_S:
        words = f"the file system's clock is {skew:+.0f} s from this machine's"
        fix = "set both by NTP: a replica could take a tuning engine for gone"
        return Finding("clock", "bad", words, fix)
    return Finding("clock", "good", "the file system's agrees with this machine's")


def _locks(path: Path) -> Finding:
    """Lock by one descriptor and try by another: a yes to both is no lock."""
    with path.open("rb") as one, path.open("rb") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "mount with locks; else two writers in one instant may tune some tasks again"
            return Finding("locks", "note", "the file system has none", fix)
        with contextlib.suppress(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fix = "mount with locks that are kept (NFS: not nolock or local_lock)"
            return Finding("locks", "bad", "the file system grants one lock to two at once", fix)
    return Finding("locks", "good", "the file system has them")


def _renames(place: Path, path: Path) -> Iterator[Finding]:
    """Rename a file onto another, as each table is put in place."""
    (place / "target").write_bytes(b"")
    try:
        path.replace(place / "target")
    except OSError as error:
        words = f"files cannot be renamed: {error.strerror}"
        fix = "starts keep no table there: mount another file system, or bake the tables in"
        yield Finding("rename", "bad", words, fix)
    else:
        yield Finding("rename", "good", "files are put in place whole")
