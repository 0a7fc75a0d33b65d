# SPDX-License-Identifier: Apache-2.0
"""Signals that end a verb which has started processes: it takes them along.

Owns the handlers of SIGTERM and SIGHUP for the length of a ``with`` block. One that was ignored, as
under nohup, stays so.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body as ^C does: with all that it has started."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    own = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            own[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
