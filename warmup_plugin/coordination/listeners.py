# SPDX-License-Identifier: Apache-2.0
"""Which of a host's addresses another host can reach: asked by a connection, all at the same time.

Owns the sockets on which rank 0 listens while that is found out, one at each address, and the other
ranks' side. Rank 0 sends a nonce to each connection, so that a stranger who listens at the same
number elsewhere is told apart. A connection is answered and closed at once, a stranger's too.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from warmup_plugin.coordination.offers import Choice
from warmup_plugin.coordination.sockets import OWN_LACK

#: How many connections the kernel keeps until they are answered.
_BACKLOG: Final = 1024
#: How long the thread that answers is waited for, seconds.
_END_S: Final = 5.0
#: How long another address is waited for once one is known to do, seconds.
_GRACE_S: Final = 0.25
_NONCE_BYTES: Final = 64


def listen_at(address: str, *, anywhere: bool = False) -> socket.socket:
    """Return a socket that listens at an address, on a port that is free.

    ``anywhere``: at every address of this host where that one is not its own, as behind a router
    that translates addresses. Raises `OSError`.
    """
    fault: OSError = OSError("it has no address")
    for family, _, _, _, where in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        for host in (where[0], *([""] if anywhere else [])):
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.bind((host, 0))
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                fault = error
            else:
                return listener
    raise fault


class Listeners:
    """Rank 0's sockets, and the thread that answers on them. ``choices``: where they are."""

    def __init__(self, addresses: Sequence[str], nonce: str, *, anywhere: bool = False) -> None:
        self.choices: list[Choice] = []
        self.faults: list[str] = []
        self._sockets: list[socket.socket] = []
        self._nonce = nonce.encode()
        for address in addresses:
            try:
                found = listen_at(address, anywhere=anywhere)
            except OSError as error:  # not an address of this host, as MASTER_ADDR may be
                self.faults.append(f"{address}: {error}")
                continue
            self._sockets.append(found)
            self.choices.append((address, found.getsockname()[1]))
        self._end, self._other_end = socket.socketpair()
        self._thread = threading.Thread(target=self._answer, name="warmup-probe", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in (self._other_end, *self._sockets):
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(None)]
                if self._other_end in ready:
                    return
                for listener in self._sockets:
                    if listener in ready:
                        self._answer_one(listener)

    def _answer_one(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has hung up
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                connection.send(self._nonce)

    def keep(self, index: int) -> socket.socket:
        """Stop, and return one of the sockets; the others are closed."""
        kept = self._sockets[index]
        self._stop()
        for listener in self._sockets:
            if listener is not kept:
                listener.close()
        self._sockets = []
        with contextlib.suppress(OSError):  # it does not block: until nobody is left
            while True:
                kept.accept()[0].close()
        kept.setblocking(True)
        return kept

    def close(self) -> None:
        """Stop, and listen nowhere any more."""
        self._stop()
        for listener in self._sockets:
            listener.close()
        self._sockets = []

    def _stop(self) -> None:
        self._end.close()  # the thread reads the end of it
        self._thread.join(timeout=_END_S)
        if not self._thread.is_alive():
            self._other_end.close()


def probe(choices: Sequence[Choice], nonce: str, limit_s: float) -> list[str]:
    """Return why each of these places cannot be reached, an empty text for one that can.

    All are tried at the same time. Ends at once when the first of them is reached, soon after any
    other is, and after ``limit_s`` at the latest. Raises `OSError` for what this process lacks.
    """
    faults = dict.fromkeys(range(len(choices)), f"no answer within {limit_s:.0f} s")
    until = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for index, choice in enumerate(choices):
            try:
                selector.register(_dialled(choice, stack), selectors.EVENT_READ, index)
            except OSError as error:
                faults[index] = _told(error)
        while selector.get_map() and faults[0] and (left_s := until - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                selector.unregister(key.fileobj)
                faults[key.data] = _heard(key.fileobj, nonce)
                if not faults[key.data]:
                    until = min(until, time.monotonic() + _GRACE_S)
    return [faults[index] for index in range(len(choices))]


def _dialled(choice: Choice, stack: contextlib.ExitStack) -> socket.socket:
    """Return a socket that is being connected."""
    family, _, _, _, where = socket.getaddrinfo(*choice, type=socket.SOCK_STREAM)[0]
    dialling = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    dialling.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        dialling.connect(where)
    return dialling


def _heard(connection: object, nonce: str) -> str:
    """Return what is wrong with a connection on which bytes have come."""
    assert isinstance(connection, socket.socket)
    try:
        said = connection.recv(_NONCE_BYTES)
    except OSError as error:
        return _told(error)
    return "" if said == nonce.encode() else "somebody else answers"


def _told(error: OSError) -> str:
    if error.errno in OWN_LACK:
        raise error
    return error.strerror or str(error)
