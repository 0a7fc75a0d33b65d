# SPDX-License-Identifier: Apache-2.0
"""What a start takes from the fleet: the latest bundle of its identity, as a directory of tables.

    <place>/<identity>/bundle-<its sha256>/<file>     one directory a bundle, never changed

Owns the order: pointer, bundle, sha256, all that a table of this host must pass, then one rename. A
bundle that lies there already is not fetched again, if its bytes are still the bundle's. Where the
fleet does not answer, or has what cannot be used, nothing is placed and the reason is told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from warmup_plugin.cache.archive import Packed, render
from warmup_plugin.cache.files import make_directory, write_files
from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.fleet.bundle import Bundle, limit_of, parse_bundle
from warmup_plugin.fleet.objects import FleetError, Objects, Seen
from warmup_plugin.fleet.pointer import Pointer, Whose, bundle_key, parse_pointer
from warmup_plugin.runtime.safe_json import Miss, digest

#: fetched: over the network. kept: it lay here already. absent: the fleet has none. refused: what
#: it has is no good. failed: it could not be asked, or the bundle could not be placed.
State = Literal["fetched", "kept", "absent", "refused", "failed"]
#: Bundles of one identity that stay on a host: the latest, and one that another start may read.
_KEPT: Final = 2


#: Says why a bundle is not used that a pointer names; an empty string where it is.
Refuse = Callable[[Pointer, Whose], str]


def take_all(_pointer: Pointer, _whose: Whose) -> str:
    """Refuse nothing: no keys are set."""
    return ""


class Pulled(msgspec.Struct, kw_only=True):
    """What the fleet gave. ``directory``: where the bundle's files lie, empty without one."""

    state: State
    reason: str = ""
    directory: str = ""
    bundle: str = ""
    generation: int = 0
    entries: int = 0
    complete: bool = False
    bytes: int = 0


class Ahead(NamedTuple):
    """What the fleet has of an identity, read before it is asked for.

    ``seen``: its pointer, None without one. ``bundle``: None where it is not fetched yet.
    ``is_complete``: nothing is left to tune, so that no later bundle is better to begin with.
    """

    seen: Seen | None
    bundle: Bundle | Miss | None = None
    is_complete: bool = False


def look_ahead(
    objects: Objects, whose: Whose, place: Path | None, table_bytes: int, refuse: Refuse = take_all
) -> Ahead:
    """Read what `pull` will place; ``place``: where an earlier start may have left the bundle.

    Raises:
        FleetError: the store does not answer, or refuses.
    """
    seen = objects.pointer(whose)
    pointer = _pointer(seen, whose, refuse)
    if isinstance(pointer, Miss):
        return Ahead(seen)
    if place is not None and _is_whole(_target(place, whose, pointer), whose, pointer.bundle):
        return Ahead(seen, is_complete=pointer.complete)
    bundle = _fetch(objects, pointer, whose, table_bytes)
    return Ahead(seen, bundle, pointer.complete and isinstance(bundle, Bundle))


def pull(
    objects: Objects, whose: Whose, place: Path, table_bytes: int, refuse: Refuse = take_all,
    *, ahead: Ahead | None = None,
) -> Pulled:  # fmt: skip
    """Place the latest bundle of an identity below ``place``; what goes wrong is told.

    ``ahead``: what was read of it before, which is not read again.
    """
    try:
        seen, bundle, _ = ahead or Ahead(objects.pointer(whose))
        pointer = _pointer(seen, whose, refuse)
        if isinstance(pointer, Miss):
            state: State = "absent" if pointer.kind == "absent" else "refused"
            return Pulled(state=state, reason=pointer.reason)
        return _pull(
            pointer, whose, place,
            lambda: bundle or _fetch(objects, pointer, whose, table_bytes),
        )  # fmt: skip
    except FleetError as error:
        return Pulled(state="failed", reason=str(error))
    except OSError as error:
        where = error.filename or place
        return Pulled(state="failed", reason=f"{where}: {error.strerror or error}")


def latest(
    objects: Objects, whose: Whose, table_bytes: int, refuse: Refuse = take_all
) -> tuple[Pointer, Bundle] | Miss:
    """Return the latest bundle of an identity, checked; a `Miss` of kind `absent` without one.

    Raises:
        FleetError: the store does not answer, or refuses.
    """
    pointer = _pointer(objects.pointer(whose), whose, refuse)
    if isinstance(pointer, Miss):
        return pointer
    found = _fetch(objects, pointer, whose, table_bytes)
    return found if isinstance(found, Miss) else (pointer, found)


def _pull(
    pointer: Pointer, whose: Whose, place: Path, fetch: Callable[[], Bundle | Miss]
) -> Pulled:
    target = _target(place, whose, pointer)
    told: dict[str, Any] = {
        "bundle": pointer.bundle, "generation": pointer.generation, "entries": pointer.entries,
        "complete": pointer.complete,
    }  # fmt: skip
    if _is_whole(target, whose, pointer.bundle):
        with contextlib.suppress(OSError):
            os.utime(target)
        return Pulled(state="kept", directory=str(target), **told)
    found = fetch()
    if isinstance(found, Miss):
        return Pulled(state="refused", reason=found.reason, **told)
    told.update(generation=found.manifest.generation, complete=found.manifest.complete,
                entries=len(found.part.table.entries))  # fmt: skip
    _place(target, found)
    return Pulled(state="fetched", directory=str(target), bytes=len(found.data), **told)


def _target(place: Path, whose: Whose, pointer: Pointer) -> Path:
    return place / whose.identity / f"bundle-{pointer.bundle}"  # no name of an identity


def _pointer(seen: Seen | None, whose: Whose, refuse: Refuse) -> Pointer | Miss:
    if seen is None:
        return Miss("the fleet has no table of this identity", "absent")
    pointer = parse_pointer(seen.data, whose.identity)
    if isinstance(pointer, Pointer) and (why := refuse(pointer, whose)):
        return Miss(why, "foreign")
    return pointer


def _fetch(objects: Objects, pointer: Pointer, whose: Whose, table_bytes: int) -> Bundle | Miss:
    data = objects.get(bundle_key(pointer.bundle), limit_of(table_bytes))
    if data is None:
        return Miss(f"the pointer's bundle {pointer.bundle[:12]} is not there", "unreadable")
    if digest(data) != pointer.bundle:
        return Miss(
            f"bundle {pointer.bundle[:12]} has other bytes than its name says", "unreadable"
        )
    return parse_bundle(data, whose, table_bytes)


def _is_whole(directory: Path, whose: Whose, bundle: str) -> bool:
    """Return whether a directory holds the files of a bundle, to the byte, and nothing else."""
    folder = f"{LAYOUT}/{whose.version}/{whose.arch}/{whose.identity}"
    try:
        paths = [path for path in directory.iterdir() if not path.is_symlink() and path.is_file()]
        packed = [
            Packed(f"{folder}/{path.name}", path.read_bytes(), *whose, path.name) for path in paths
        ]
    except OSError:
        return False
    return bool(packed) and digest(render(packed)) == bundle


def _place(target: Path, bundle: Bundle) -> None:
    """Put a bundle's files in place, all at once; raises `OSError`.

    Not synced: what a machine that fails has lost of it is fetched again, or is a table whose
    manifest has another sha256.
    """
    make_directory(target.parent)
    stage = target.with_name(f".{target.name[:12]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        make_directory(stage)
        write_files({stage / name: data for name, data in bundle.files.items()}, synced=False)
        if target.exists():  # not whole, or `_is_whole` would have said so
            old = stage.with_suffix(".old")
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileExistsError, OSError):
            stage.rename(target)
        if not target.is_dir():
            raise OSError(0, "the bundle could not be put in place", str(target))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _tidy(target)


def _tidy(target: Path) -> None:
    """Remove older bundles of the identity, and what killed processes have left."""
    with contextlib.suppress(OSError):
        found = sorted(target.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        left = [path for path in found if path.name.startswith(".")]
        bundles = [path for path in found if not path.name.startswith(".") and path != target]
        newest = target.stat().st_mtime
        old = [path for path in left if path.stat().st_mtime < newest - 3600]
        for path in [*bundles[: len(bundles) - (_KEPT - 1)], *old]:
            shutil.rmtree(path, ignore_errors=True)
