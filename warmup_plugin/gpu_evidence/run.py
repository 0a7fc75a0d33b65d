# SPDX-License-Identifier: Apache-2.0
"""The parent of the measurement: children, one for each way, within a budget of seconds.

Owns every wait. A child that does not get on with an op is ended with all that it has started, such
as compilers; the op is told with the limit, and another child takes the rest. No wait is longer
than the budget, and no process outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from warmup_plugin.gpu_evidence.spec import Spec

#: Until which share of the budget each way may take. Alone goes first and pays for compilers.
_UNTIL = {"alone": 0.5, "cold": 0.8, "warm": 0.97}
#: Until a child has torch, FlashInfer and the device.
_START_S = 120.0


class NoAnswerError(RuntimeError):
    """No child came as far as telling what there is to try."""


@dataclass
class Clock:
    """The budget: ``seconds`` in all, ``op_s`` for one op."""

    seconds: float
    op_s: float
    began: float

    def until(self, way: str) -> float:
        """Return the moment at which a way must have ended."""
        return self.began + self.seconds * _UNTIL[way]

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began


@dataclass
class Deadline:
    """A moment that moves with the work."""

    at: float

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.left <= 0


def find_ops(spec: Spec, clock: Clock) -> dict[str, Any]:
    """Return the facts of the environment and the names of the ops to try."""
    deadline = Deadline(min(time.monotonic() + _START_S, clock.until("alone")))
    for line in _Child(spec).lines(deadline):
        return line
    raise NoAnswerError(f"no answer from the first child; its last words: {_last_words(spec)}")


def measure(spec: Spec, names: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Return name -> row of one way, for the ops that the budget was enough for."""
    rows: dict[str, Any] = {}
    while left := [name for name in names if name not in rows]:
        if time.monotonic() >= clock.until(spec.way):
            break
        rows |= _in_one_child(replace(spec, names=tuple(left)), clock)
    return rows


def _in_one_child(spec: Spec, clock: Clock) -> dict[str, Any]:
    """Return the rows of one child: at least one, or the reason why there is none."""
    rows: dict[str, Any] = {}
    deadline = Deadline(min(time.monotonic() + _START_S, clock.until(spec.way)))
    current = ""
    for line in _Child(spec).lines(deadline):
        if "begins" in line:
            current = line["begins"]
            deadline.at = min(time.monotonic() + clock.op_s, clock.until(spec.way))
        else:
            rows[line["ends"]], current = line["row"], ""
    if current:  # the child has ended, or was ended, in the middle of it
        limit = f"stopped after {clock.op_s:.0f} s or at the end of the budget"
        why = limit if deadline.is_over else "its process died"
        rows[current] = {"error": f"{why}; the last words: {_last_words(spec)}"}
    if not rows:
        error = f"the process did not get to an op; its last words: {_last_words(spec)}"
        return {name: {"error": error} for name in spec.names}
    return rows


def _log_of(spec: Spec) -> Path:
    return Path(spec.folder) / f"{spec.way}.log"


def _last_words(spec: Spec) -> str:
    with contextlib.suppress(OSError):
        lines = _log_of(spec).read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-3:])[-300:]
    return ""


class _Child:
    """One child process and what it says."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def lines(self, deadline: Deadline) -> Iterator[dict[str, Any]]:
        """Yield what it says, until it has ended or the deadline of the moment has passed."""
        hear, talk = os.pipe()
        command = [sys.executable, "-m", "warmup_plugin.gpu_evidence.child",
                   replace(self._spec, talk=talk).to_json()]  # fmt: skip
        with _log_of(self._spec).open("ab") as log, os.fdopen(hear, "rb") as source:
            try:
                process = subprocess.Popen(  # noqa: S603  # itself
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=(talk,), start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(talk)
            try:
                yield from _until(source, deadline)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _until(source: Any, deadline: Deadline) -> Iterator[dict[str, Any]]:
    """Yield JSON lines as they come."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline.left) > 0:
            if not selector.select(timeout=left):
                continue
            some = os.read(source.fileno(), 1 << 16)
            if not some:
                return
            *whole, rest = (rest + some).split(b"\n")
            for line in whole:
                yield json.loads(line)
