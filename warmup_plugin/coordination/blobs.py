# SPDX-License-Identifier: Apache-2.0
"""Tables and plans on their way between ranks: by their sha256, beside the votes.

Owns how a body is cut into parts that the store takes, put together again and checked. Raises
`SessionError` for one that is not what its sha256 says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from warmup_plugin.coordination import messages
from warmup_plugin.errors import SessionError
from warmup_plugin.runtime.safe_json import digest

if TYPE_CHECKING:
    from warmup_plugin.coordination.links import Link  # noqa: TC004  # of a struct never decoded

_OFFER = "offer"  # the sha256 of a body that the next meeting will most likely agree on
_PARTS = "parts: "  # in place of a body: it is found in so many

#: Waits until a key is there, doing something each time it is not, and returns its value.
Wait = Callable[[str, Callable[[], None]], bytes]


class Traffic(msgspec.Struct):
    """What crosses between this rank and the store but for heartbeats, in bytes."""

    link: Link
    sent: int = 0
    received: int = 0

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, None where no rank has written one."""
        body = self.link.get_now(key)
        self.received += len(body or b"")
        return body


class Bodies:
    """The bodies of one session, as one rank sees them."""

    def __init__(self, traffic: Traffic, wait: Wait) -> None:
        self._link = traffic.link
        self._traffic = traffic
        self._wait = wait
        self._offered = ""
        self._whole = "", b""
        self._parts: dict[str, list[bytes]] = {}

    def put(self, body: bytes, sha256: str = "") -> str:
        """Offer a body; it crosses to the store once, whichever ranks offer it."""
        name = sha256 or digest(body)
        if self._link.claim(f"body/{name}/claim"):
            self._traffic.sent += len(body)
            starts = range(0, len(body), messages.PART_BYTES)
            for index, start in enumerate(starts if len(starts) > 1 else ()):
                part = body[start : start + messages.PART_BYTES]
                self._link.set(f"body/{name}/{index}", part)
            whole = body if len(starts) <= 1 else f"{_PARTS}{len(starts)}".encode()
            self._link.set(f"body/{name}", whole)
        return name

    def offer(self, body: bytes, sha256: str) -> None:
        """Put, on rank 0, a body that the next meeting will most likely agree on."""
        self._link.set(_OFFER, sha256.encode())
        self.put(body, sha256)

    def take_offered(self) -> bool:
        """Take what has arrived of an offered body; return whether that is all of it."""
        if not self._offered:
            self._offered = (self._traffic.read(_OFFER) or b"").decode(errors="replace")
        if not self._offered:
            return False
        self._take_parts(self._offered)
        if not self._link.has([f"body/{self._offered}"]):
            return False
        with contextlib.suppress(SessionError):  # damaged: who needs it finds that out again
            self._whole = self._offered, self.get(self._offered)
        return True

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256.

        Raises `SessionError` when the bytes that arrive are others.
        """
        if self._whole[0] == sha256:
            return self._whole[1]
        key = f"body/{sha256}"
        body = self._wait(key, lambda: self._take_parts(sha256))
        if body.startswith(_PARTS.encode()):
            body = self._in_parts(key, body, self._parts.pop(sha256, []))
        if digest(body) != sha256:
            raise SessionError(f"body {sha256}: arrived with sha256 {digest(body)}")
        return body

    def _take_parts(self, sha256: str) -> None:
        """Take those parts of a body that are there, while the others are on their way."""
        taken = self._parts.setdefault(sha256, [])
        while (part := self._traffic.read(f"body/{sha256}/{len(taken)}")) is not None:
            taken.append(part)

    def _in_parts(self, key: str, told: bytes, taken: list[bytes]) -> bytes:
        """Return a body that is too large for one value of the store; the first parts are taken."""
        number = told[len(_PARTS) :]
        most = messages.MOST_BODY_BYTES // messages.PART_BYTES
        if not number.isdigit() or len(number) > len(str(most)) or int(number) > most:
            raise SessionError(f"{key}: {number[:20]!r} parts, {most} at most")
        for index in range(len(taken), int(number)):  # they were there before their number was
            if (part := self._traffic.read(f"{key}/{index}")) is None:
                raise SessionError(f"{key}: a part of it is not there{self._strangers}")
            taken.append(part)
        return b"".join(taken)

    @property
    def _strangers(self) -> str:
        told = self._link.seal.told
        return told and f": {told}"
