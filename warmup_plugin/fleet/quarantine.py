# SPDX-License-Identifier: Apache-2.0
"""Bundles with which starts of this host have died: noted before use, passed over after two.

    <root>/fleet/starts/<the bundle's sha256>.<16 hex digits>.json     one start that has begun

Owns these notes. One is written before a forward runs a bundle's winners, and taken back once all
ranks have agreed on what they serve; what is left of a process that is gone is a death. Starts that
ran side by side count as one: a death counts beyond the first only if the start began after another
had died. No clocks are compared, only its own writer locks a note, and damaged notes are none. A
note outlives its process, not its machine: no start waits for the disk. Never raises `OSError` but
where it says so: without a disk no bundle is passed over, that is all.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.files import keep_newest, make_directory, read_file
from warmup_plugin.cache.flock import try_lock
from warmup_plugin.cache.journal import has_ended
from warmup_plugin.cache.table import Entry
from warmup_plugin.runtime.process_info import ProcessCard, own_card
from warmup_plugin.runtime.safe_json import Miss, decode
from warmup_plugin.topology import boot_id, host_name

#: The folder of the fleet below a cache root.
PLACE: Final = "fleet"
#: After so many starts that died one after the other a bundle is passed over.
MOST_DEATHS: Final = 2
#: More than these stay on no host; the oldest go.
_MOST_NOTES: Final = 64
_MOST_BYTES: Final = 4096
_NAME: Final = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{16}\.json")
_DIRECTORY: Final = re.compile(r"bundle-([0-9a-f]{64})")


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A start that has begun to serve a bundle.

    ``boot`` and ``host``: whose deaths it is among; ``driver``: under another one it is tried anew.
    ``deaths``: how many starts had died with the bundle before this one began.
    """

    bundle: str
    identity: str
    card: ProcessCard
    boot: str
    host: str
    driver: str
    at: float
    deaths: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


_NOTE: Final = msgspec.json.Decoder(Note)
#: The notes of this process by their bundles, each with the descriptor that holds its lock.
_own: Final[dict[str, tuple[Path, int]]] = {}


def folder_of(root: Path) -> Path:
    """Return where the notes of a cache root lie."""
    return root / PLACE / "starts"


def bundle_in(directory: str | Path) -> str:
    """Return the sha256 of the bundle that lies in a directory; an empty string for another one."""
    found = _DIRECTORY.fullmatch(Path(directory).name)
    return found[1] if found else ""


def passed_over(folder: Path, driver: str | None) -> dict[str, str]:
    """Return the bundles that this host passes over, each with the reason.

    ``driver``: the GPU's; None counts the deaths under any.
    """
    return {
        note.bundle: (
            f"bundle {note.bundle[:12]} is passed over: {note.deaths + 1} starts of this host have "
            f"died with it, the last one process {note.card.pid} of {_day(note.at)}; "
            "`warmup-plugin fleet retry` lifts that"
        )
        for note in _worst(folder, driver).values()
        if note.deaths + 1 >= MOST_DEATHS
    }


def relied_on(parts: Sequence[CachedTable], union: CachedTable | None) -> set[str]:
    """Return the bundles among these tables that their union owes an entry to."""
    entries = union.table.entries if union else {}
    whose = [(bundle_in(Path(part.path).parent), part) for part in parts]
    others = [part for bundle, part in whose if not bundle]

    def is_owed(key: str, entry: Entry) -> bool:
        is_there = any(other.table.entries.get(key) == entry for other in others)
        return entries.get(key) == entry and not is_there

    def owes(part: CachedTable) -> bool:
        if part.sha256 and part.sha256 in {other.sha256 for other in others}:
            return False  # as on each later start of who tuned it: no entry need be looked at
        return not others or any(is_owed(*item) for item in part.table.entries.items())

    return {bundle for bundle, part in whose if bundle and owes(part)}


def winners(parts: Sequence[CachedTable], union: CachedTable) -> list[str]:
    """Return the file keys under which the union of these tables has a bundle's winner."""
    entries = union.table.entries
    return [
        key
        for part in parts
        if bundle_in(Path(part.path).parent)
        for key, entry in part.table.entries.items()
        if entry.tactic != -1 and entries.get(key) == entry
    ]


def begin(folder: Path, bundle: str, identity: str, driver: str) -> None:
    """Note that this process begins to serve a bundle, unless it has done so already."""
    if bundle in _own:
        return
    worst = _worst(folder, driver).get(bundle)
    note = Note(
        bundle=bundle, identity=identity, card=own_card(), boot=boot_id(), host=host_name(),
        driver=driver, at=float(int(time.time())), deaths=worst.deaths + 1 if worst else 0,
    )  # fmt: skip
    path = folder / f"{bundle}.{secrets.token_hex(8)}.json"
    with contextlib.suppress(OSError):
        make_directory(folder, folder.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        _own[bundle] = path, descriptor
        try_lock(descriptor)  # where there are none the card has to do
        os.write(descriptor, msgspec.json.encode(note))
        keep_newest(folder, _MOST_NOTES)


def take_back(bundle: str) -> None:
    """Take this process's note of a bundle back: if it dies now, it is not by that."""
    path, descriptor = _own.pop(bundle, (None, -1))
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            os.close(descriptor)


def lift(folder: Path, identities: Collection[str]) -> list[Note]:
    """Remove the notes of dead starts, of all identities or these; raises `OSError`."""
    found = []
    for path, note in _dead(folder, None):
        if not identities or note.identity.startswith(tuple(map(str.lower, identities))):
            path.unlink(missing_ok=True)
            found.append(note)
    return found


def _worst(folder: Path, driver: str | None) -> Mapping[str, Note]:
    """Return of each bundle the dead start that had seen the most deaths."""
    found: dict[str, Note] = {}
    for _, note in _dead(folder, driver):
        before = found.get(note.bundle)
        if before is None or note.deaths > before.deaths:
            found[note.bundle] = note
    return found


def _dead(folder: Path, driver: str | None) -> Iterator[tuple[Path, Note]]:
    """Yield the notes of this host's starts whose process is gone."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in names:
        path, named = folder / name, _NAME.fullmatch(name)
        note = _read(path) if named else None
        if named is None or note is None or note.bundle != named[1]:
            continue
        is_ours = note.boot == boot_id() or note.host == host_name()
        if is_ours and driver in (None, note.driver) and has_ended(path, note.card):
            yield path, note


def _read(path: Path) -> Note | None:
    content = read_file(path, _MOST_BYTES, path.parent).content
    note = content if isinstance(content, Miss) else decode(_NOTE, content)
    return None if isinstance(note, Miss) else note


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) + " UTC"
