# SPDX-License-Identifier: Apache-2.0
"""A process that is asked once: one request on standard input, one answer on standard output.

Owns its end: an alarm ends it where its parent is not there to do so, also while a client library
waits, and so does a parent that goes away before there is a request, or that has none for an hour.
What goes wrong is an answer with a reason. Nothing else is written to standard output.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from warmup_plugin.errors import WarmupError

#: How often a process that waits to be asked looks whether its parent is there.
_LOOK_S: Final = 2.0
#: The most bytes that are read from standard input at once.
_PART: Final = 1 << 16
#: How long a process waits to be asked: an engine that loads its model takes minutes.
_IDLE_S: Final = 3600.0


class Asking(msgspec.Struct, kw_only=True):
    """What every request says. ``environ``: the parent's variables that are others by now.

    ``is_ahead``: the parent is going to ask this way, but for what it does not know yet; the last
    such request knows all that the answer depends on.
    """

    environ: dict[str, str | None] = {}
    is_ahead: bool = False


Asked = TypeVar("Asked", bound=Asking)


class Lines:
    """The lines of standard input, each as it comes."""

    def __init__(self) -> None:
        self._rest = b""

    def next(self, limit_s: float) -> bytes | None:
        """Return the next line, an empty one at the end, None where none comes in time."""
        until = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            if not select.select([0], [], [], max(until - time.monotonic(), 0.0))[0]:
                return None
            part = os.read(0, _PART)
            if not part:
                return b""
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


lines: Final = Lines()


def end_after(limit_s: float) -> None:
    """End this process when the time is up, also while it waits; a new time takes its place.

    0: the time no longer runs.
    """
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # by default the signal ends it


def answer_one(
    kind: type[Asked],
    parent: int,
    answer: Callable[[Asked], Any],
    prepare: Callable[[Asked], None] = lambda _request: None,
) -> None:
    """Answer one request, and end; an empty one is none.

    ``parent``: the process that has begun this one. ``prepare``: what is done with a request that
    is ahead; what goes wrong is told when it is asked.
    """
    request = _next(kind, parent)
    while request is not None and request.is_ahead:
        _take_up(request.environ)
        with contextlib.suppress(Exception):
            prepare(request)
        request = _next(kind, parent)
    if request is not None:
        _take_up(request.environ)
        tell(answered(request, answer))
        os._exit(0)  # the client's threads need no farewell


def _next(kind: type[Asked], parent: int) -> Asked | None:
    """Return the next request, None where there will be none.

    A child of the parent may hold the other end of the pipe, so that its end alone does not tell.
    """
    until = time.monotonic() + _IDLE_S
    while os.getppid() == parent and time.monotonic() < until:
        line = lines.next(_LOOK_S)
        if line is not None:
            return msgspec.json.decode(line, type=kind) if line.strip() else None
    return None


def _take_up(environ: dict[str, str | None]) -> None:
    """Let credentials and proxies be those of the parent as it asks, not as it began this."""
    for name, value in environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def answered(request: Asked, answer: Callable[[Asked], Any]) -> Any:
    """Return the answer, or the reason why there is none: it is all that is heard of it."""
    try:
        return answer(request)
    except WarmupError as error:
        return {"state": "failed", "reason": str(error)}
    except Exception as error:  # noqa: BLE001  # as above
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}


def tell(answer: Any) -> None:
    """Write a line to who has asked, if it is still there."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
