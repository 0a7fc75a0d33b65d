# SPDX-License-Identifier: Apache-2.0
"""What somebody may have put into a fleet in the place of a host's table: one function for each.

Each makes a fleet in a folder from one in which a host has published. `test_faults.py` says what
becomes of a start with it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from warmup_plugin.cache import archive
from warmup_plugin.cache.archive import Packed
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.table import Table
from warmup_plugin.fleet.bundle import Bundle, parse_bundle, render_bundle
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pointer import Pointer, Whose, bundle_key, parse_pointer, render_pointer
from warmup_plugin.fleet.signing import signed
from warmup_plugin.runtime.safe_json import digest

_LIMIT = 1 << 24
#: A runner, and as long a name that is none's.
_RUNNER, _OTHER = b"BlockedGemmRunner", b"BlockedGemmRunnex"


def copy(shared: Path, to: Path) -> tuple[Objects, Whose, Pointer]:
    for path in shared.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(shared)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    objects = Objects(f"file://{to}", "given", timeout_s=5, writes=True)
    (whose,) = objects.all_pointers()
    seen = objects.pointer(whose)
    assert seen is not None
    pointer = parse_pointer(seen.data, whose.identity)
    assert isinstance(pointer, Pointer)
    return objects, whose, pointer


def point(objects: Objects, whose: Whose, pointer: Pointer, **other: Any) -> None:
    changed = {**{f: getattr(pointer, f) for f in pointer.__struct_fields__}, **other}
    assert objects.swap(whose, render_pointer(Pointer(**changed)), objects.pointer(whose))


def no_bundle(shared: Path, to: Path) -> None:
    """The pointer names a bundle that is not there."""
    objects, whose, pointer = copy(shared, to)
    point(objects, whose, pointer, bundle="0" * 64)


def cut_off(shared: Path, to: Path) -> None:
    """The bundle has lost its end."""
    objects, _, pointer = copy(shared, to)
    name = bundle_key(pointer.bundle)
    objects.overwrite(name, (to / name).read_bytes()[:-2048])


def _renamed(shared: Path, to: Path, change: Callable[[bytes], bytes]) -> None:
    """Put a bundle under the right digest of other bytes, and point to it."""
    objects, whose, pointer = copy(shared, to)
    data = change((to / bundle_key(pointer.bundle)).read_bytes())
    objects.create(bundle_key(digest(data)), data)
    point(objects, whose, pointer, bundle=digest(data))


def _repacked(shared: Path, to: Path, change: Callable[[Packed], Packed]) -> None:
    """Do so with an archive that is in order, of files that are changed."""
    _renamed(
        shared,
        to,
        lambda data: archive.render(map(change, archive.read(io.BytesIO(data), _LIMIT))),
    )


def poisoned(shared: Path, to: Path) -> None:
    """Somebody has changed a winner in a bundle that is otherwise as it was."""
    _renamed(shared, to, lambda data: data.replace(_RUNNER, _OTHER, 1))


def edited(shared: Path, to: Path) -> None:
    """Somebody has changed a winner and packed it again, and left the manifest as it was."""
    _repacked(
        shared,
        to,
        lambda file: (
            replace(file, data=file.data.replace(_RUNNER, _OTHER, 1))
            if re.fullmatch(r"rank_\w+\.json", file.name)
            else file
        ),
    )


def anothers(shared: Path, to: Path) -> None:
    """The bundle is another identity's."""
    _repacked(
        shared,
        to,
        lambda file: replace(
            file, path=file.path.replace(file.identity, "0" * 64), identity="0" * 64
        ),
    )


def unlike(shared: Path, to: Path) -> None:
    """The factors in it are not those that the identity is the digest of."""
    _repacked(
        shared,
        to,
        lambda file: (
            replace(file, data=file.data.replace(b'"tp":1', b'"tp":2'))
            if file.name == "identity.json"
            else file
        ),
    )


def no_archive(shared: Path, to: Path) -> None:
    """The bundle is something else altogether."""
    _renamed(shared, to, lambda _data: b"#!/bin/sh\nrm -rf /\n")


def not_a_pointer(shared: Path, to: Path) -> None:
    """The pointer is no document."""
    objects, whose, _ = copy(shared, to)
    assert objects.swap(whose, b"{", objects.pointer(whose))


def huge_pointer(shared: Path, to: Path) -> None:
    """The pointer has a megabyte."""
    objects, whose, _ = copy(shared, to)
    assert objects.swap(whose, b" " * (1 << 20), objects.pointer(whose))


def make_key(folder: Path, name: str) -> tuple[str, str]:
    """Write a pair of keys, as openssl would; return the paths of both, the private one's first."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return str(private), str(public)


def unsigned(shared: Path, to: Path) -> None:
    """The host uses what one key has signed, and nobody has signed anything."""
    copy(shared, to)
    make_key(to.parent, "mine")


def by_a_stranger(shared: Path, to: Path) -> None:
    """The same, signed by another key."""
    objects, whose, pointer = copy(shared, to)
    make_key(to.parent, "mine")
    stranger, _ = make_key(to.parent, "stranger")
    theirs = signed(pointer, whose, stranger)
    assert objects.swap(whose, render_pointer(theirs), objects.pointer(whose))


def replayed(shared: Path, to: Path) -> int:
    """An older bundle is the latest again, which lacks tasks; return how many it has."""
    objects, whose, pointer = copy(shared, to)
    bundle = parse_bundle((to / bundle_key(pointer.bundle)).read_bytes(), whose, _LIMIT)
    assert isinstance(bundle, Bundle)
    tasks = dict(bundle.manifest.tasks)
    kept = dict(list(tasks.items())[: len(tasks) // 2])
    keys = {key for record in kept.values() for group in record.keys for key in group}
    entries = {key: entry for key, entry in bundle.part.table.entries.items() if key in keys}
    older = msgspec.structs.replace(
        bundle.part,
        table=Table(bundle.part.table.stamp, entries),
        manifest=msgspec.structs.replace(bundle.manifest, tasks=kept, complete=False),
    )
    data = render_bundle(older, bundle.files[IDENTITY_NAME], whose)
    objects.create(bundle_key(digest(data)), data)
    point(objects, whose, pointer, bundle=digest(data), complete=False, entries=len(entries))
    return len(kept)
