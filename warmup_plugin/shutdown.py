# SPDX-License-Identifier: Apache-2.0
"""A shutdown signal in the middle of tuning.

Owns SIGTERM for the length of a ``with`` block: the task in hand may end, what is known is kept,
and the signal then goes where it would have gone. The process leaves within `LEAVE_S` even when the
task does not end. Only the main thread can own a signal; on another one nothing is changed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger("warmup_plugin")

#: Kubernetes asks first and kills 30 s later; others give less.
LEAVE_S = 4.0


class Shutdown:
    """Listens for SIGTERM in the body; ``rescue`` keeps what is known, and is called once."""

    def __init__(self, rescue: Callable[[], None]) -> None:
        self.is_requested = False
        self._rescue = rescue
        self._once = threading.Lock()
        self._timer = threading.Timer(LEAVE_S, self._leave_now)
        self._timer.daemon = True
        self._previous: Any = None
        self._owns = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Take the signal over."""
        if self._owns:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signal back, and send it again if it came."""
        self._timer.cancel()
        if self._owns:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        if self.is_requested:
            self._keep()
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self.is_requested:
            self.is_requested = True
            logger.warning("warmup-plugin: SIGTERM: the task in hand may end, then this process")
            self._timer.start()

    def _leave_now(self) -> None:
        """End the process from another thread: the task in hand did not end in time."""
        self._keep()
        os._exit(128 + signal.SIGTERM)

    def _keep(self) -> None:
        if self._once.acquire(blocking=False):
            try:
                self._rescue()
            except Exception:
                logger.exception("warmup-plugin: what was tuned so far could not be kept")
