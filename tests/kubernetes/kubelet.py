# SPDX-License-Identifier: Apache-2.0
"""A kubelet, as far as probes go, for one container whose server runs on this machine.

Owns the rules by which probes make a pod ready and end it: the startup probe comes first and alone,
then readiness and liveness; so many failures in a row are one too many; an answer that comes after
`timeoutSeconds` (1 where the manifest has none) is a failure. A period is one tick here, whatever
the manifest says: what matters is which probe has an answer when. Nothing is killed: what a kubelet
would have done is noted.
"""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Kubelet:
    """One container under its probes. Times are of the monotonic clock, None for never."""

    container: dict[str, Any]
    ports: dict[int, int]
    tick_s: float = 1.0
    started: float | None = None
    ready: float | None = None
    killed: str = ""
    asked: int = 0
    _failures: dict[str, int] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """Probe from now on, on a thread."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ask no more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def _run(self) -> None:
        while not self._end.is_set() and not self.killed:
            began = time.monotonic()
            self._tick()
            self._end.wait(max(0.0, self.tick_s - (time.monotonic() - began)))

    def _tick(self) -> None:
        self.asked += 1
        if self.started is None and "startupProbe" in self.container:
            if self._passes("startupProbe"):
                self.started = time.monotonic()
            return
        self.started = self.started or time.monotonic()
        if self._passes("readinessProbe") and self.ready is None:
            self.ready = time.monotonic()
        self._passes("livenessProbe")

    def _passes(self, name: str) -> bool:
        """Ask one probe; note that the pod is killed where it has failed too often."""
        probe = self.container.get(name)
        if probe is None or self._answers(probe):
            self._failures[name] = 0
            return True
        self._failures[name] = self._failures.get(name, 0) + 1
        most = probe.get("failureThreshold", 3)
        if self._failures[name] >= most and name != "readinessProbe":
            self.killed = f"{name} failed {most} times"
        return False

    def _answers(self, probe: dict[str, Any]) -> bool:
        timeout_s = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            try:
                done = subprocess.run(
                    probe["exec"]["command"], timeout=timeout_s, check=False, capture_output=True
                )
            except subprocess.TimeoutExpired:
                return False
            return done.returncode == 0
        ask = probe["httpGet"]
        url = f"http://127.0.0.1:{self.ports[ask['port']]}{ask['path']}"
        began = time.monotonic()
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                status = int(answer.status)
        except OSError:  # refused, too late, or a status of 400 and above
            return False
        return 200 <= status < 400 and time.monotonic() - began <= timeout_s
