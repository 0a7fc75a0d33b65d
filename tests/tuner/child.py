# SPDX-License-Identifier: Apache-2.0
"""What the child processes of these tests share: sessions, counts, and looks at the tuner.

Owns the switch from toys that take no time to toys that take simulated time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from flashinfer.autotuner import AutoTuner

from tests.tuner import toys
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.engines.embedded.host_clock import advance
from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.identity import Identity
from warmup_plugin.kernel_warmup import session, warm_up
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.settings import Settings

toys.let_time_pass = advance


def arguments(engine: Engine, **options: Any) -> dict[str, Any]:
    """Return a session's arguments on this rank."""
    return {
        "identity": Identity.of(model="toys", dtype="float32"),
        "ranks": engine.ranks,
        "group": dist.group.WORLD if engine.ranks.world_size > 1 else None,
        # FlashInfer's own choice, which is what these tests compare with.
        "settings": Settings.from_env(margin=0.0),
        "cache_root": engine.root,
        "engine": ("toys", "1"),
        **options,
    }


def counting() -> contextlib.AbstractContextManager[dict[str, int]]:
    """Count what FlashInfer measures in the body."""
    return count_calls(**tuning_functions())


def warm_unchecked(engine: Engine, forward: Callable[[], object], **options: Any) -> WarmupReport:
    """Warm up around the forward; where FlashInfer tunes unguarded, the report counts nothing."""
    return warm_up(forward, **arguments(engine, **options))


def warm(engine: Engine, forward: Callable[[], object], **options: Any) -> WarmupReport:
    """Warm up around the forward, counting inside FlashInfer; the report's counts agree."""
    with counting() as counts:
        report = warm_unchecked(engine, forward, **options)
    assert counts["profile_single_kernel"] == report.tactics_timed
    assert counts["prepare_input_tensors"] == report.inputs_synthesised
    return report


@contextlib.contextmanager
def warming(engine: Engine, **options: Any) -> Iterator[Any]:
    """Warm up around a body."""
    with session(**arguments(engine, **options)) as outcome:
        yield outcome


def saved() -> dict[str, Any]:
    """Return all entries the tuner holds, as FlashInfer saves them."""
    return {key: value for key, value in document().items() if not key.startswith("_")}


def document() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.json")
        AutoTuner.get().save_configs(str(path))
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def load(entries: dict[str, Any], **more: Any) -> None:
    """Load entries, as an engine or another product does."""
    stamp = sys.modules[AutoTuner.__module__]._collect_metadata()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "loaded.json")
        path.write_text(json.dumps({"_metadata": stamp, **more, **entries}))
        assert AutoTuner.get().load_configs(str(path))


def left_behind() -> list[str]:
    """Return what of FlashInfer's class the tuner object hides."""
    return sorted(name for name in vars(AutoTuner.get()) if hasattr(AutoTuner, name))
