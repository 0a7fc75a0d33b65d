# SPDX-License-Identifier: Apache-2.0
"""What a heartbeat and a meeting need of a connection to the session's store.

Owns these two interfaces: `kv_client.py` has them over the network, `reconnecting.py` the first one
over one connection after another, tests in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from warmup_plugin.coordination.seals import Seal


class BeatLink(Protocol):
    """What a heartbeat needs of the store."""

    rank: int
    size: int
    #: The digest of the values there, and what was found there without it.
    seal: Seal

    @property
    def port(self) -> int:
        """The port of its store, 0 where it has none."""
        ...

    def set(self, key: str, value: bytes) -> None: ...
    def get_now(self, key: str) -> bytes | None: ...
    def has(self, keys: list[str]) -> bool: ...
    def restore(self) -> None: ...
    def close(self) -> None: ...


class Link(BeatLink, Protocol):
    """What a meeting needs of it; `StoreLink` over the network, a model of it in tests."""

    #: The name of rank 0's machine, empty where it is not known.
    leader: str
    #: How the ranks have found the store, for the receipt.
    way: str
    #: This process's end of the connection, where it leads to another host.
    end: str
    #: Whether this rank takes the session's keys away at its end, from a store that outlives it.
    sweeps: bool

    def clone(self, *, is_slow: bool = False) -> Link: ...
    def claim(self, key: str) -> bool: ...
    def compare_set(self, key: str, value: str) -> bytes: ...
