# SPDX-License-Identifier: Apache-2.0
"""What a host gives to the fleet: its table, united with what is there.

Owns the order that loses nothing: the bundle first, created under its own sha256, then the pointer,
swapped only if it is still the one that the union was made from; else all over again with what is
there now. A bundle of that name with other bytes (a write that was cut off, or a stranger's) is
written anew. A process that dies in between leaves a bundle that nothing points to.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.paths import table_name
from warmup_plugin.errors import WarmupError
from warmup_plugin.fleet.bundle import (
    Bundle,
    identity_bytes,
    limit_of,
    own_part,
    parse_bundle,
    render_bundle,
    united,
)
from warmup_plugin.fleet.objects import Objects, Seen
from warmup_plugin.fleet.pointer import (
    SCHEMA,
    Pointer,
    Whose,
    bundle_key,
    parse_pointer,
    render_pointer,
)
from warmup_plugin.fleet.pull import Refuse, take_all
from warmup_plugin.runtime.safe_json import Miss, digest

#: More often than this nobody comes in between, with the pauses below.
_MOST_TRIES: Final = 200
_PAUSE_S: Final = (0.01, 0.25)


Sign = Callable[[Pointer, Whose], Pointer]


def leave_unsigned(pointer: Pointer, _whose: Whose) -> Pointer:
    """Sign nothing: no key is set."""
    return pointer


class Pushed(msgspec.Struct, kw_only=True):
    """What became of a publication. ``reason``: why nothing was written, or what was healed."""

    state: Literal["published", "unchanged", "failed"]
    reason: str = ""
    bundle: str = ""
    generation: int = 0
    entries: int = 0
    tries: int = 0


def push(
    objects: Objects, whose: Whose, directory: Path, table_bytes: int,
    *, refuse: Refuse = take_all, sign: Sign = leave_unsigned,
    pause: Callable[[float], None] = time.sleep,
) -> Pushed:  # fmt: skip
    """Publish this host's table of an identity; what goes wrong is told.

    A bundle that is refused is no part of the union: who signs answers for all of it.
    """
    mine = own_part(directory, whose, table_bytes)
    if isinstance(mine, Miss):
        return Pushed(state="failed", reason=mine.reason)
    try:
        for tries in range(1, _MOST_TRIES + 1):
            done = _try(objects, whose, directory, mine, table_bytes, refuse=refuse, sign=sign)
            if done is not None:
                return msgspec.structs.replace(done, tries=tries)
            pause(random.uniform(*_PAUSE_S))  # noqa: S311  # who comes first is no secret
    except WarmupError as error:
        return Pushed(state="failed", reason=str(error))
    return Pushed(state="failed", reason="others publish all the time", tries=_MOST_TRIES)


def _try(
    objects: Objects, whose: Whose, directory: Path, mine: CachedTable, table_bytes: int,
    *, refuse: Refuse, sign: Sign,
) -> Pushed | None:  # fmt: skip
    """Publish once; return None where another host has come in between."""
    seen = objects.pointer(whose)
    theirs = _theirs(objects, seen, whose, table_bytes, refuse)
    union = united(mine, theirs.part if isinstance(theirs, Bundle) else None)
    if union is None:
        assert isinstance(theirs, Bundle)
        return Pushed(
            state="unchanged", reason="the fleet has all of it", bundle=theirs.sha256,
            generation=theirs.manifest.generation, entries=len(theirs.part.table.entries),
        )  # fmt: skip
    data = render_bundle(union, identity_bytes(directory, table_bytes), whose)
    checked = parse_bundle(data, whose, table_bytes)
    if isinstance(checked, Miss):  # never publish what the next host would only refuse
        return Pushed(state="failed", reason=checked.reason)
    if len(data) > limit_of(table_bytes):
        reason = f"the bundle has {len(data)} bytes, more than the {limit_of(table_bytes)} allowed"
        return Pushed(state="failed", reason=reason)
    _write_bundle(objects, checked, table_bytes)
    pointer = sign(_pointer_to(checked, whose), whose)
    if not _swapped(objects, whose, pointer, seen):
        return None
    return Pushed(
        state="published", reason=theirs.reason if isinstance(theirs, Miss) else "",
        bundle=pointer.bundle, generation=pointer.generation, entries=pointer.entries,
    )  # fmt: skip


def _theirs(
    objects: Objects, seen: Seen | None, whose: Whose, table_bytes: int, refuse: Refuse
) -> Bundle | Miss | None:
    """Return the bundle that the pointer names; why it is of no use, or None without a pointer."""
    if seen is None:
        return None
    pointer = parse_pointer(seen.data, whose.identity)
    if isinstance(pointer, Miss):
        if pointer.kind == "newer":  # somebody's, and in use
            raise WarmupError(pointer.reason)
        return pointer
    if why := refuse(pointer, whose):
        return Miss(f"it replaces a bundle: {why}", "foreign")
    data = objects.get(bundle_key(pointer.bundle), limit_of(table_bytes))
    if data is None or digest(data) != pointer.bundle:
        return Miss(f"it replaces bundle {pointer.bundle[:12]}, which was not whole", "unreadable")
    return parse_bundle(data, whose, table_bytes)


def _write_bundle(objects: Objects, bundle: Bundle, table_bytes: int) -> None:
    key = bundle_key(bundle.sha256)
    if objects.create(key, bundle.data):
        return
    if objects.get(key, limit_of(table_bytes)) != bundle.data:
        objects.overwrite(key, bundle.data)


def _pointer_to(bundle: Bundle, whose: Whose) -> Pointer:
    manifest = bundle.manifest
    return Pointer(
        schema=SCHEMA, identity=whose.identity, bundle=bundle.sha256, bytes=len(bundle.data),
        table=digest(bundle.files[table_name(*bundle.part.source)]),
        generation=manifest.generation, entries=len(bundle.part.table.entries),
        complete=manifest.complete, engine=manifest.engine,
        engine_version=manifest.engine_version, at=round(time.time(), 3),
        host=os.uname().nodename[:64], token=secrets.token_hex(8),
    )  # fmt: skip


def _swapped(objects: Objects, whose: Whose, pointer: Pointer, seen: Seen | None) -> bool:
    """Return whether the pointer is ours now.

    A write that was tried again after its answer was lost is told that the pointer has changed,
    although it was this write that has changed it: the token tells.
    """
    if objects.swap(whose, render_pointer(pointer), seen):
        return True
    now = objects.pointer(whose)
    found = parse_pointer(now.data, whose.identity) if now else None
    return isinstance(found, Pointer) and found.token == pointer.token
