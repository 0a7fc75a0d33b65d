# SPDX-License-Identifier: Apache-2.0
"""A connection to the session's store that outlives a slow answer.

Owns the making of another one. Once an answer has not come in time, the connection is of no use: it
may still come, and would be taken for the next one's. Whoever must go on for as long as the session
does (the heartbeat) gets another then, made on a thread of its own, since torch bounds no handshake
with a store whose process is stopped. Until it is there every call raises `RankLostError` at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from warmup_plugin.errors import RankLostError

if TYPE_CHECKING:
    from warmup_plugin.storelink import Link

_Answer = TypeVar("_Answer")


class RenewedLink:
    """One connection after another, for one thread."""

    def __init__(self, link: Link) -> None:
        self.rank, self.size = link.rank, link.size
        self._link = link
        self._cut_off: RankLostError | None = None
        self._maker: threading.Thread | None = None
        self._made: Link | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_cut_off(self) -> bool:
        """Return whether the last call failed and no other connection has been used since."""
        return self._cut_off is not None

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""
        self._ask(lambda link: link.set(key, value))

    def get_now(self, key: str) -> bytes | None:
        """Return the value of a key, or None where it does not exist yet."""
        return self._ask(lambda link: link.get_now(key))

    def has(self, keys: list[str]) -> bool:
        """Return whether all keys exist now."""
        return self._ask(lambda link: link.has(keys))

    def close(self) -> None:
        """Let go of the store, and of a connection that is made too late."""
        with self._lock:
            self._is_closed = True
            made, self._made = self._made, None
        for link in (self._link, made):
            if link is not None:
                link.close()

    def _ask(self, question: Callable[[Link], _Answer]) -> _Answer:
        self._take_up()
        try:
            return question(self._link)
        except RankLostError as error:
            self._cut_off = error
            raise

    def _take_up(self) -> None:
        """Go over to the new connection if one is needed and there; raises while there is none."""
        if self._cut_off is None:
            return
        with self._lock:
            made, self._made = self._made, None
            if made is None and not self._is_closed and not self._is_making():
                self._maker = threading.Thread(target=self._make, name="warmup-link", daemon=True)
                self._maker.start()
        if made is None:
            raise self._cut_off
        self._link.close()
        self._link, self._cut_off = made, None

    def _is_making(self) -> bool:
        return self._maker is not None and self._maker.is_alive()

    def _make(self) -> None:
        try:
            made = self._link.again()
        except RankLostError:
            return  # the next call has it tried again
        with self._lock:
            if not self._is_closed:
                self._made = made
                return
        made.close()
