# SPDX-License-Identifier: Apache-2.0
"""What `test_kept_environment.py` runs on the ranks of an engine: one start, as any runner's."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Literal

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.settings import Settings
from warmup_plugin.tuner import compat, environment_stamp

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys


def start(engine: Engine, mode: Literal["on", "read-only", "replay"] = "on") -> dict[str, Any]:
    """Warm up; return whether an earlier look was taken, and how often FlashInfer looked."""

    def forward() -> None:
        toys.call("toy", [toys.Toy("toy")], toys.STATIC, toys.rows(16), toys.WEIGHT)

    looks: list[Any] = [getattr(sys.modules[module], name) for module, name in compat.SLOW.values()]
    for look in looks:
        look.cache_clear()  # as in a new process: ranks are forked from one that may have looked
    child.warm_unchecked(engine, forward, settings=Settings.from_env(margin=0.0, mode=mode))
    found = {
        "kept": bool(environment_stamp.kept()),
        "looks": sum(look.cache_info().misses for look in looks),
        "stamp": repr(compat.stamp()),
    }
    for thread in threading.enumerate():
        if thread.name == "warmup-environment":
            thread.join(timeout=50)
    return found
