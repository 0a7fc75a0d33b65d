# SPDX-License-Identifier: Apache-2.0
"""A connection to the session's store that outlives a slow answer.

Owns the making of another one. Once an answer has not come in time, the connection is of no use: it
may still come, and would be taken for the next one's. A caller that must go on for as long as the
session does (the heartbeat) gets another then. Each is made on a thread of its own, since torch
bounds no handshake with a store whose process is stopped; until it is there every call raises
`RankLostError` at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from warmup_plugin.coordination.sockets import on_thread
from warmup_plugin.errors import RankLostError

if TYPE_CHECKING:
    from warmup_plugin.coordination.links import Link

_Answer = TypeVar("_Answer")


class RenewedLink:
    """One connection after another, each a clone of ``origin``, for one thread."""

    def __init__(self, origin: Link) -> None:
        self.rank, self.size, self.seal = origin.rank, origin.size, origin.seal
        self._origin = origin
        self._link: Link | None = None
        self._cut_off: RankLostError | None = RankLostError(0, "its store accepts no connection")
        self._maker: threading.Thread | None = None
        self._made: Link | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_slow = False

    @property
    def port(self) -> int:
        """The port of the store, 0 once it is closed."""
        return self._origin.port

    @property
    def is_cut_off(self) -> bool:
        """Return whether the last call failed and no other connection has been used since."""
        return self._cut_off is not None

    def connect(self) -> None:
        """Begin to make the first connection."""
        with self._lock:
            self._begin()

    @property
    def is_connecting(self) -> bool:
        """Return whether a connection is being made, and none is there yet."""
        return self._maker is not None and self._maker.is_alive()

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""
        self._ask(lambda link: link.set(key, value))

    def get_now(self, key: str) -> bytes | None:
        """Return the value of a key, or None where it does not exist yet."""
        return self._ask(lambda link: link.get_now(key))

    def has(self, keys: list[str]) -> bool:
        """Return whether all keys exist now."""
        return self._ask(lambda link: link.has(keys))

    def restore(self) -> None:
        """Write again what this rank has left in the store and strangers have taken away."""
        self._ask(lambda link: link.restore())

    def close(self) -> None:
        """Close the store, and a connection that is made too late."""
        with self._lock:
            self._is_closed = True
            links, self._made = (self._link, self._made), None
        for link in links:
            if link is not None:
                link.close()

    def _ask(self, question: Callable[[Link], _Answer]) -> _Answer:
        link = self._current()
        try:
            return question(link)
        except RankLostError as error:
            self._cut_off = error
            raise

    def _current(self) -> Link:
        """Return the connection, a new one if one is needed; raises while there is none."""
        if self._link is not None and self._cut_off is None:
            return self._link
        with self._lock:
            made, self._made = self._made, None
            if made is None:
                self._begin()
        if made is None:
            assert self._cut_off is not None
            raise self._cut_off
        if self._link is not None:
            self._link.close()
        self._link, self._cut_off = made, None
        return made

    def _begin(self) -> None:
        if not self._is_closed and not self.is_connecting:
            with contextlib.suppress(RuntimeError):  # no thread now; the next call has it tried
                self._maker = on_thread(self._make, "warmup-link", self._origin.port)

    def _make(self) -> None:
        try:
            made = self._origin.clone(is_slow=self._is_slow)
        except RankLostError:
            self._is_slow = True
            return  # the next call has it tried again
        with self._lock:
            if not self._is_closed:
                self._made = made
                return
        made.close()
