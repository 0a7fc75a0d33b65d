# SPDX-License-Identifier: Apache-2.0
"""The pointer of an identity: which bundle is the latest, and what it is said to hold.

Owns the document and the names of objects. What a pointer says of a bundle is for people and for
the choice of what to fetch: nothing rests on it, since the bundle is named by its own sha256 and
checked when it is there. Bad bytes are a `Miss`. Pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from warmup_plugin.fleet import document
from warmup_plugin.runtime.safe_json import Miss

SCHEMA: Final = 1
POINTERS: Final = "v1/ptr/"
LEASES: Final = "v1/lease/"
_SHA256: Final = re.compile("[0-9a-f]{64}")
_BASE: Final = re.compile(
    POINTERS + r"(?P<version>[0-9][0-9A-Za-z.+!_-]*)/(?P<arch>sm[0-9]+|cpu)/"
    r"(?P<identity>[0-9a-f]{64})(/(?P<number>[0-9]{8}))?"
)


class Whose(NamedTuple):
    """An identity, and for which FlashInfer and architecture it is kept."""

    version: str
    arch: str
    identity: str

    @property
    def base(self) -> str:
        """Return the name of its pointer, or what the numbered names begin with."""
        return f"{POINTERS}{self.version}/{self.arch}/{self.identity}"

    @property
    def lease(self) -> str:
        """Return the name of its lease, or what the numbered names begin with."""
        return f"{LEASES}{self.version}/{self.arch}/{self.identity}"


class Signature(msgspec.Struct, frozen=True):
    """One signature: the sha256 of the public key, and the signature in base64."""

    key: str
    value: str


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """One state of an identity's table in the fleet.

    ``table``: the sha256 of the table in the bundle. ``token``: unique to the writer's one attempt,
    by which it knows its own again where the answer to a write was lost.
    """

    schema: int
    identity: str
    bundle: str
    bytes: int
    table: str
    generation: int
    entries: int
    complete: bool
    engine: str = ""
    engine_version: str = ""
    at: float = 0.0
    host: str = ""
    token: str = ""
    signatures: tuple[Signature, ...] = ()


_POINTER: Final = msgspec.json.Decoder(Pointer)


def parse_pointer(data: bytes, identity: str) -> Pointer | Miss:
    """Read the pointer of an identity."""
    found = document.parse("pointer", _POINTER, data, schema=SCHEMA, identity=identity)
    if isinstance(found, Pointer) and not _SHA256.fullmatch(found.bundle):
        return Miss("the pointer names no bundle by its sha256", "unreadable")
    return found


def render_pointer(pointer: Pointer) -> bytes:
    """Return the document."""
    return msgspec.json.format(msgspec.json.encode(pointer), indent=1) + b"\n"


def bundle_key(sha256: str) -> str:
    """Return the name of a bundle."""
    return f"v1/bundle/{sha256}"


def parse_base(key: str) -> tuple[Whose, int] | None:
    """Return whose pointer an object is, and its number (0 where it has none); None for others."""
    match = _BASE.fullmatch(key)
    if match is None:
        return None
    return Whose(match["version"], match["arch"], match["identity"]), int(match["number"] or 0)
