# SPDX-License-Identifier: Apache-2.0
"""The limit of one task: a process that does not come back from a kernel is ended."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from warmup_plugin.runtime.exit_status import EXIT_ABANDONED

if TYPE_CHECKING:
    from warmup_plugin.tuner.task import Task

logger = logging.getLogger("warmup_plugin")


class TaskLimit:
    """Ends this process when a task does not return; ``give_up`` is told first which one it is.

    One thread watches all tasks of the body, and is not woken for each: it looks again when the
    time of the task is over that it has seen last.
    """

    def __init__(self, limit_s: float, give_up: Callable[[Task], None]) -> None:
        self._limit_s = limit_s
        self._give_up = give_up
        self._in_hand: tuple[Task | None, float] = (None, 0.0)
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Watch the tasks that `begins` tells of."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Watch no longer."""
        self._in_hand = (None, 0.0)
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def begins(self, task: Task) -> None:
        """Count from now; the task before has returned."""
        self._in_hand = (task, time.monotonic() + self._limit_s)
        if self._thread is None:
            watching = threading.Thread(target=self._watch, name="warmup-limit", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread: this task has no limit
                watching.start()
                self._thread = watching

    def _watch(self) -> None:
        while not self._is_over.wait(max(0.0, self._in_hand[1] - time.monotonic())):
            task, until = self._in_hand
            if task is not None and time.monotonic() >= until:
                self._leave(task)
            del task  # it may be let go of before this thread is

    def _leave(self, task: Task) -> None:
        logger.critical(
            "warmup-plugin: this process ends (status %d): %s has not returned for %.0f s: "
            "task_limit_s",
            EXIT_ABANDONED, task.label, self._limit_s,
        )  # fmt: skip
        try:
            self._give_up(task)
        except Exception:
            logger.exception("warmup-plugin: what was tuned so far could not be kept")
        os._exit(EXIT_ABANDONED)
