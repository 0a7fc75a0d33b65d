# SPDX-License-Identifier: Apache-2.0
"""A clock of its own: a thread that calls a function every few seconds.

Owns the thread. It ends with the process at the latest, and no caller waits for it longer than a
second. Where no thread can be started, nothing ticks, and that is said once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("warmup_plugin")


class Ticking:
    """Calls ``tick`` every ``every_s`` seconds, from `begin` to `end`, first after one period."""

    def __init__(self, tick: Callable[[], None], every_s: float) -> None:
        self._tick, self._every_s = tick, every_s
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, once."""
        if self._thread is not None or self._is_over.is_set():
            return
        thread = threading.Thread(target=self._run, name="warmup-progress", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had: progress is told less often
            logger.warning("warmup-plugin: progress is reported at steps and tasks only: %s", error)
            return
        self._thread = thread

    def end(self) -> None:
        """Stop, and wait a second at most: a stalled disk may hold the last tick."""
        self._is_over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._is_over.wait(self._every_s):
            self._tick()
