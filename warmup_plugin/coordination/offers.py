# SPDX-License-Identifier: Apache-2.0
"""Rank 0's offer of a store as it crosses ranks, before there is one to cross on.

Owns its fields and how they are read: from the group's broadcast or from the job's store. An offer
that cannot be read is one with an error, so that this rank takes part in the answer all the same.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from warmup_plugin.topology import machine_id

#: Where a store listens: a host, by name or address, and a port.
Choice = tuple[str, int]


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What rank 0 offers. ``way``: how the store is to be found, one of `opening`'s.

    ``choices``: where it listens, of which each rank says what it can use. ``nonce``: what the
    right store answers. With the first offer alone, ``place``: what ranks on rank 0's loopback
    interface have in common with it; ``leader``: the name of its host; ``greeting``: a word of its
    own; ``secret``: the key by which ranks tell their values in its store from strangers' (`Seal`).
    ``error``: why it offers nothing, in place of all that.
    """

    way: str = ""
    choices: list[Choice] = msgspec.field(default_factory=list)
    nonce: str = ""
    place: str | None = None
    leader: str = ""
    greeting: str = ""
    secret: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the offer as JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def read_offer(fields: object) -> Offer:
    """Return the offer of JSON values; what is none is an offer with the error."""
    try:
        return msgspec.convert(fields, Offer)
    except msgspec.ValidationError as error:
        return Offer(error=f"rank 0's offer cannot be read: {error}")


def place() -> str:
    """Return what processes with a loopback interface in common have in common, and few others."""
    namespace = 0
    with contextlib.suppress(OSError):  # no such kernel: whether somebody listens there will tell
        namespace = Path("/proc/self/ns/net").stat().st_ino
    return f"{machine_id()[:64]}/{namespace}"
