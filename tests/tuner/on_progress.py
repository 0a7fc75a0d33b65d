# SPDX-License-Identifier: Apache-2.0
"""What `test_progress_of_a_task.py` runs in a process of its own."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.observability import progress
from warmup_plugin.settings import Settings

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys

_PATIENCE_S = 20.0


class Reading(toys.Toy):
    """Does not return from a tactic before the file tells of it."""

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        super().run(inputs, tactic, **kwargs)
        if tactic in self.tactics and (tactic, inputs[0].shape[0]) not in SEEN:
            expected = self.tactics.index(tactic) + 1
            SEEN[tactic, inputs[0].shape[0]] = _until(expected)


SEEN: dict[Any, dict[str, Any]] = {}


def _until(number: int) -> dict[str, Any]:
    """Return what the file says once it is at this tactic, or what it says at the end."""
    until = time.monotonic() + _PATIENCE_S
    found: dict[str, Any] = {}
    while time.monotonic() < until and found.get("tactic") != number:
        time.sleep(0.002)
        found = json.loads(PATH[0].read_bytes())
    assert found.get("tactic") == number, found
    return found


PATH: list[Path] = []


def long_task(engine: Engine) -> Any:
    """One rank, one task of three tactics, and nobody but the clock to tell of it."""
    progress.TICK_S, progress.FILE_S = 0.002, 0.0  # type: ignore[misc]  # sooner than for people
    assert engine.root is not None
    engine.root.mkdir(parents=True)
    PATH.append(engine.root / "progress.json")
    settings = Settings.from_env(margin=0.03, progress_file=PATH[0])

    def forward() -> Any:
        runner = Reading("slow", tactics=(0, 1, 2))
        return toys.call("slow", [runner], toys.STATIC, toys.rows(16), toys.WEIGHT)

    report = child.warm(engine, forward, settings=settings)
    left = [thread.name for thread in threading.enumerate() if "progress" in thread.name]
    return (
        report,
        [SEEN[tactic, 16] for tactic in (0, 1, 2)],
        left,
        json.loads(PATH[0].read_bytes()),
    )
