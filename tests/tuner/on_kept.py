# SPDX-License-Identifier: Apache-2.0
"""What `test_kept_environment.py` runs on the ranks of an engine: one start, as any runner's."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.settings import Settings
from warmup_plugin.tuner import compat, environment_stamp

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys

#: What a cold start imports, and a warm one whose look is kept does without.
COLD_STEPS = {f"warmup_plugin.steps.{name}" for name in ("plan", "tune", "share", "publish")}


def start(engine: Engine, mode: Literal["on", "read-only", "replay"] = "on") -> dict[str, Any]:
    """Warm up; return whether an earlier look was taken, and how often FlashInfer looked."""
    imported: list[bool] = []
    for name in COLD_STEPS:  # as in a new process, as below
        sys.modules.pop(name, None)

    def forward() -> None:
        imported.append(sys.modules.keys() >= COLD_STEPS)
        toys.call("toy", [toys.Toy("toy")], toys.STATIC, toys.rows(16), toys.WEIGHT)

    _look_until(lambda: bool(imported) or sys.modules.keys() >= COLD_STEPS)
    looks: list[Any] = [getattr(sys.modules[module], name) for module, name in compat.SLOW.values()]
    for look in looks:
        look.cache_clear()  # as in a new process: ranks are forked from one that may have looked
    child.warm_unchecked(engine, forward, settings=Settings.from_env(margin=0.0, mode=mode))
    found = {
        "kept": bool(environment_stamp.kept()),
        "looks": sum(look.cache_info().misses for look in looks),
        "stamp": repr(compat.stamp()),
        "imported": any(imported),
    }
    for thread in threading.enumerate():
        if thread.name == "warmup-environment":
            thread.join(timeout=50)
    return found


def _look_until(is_time: Callable[[], bool]) -> None:
    """Let the programs of FlashInfer's look not end before it is time, or after ten seconds.

    On a busy machine they may end before a rank has come to wait for them, and it imports nothing.
    """
    module, name = compat.SLOW[compat.BY_PROGRAMS]
    own: Any = getattr(sys.modules[module], name)

    @functools.cache
    def look() -> Any:
        deadline = time.monotonic() + 10
        while not is_time() and time.monotonic() < deadline:
            time.sleep(0.01)
        return own()

    own.cache_clear()
    look.__wrapped__ = own.__wrapped__  # what is asked anew, once the rank is up
    setattr(sys.modules[module], name, look)
