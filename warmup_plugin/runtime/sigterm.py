# SPDX-License-Identifier: Apache-2.0
"""What ends a process in the middle of tuning: a shutdown signal, a task that does not return.

Owns SIGTERM for the length of a ``with`` block: the current task may end, what is known is kept,
and the signal then goes where it would have gone. The process leaves within `LEAVE_S` even when the
task does not end. Only the main thread can own a signal; on another one nothing is changed. And
owns the limit of a task: past it nothing but the end of the process ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from warmup_plugin.runtime.polling import wait_until, within

logger = logging.getLogger("warmup_plugin")

#: Kubernetes asks first and kills 30 s later; others give less.
LEAVE_S = 4.0
#: What the disk gets then to keep what is known.
_KEEP_S = 0.8


class Shutdown:
    """Listens for SIGTERM in the body; ``rescue`` keeps what is known, and is called once."""

    def __init__(self, rescue: Callable[[], None]) -> None:
        self.is_requested = False
        self._rescue = rescue
        self._asked, self._once, self._kept = threading.Lock(), threading.Lock(), threading.Event()
        self._timer = threading.Timer(LEAVE_S, self._leave_now)
        self._timer.daemon = True
        self._previous: Any = None
        self._waker: socket.socket | None = None
        self._others_fd = -1
        self._owns = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        )

    def __enter__(self) -> Self:
        """Take the signal over."""
        if self._owns:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
            # A handler runs when the main thread comes back to the interpreter, and a kernel that
            # hangs never does. Where there is no descriptor or thread left that has to do.
            with contextlib.suppress(OSError, RuntimeError):
                self._waker = self._listen_apart()
        return self

    def _listen_apart(self) -> socket.socket:
        """Have a thread woken by bytes that are written from within the signal."""
        self._listener, waker = socket.socketpair()
        try:
            waker.setblocking(False)
            threading.Thread(target=self._listen, name="warmup-sigterm", daemon=True).start()
        except RuntimeError:
            self._listener.close()
            waker.close()
            raise
        self._others_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        return waker

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signal back, and send it again if it came."""
        self.leave()

    def leave(self) -> None:
        """Do now what the end of the block does, once."""
        if not self._owns:
            return
        self._owns = False
        if self._waker is not None:
            signal.set_wakeup_fd(self._others_fd)
            self._waker.close()
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        if self.is_requested:
            self._keep()
            self._timer.cancel()  # not before: the disk may hang, too
            os.kill(os.getpid(), signal.SIGTERM)

    def _listen(self) -> None:
        with self._listener:
            while numbers := self._listener.recv(64):
                if self._others_fd >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._others_fd, numbers)
                if signal.SIGTERM in numbers:
                    self._request()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._request()

    def _request(self) -> None:
        self.is_requested = True
        if self._asked.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):  # no thread: the task in hand has its time
                self._timer.start()
            logger.warning(
                "warmup-plugin: received SIGTERM: this rank ends its current task, then its process"
            )

    def _leave_now(self) -> None:
        """End the process from another thread: the current task did not end in time."""
        threading.Thread(target=self._keep, name="warmup-rescue", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            wait_until(self._kept.is_set, within(_KEEP_S))
        os._exit(128 + signal.SIGTERM)

    def _keep(self) -> None:
        """Keep what is known; the second caller waits until it is kept."""
        with self._once:
            if self._kept.is_set():
                return
            try:
                self._rescue()
            except Exception:
                logger.exception("warmup-plugin: what was tuned so far could not be kept")
            self._kept.set()
