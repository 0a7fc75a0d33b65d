# SPDX-License-Identifier: Apache-2.0
"""A worker of a whole `LLM()` that is lost for good while the workers warm up.

The other one ends and names it, with its host, within a silence, the grace period and five seconds;
`LLM()` raises instead of hanging, and the next one comes up. What loses a worker is
`lost_ranks.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lost_ranks import GRACE_S, SILENCE_S, SLACK_S
from vllm_jobs import launch

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

BOUND = {"WARMUP_PLUGIN_GRACE_S": str(GRACE_S), "WARMUP_PLUGIN_SILENCE_S": str(SILENCE_S)}
#: What vLLM takes to end once a worker has failed: its executor gives workers a few seconds.
ENGINE_ENDS_S = 45.0
LOST, LIVE = 1, 0


class Watch:
    """When a worker is struck, and when the other one has ended; looked at from outside."""

    def __init__(self, root: Path) -> None:
        self._root, self._is_over = root, threading.Event()
        self.struck = self.ended = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the body runs."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        yield
        self._is_over.set()
        thread.join(5.0)

    def _watch(self) -> None:
        struck, process = self._root / "struck", self._root / f"process of rank {LIVE}"
        while not self._is_over.wait(0.05):
            if not self.struck and struck.exists() and (text := struck.read_text()):
                self.struck = float(text)
            if self.struck and not self.ended and not _runs(int(process.read_text())):
                self.ended = time.monotonic()


def _runs(pid: int) -> bool:
    """Return whether a process has not ended, whether or not its parent has noticed."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat[stat.rfind(")") + 2] not in "ZX"


@pytest.mark.parametrize(
    ("how", "point"),
    [
        pytest.param("kill", "read", marks=pytest.mark.soak),
        pytest.param("stop", "read", marks=pytest.mark.soak),
        pytest.param("kill", "share", marks=pytest.mark.soak),
        ("stop", "share"),
    ],
)
def test_the_other_worker_ends_and_names_it(job: Callable[..., Any], how: str, point: str) -> None:
    engine = job()
    watch = Watch(engine.root)

    with watch.watching():
        start = launch(
            engine, said="the job ends", then_s=ENGINE_ENDS_S,
            PLANTED_FAULT=f"{how}_at:{point}@{LOST}", **BOUND,
        )  # fmt: skip

    assert watch.struck, start.log[-4000:]
    assert start.code, f"LLM() has not raised: {start.code}, {start.log[-4000:]}"
    assert watch.ended, "the other worker lives on"
    took = watch.ended - watch.struck
    assert took < SILENCE_S + GRACE_S + SLACK_S, f"{took:.1f} s: {start.log[-4000:]}"
    named = [line for line in start.log.splitlines() if f"rank {LOST} is lost" in line]
    assert any(f"(host {socket.gethostname()})" in line for line in named), start.log[-4000:]
    assert "as without this package" not in start.log
    (engine.root / "struck").unlink()

    again = launch(engine, **BOUND)

    assert again.code == 0, again.log[-4000:]
    (certificate,) = {rank["report"]["certificate"] for rank in again.ranks}
    assert len(certificate) == 64


def test_whether_a_process_has_ended_is_seen_from_outside() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        deadline = time.monotonic() + 10.0
        while _runs(child.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert _runs(os.getpid())
