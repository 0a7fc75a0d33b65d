# SPDX-License-Identifier: Apache-2.0
"""The small documents of a fleet, pointers and leases: how one of another host is read.

Owns what holds for both: a bound, a schema, an identity that the document must be of. Bad bytes are
a `Miss`. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from warmup_plugin.runtime.safe_json import Miss, decode

if TYPE_CHECKING:
    import msgspec

#: A document is a few hundred bytes.
LIMIT: Final = 1 << 16


class Document(Protocol):
    """What every document says of itself."""

    @property
    def schema(self) -> int:
        """Return the number of its form."""

    @property
    def identity(self) -> str:
        """Return whose it is."""


Read = TypeVar("Read", bound=Document)


def parse(
    what: str, decoder: msgspec.json.Decoder[Read], data: bytes, *, schema: int, identity: str
) -> Read | Miss:
    """Read a document of this schema and identity; ``what``: its name in a reason."""
    if len(data) > LIMIT:
        return Miss(f"the {what} has {len(data)} bytes, more than the {LIMIT} allowed", "foreign")
    found: Read | Miss = decode(decoder, data)
    if isinstance(found, Miss):
        return Miss(f"the {what} cannot be read: {found.reason}", "unreadable")
    if found.schema != schema:
        return Miss(f"the {what} has schema {found.schema}, this version reads {schema}", "newer")
    if found.identity != identity:
        return Miss(f"the {what} is of identity {found.identity[:12]}", "foreign")
    return found
