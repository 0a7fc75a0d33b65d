# SPDX-License-Identifier: Apache-2.0
"""How a process connects to a store: how long each try lasts, and who still waits for it.

Owns these bounds. Torch bounds no handshake with a store whose process is stopped, tries for all
the time that it is given where no process listens, and has a name looked up for each connection.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination.sockets import on_thread, part
from warmup_plugin.errors import RankLostError

#: More than it takes a resolver to give up one name server (10 s by default): torch has it look up
#: the name of the other side of each connection, and counts that as time to connect.
CONNECT_S = 12.0
#: How long torch tries at first, seconds: it would ask a closed port for all the time it is given.
TRY_S = 1.0
#: How long a thread is hung up on, seconds; the end of the process does so, too.
_HANG_UP_S = 1.0
#: The shortest of its tries: none at all would be without a bound.
_LEAST_TRY_S = 0.05


class Patience:
    """How long a caller waits for a connection that a thread makes, and whether it still does.

    A try that torch is given must not outlast it: torch tries again, and so connects again, when it
    is hung up on before the end of its time.
    """

    def __init__(self, limit_s: float) -> None:
        self.is_over = threading.Event()
        self._ends = time.monotonic() + limit_s

    def bound(self, try_s: float) -> float:
        """Return how long a try of so many seconds may take."""
        return max(min(try_s, self._ends - time.monotonic()), _LEAST_TRY_S)


_Made = TypeVar("_Made")


def in_time(
    make: Callable[[Patience], _Made],
    port: int,
    silence_s: float,
    *,
    but: Collection[int],
) -> _Made:
    """Call ``make`` on a thread of its own, and return what it returns within a silence.

    ``make`` connects to ``port``, and torch bounds no handshake with a store whose process is
    stopped. Its argument is this function's patience. ``but``: the process's older connections to
    that port, which are left alone. Raises what ``make`` raises,
    `RankLostError` where it takes longer, `OSError` where no thread can be started.
    """
    made: list[_Made | Exception] = []
    is_done, patience = threading.Event(), Patience(silence_s)

    def run() -> None:
        try:
            made.append(make(patience))
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            made.append(error)
        is_done.set()

    try:
        maker = on_thread(run, "warmup-join", port, but=but)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    if not is_done.wait(silence_s):
        patience.is_over.set()
        part(maker, limit_s=_HANG_UP_S)
        raise RankLostError(0, f"its store accepts no connection for {silence_s:.1f} s")
    (found,) = made
    if isinstance(found, Exception):
        raise found
    return found


def client(host: str, port: int, try_s: float) -> TCPStore:
    """Return a connection to a store, for which torch tries for so many seconds.

    Raises `RuntimeError` where no store answers there by then.
    """
    limit = timedelta(seconds=try_s)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    store.set_timeout(timedelta(seconds=CONNECT_S))
    return store


def check_listens(host: str, port: int) -> None:
    """Raise `OSError` at once where no process listens; torch would try for as long as it may."""
    socket.create_connection((host, port), timeout=CONNECT_S).close()


def patient_client(host: str, port: int, patience: Patience) -> TCPStore:
    """Return a connection to a store that may be slow to answer, after a short try.

    Raises `OSError` where no process listens any more, `RuntimeError` where no store answers. The
    short try leaves `check_listens` out: each connection has the store look up a name while all
    ranks wait.
    """
    try:
        return client(host, port, patience.bound(TRY_S))
    except RuntimeError:
        if patience.is_over.is_set():
            raise
        check_listens(host, port)
        return client(host, port, patience.bound(CONNECT_S))
