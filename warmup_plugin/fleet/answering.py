# SPDX-License-Identifier: Apache-2.0
"""A process that is asked once: one request on standard input, one answer on standard output.

Owns its end: an alarm ends it where its parent is not there to do so, also while a client library
waits, and so does a parent that goes away before there is a request. What goes wrong is an answer
with a reason. Nothing else is written to standard output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from warmup_plugin.errors import WarmupError

Asked = TypeVar("Asked", bound=msgspec.Struct)


def end_after(limit_s: float) -> None:
    """End this process when the time is up, also while it waits, unless it is asked for anew."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # by default the signal ends it


def answer_one(kind: type[Asked], answer: Callable[[Asked], Any]) -> None:
    """Answer one request, and end; an empty one is none."""
    line = sys.stdin.buffer.readline()
    if not line.strip():
        return
    tell(answered(msgspec.json.decode(line, type=kind), answer))
    os._exit(0)  # the client's threads need no farewell


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
