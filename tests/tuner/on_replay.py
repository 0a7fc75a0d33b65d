# SPDX-License-Identifier: Apache-2.0
"""What `test_replay.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashinfer
from flashinfer.autotuner import AutoTuner, autotune, get_autotune_process_group

from warmup_plugin.engines.embedded.parallel import tuning_over
from warmup_plugin.engines.embedded.worker import Engine

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys

Context = contextlib.AbstractContextManager[object]


def v2(**options: Any) -> Context:
    context: Context = flashinfer.autotune_v2(mode="tune", persistent_cache=False, **options)
    return context


CONTEXTS: dict[str, Callable[[], Context]] = {
    "plain": lambda: autotune(True),
    "v2": v2,
    "buckets, up": lambda: autotune(True, tuning_buckets=(100, 3, 300), round_up=True),
    "buckets, down": lambda: autotune(True, tuning_buckets=(100, 3, 300)),
    "own buckets, up": lambda: autotune(True, round_up=True),
    "v2 buckets, up": lambda: v2(tuning_buckets=(100, 3, 300), round_up=True),
    "graph replays": lambda: autotune(True, cuda_graph_profile_replays=3),
}


def whole_call(_engine: Engine, context: str) -> dict[str, Any]:
    """Let FlashInfer tune every call as a whole, then ask again outside tuning."""
    with child.counting() as counts, CONTEXTS[context]():
        toys.every_call()
    return {"saved": child.saved(), "counts": counts, "served": toys.every_call()}


def in_session(engine: Engine, context: str) -> dict[str, Any]:
    """Do the same in a session."""
    report = child.warm(engine, toys.every_call, tuning_context=CONTEXTS[context])
    served = toys.every_call()
    return {"report": report, "served": served, "held": AutoTuner.get().profiling_cache}


def embedded_whole(engine: Engine) -> dict[str, Any]:
    with autotune(True):
        engine.forward()
    return child.saved()


def embedded_session(engine: Engine) -> None:
    child.warm(engine, engine.forward)


class Watched(toys.Toy):
    """Notes how the tuner stands whenever a tactic runs."""

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        tuner = AutoTuner.get()
        seen = (tuner._active_tuning_contexts, get_autotune_process_group() is None)
        SEEN.append((*seen, tuner._in_v2_context, tactic != -1))
        super().run(inputs, tactic, **kwargs)


SEEN: list[tuple[int, bool, bool, bool]] = []


def watched(engine: Engine) -> dict[str, Any]:
    """Survey a forward that opens contexts of its own, one of each kind, by turns."""
    batches = iter((16, 64, 16, 64))

    def forward() -> None:
        for context in (CONTEXTS["v2"], CONTEXTS["plain"]) * 2:
            with context():
                toys.call("watched", [Watched("watched", (next(batches),))], toys.FLOOR)
        SEEN.clear()  # what the forward itself ran

    with tuning_over(engine.tuning_group):
        report = child.warm(engine, forward, tuning_context=contextlib.nullcontext)
        restored = get_autotune_process_group() is engine.tuning_group
    tuner = AutoTuner.get()
    return {
        "report": report,
        "seen": sorted(set(SEEN)),
        "restored": restored and engine.tuning_group is not None,
        "left open": (tuner._active_tuning_contexts, tuner.is_tuning_mode),
    }
