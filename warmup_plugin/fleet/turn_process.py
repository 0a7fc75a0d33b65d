# SPDX-License-Identifier: Apache-2.0
"""The engine's side of the lease: a process that waits for the turn to tune, and then holds it.

Owns that process and what passes between: a request, lines of JSON as things change, one more
request that publishes, or the end of its input, which frees the lease. The process goes on while
this one is in C code or holds the interpreter; where this one ends without a word it frees the
lease by itself. No function waits longer than it is told, and none raises.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import threading
import time
from typing import Any, Final

from warmup_plugin.fleet import client

#: Until a process that was told to free the lease is gone: a request or two.
_FREED_S: Final = 40.0
#: Until one that has said its last word, or closed its output, is gone.
_ENDED_S: Final = 1.0
_MOST_BYTES: Final = 1 << 16


class TurnProcess:
    """The process of one lease, asked by ``request``."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._reason, self._buffer = "", b""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = client.start()
            self._send(request)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._reason = f"no process can be started: {error}"

    def line(self, limit_s: float = 0.0) -> dict[str, Any] | None:
        """Return what the process says next; None where it says nothing within ``limit_s``.

        The last one says ``failed`` where the process has ended without an answer.
        """
        until = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            if self._process is None or self._process.stdout is None:
                return {"state": "failed", "reason": self._reason or "its process has ended"}
            pipe = self._process.stdout
            try:
                ready, _, _ = select.select([pipe], [], [], max(until - time.monotonic(), 0.0))
                if not ready:
                    return None
                chunk = os.read(pipe.fileno(), _MOST_BYTES)
            except (OSError, ValueError) as error:
                chunk, self._reason = b"", f"{type(error).__name__}: {error}"
            if not chunk:
                self._end()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return client.parsed(line) or {"state": "failed", "reason": "it said what is no answer"}

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Have the holder publish; return what has become of it, within ``limit_s``."""
        until = time.monotonic() + limit_s
        found: dict[str, Any] | None = {"state": "lost"}
        try:
            self._send(request)
            while found is not None and found["state"] == "lost":
                found = self.line(max(until - time.monotonic(), 0.0))
        except (OSError, ValueError) as error:
            found = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
        finally:
            self._end()
        return found or {"state": "failed", "reason": f"no answer within {limit_s:.1f} s"}

    def free(self) -> None:
        """Have the lease freed, without waiting for it; a process that does not end is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.write(b"\n")  # a child of this process may keep the pipe open
                process.stdin.close()
        try:
            threading.Thread(
                target=_ended, args=(process, _FREED_S), name="warmup-lease", daemon=True
            ).start()
        except RuntimeError:  # no thread to be had: the lease expires
            client.end(process)

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            status = _ended(process, _ENDED_S)
            self._reason = self._reason or client.why_ended(status)


def _ended(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Wait for the end of a process that was told to end; kill it after ``limit_s``."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
    return client.end(process)
