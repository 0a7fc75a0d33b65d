# SPDX-License-Identifier: Apache-2.0
"""What the ranks of `starts.py` run: functions of an engine, for `launch`."""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import flashinfer.autotuner as fi
import msgspec
import torch.distributed as dist

from warmup_plugin.cache.stamps import FINGERPRINT
from warmup_plugin.engines.embedded.parallel import tuning_over
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank
from warmup_plugin.kernel_warmup import warm_up
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.proven import PROVEN
from warmup_plugin.tuner.tuner_state import held_entries


def facts(_engine: Engine) -> dict[str, Any]:
    """Say what the release has and can do."""
    places = {"module": fi, "AutoTuner": fi.AutoTuner, "tuner": fi.AutoTuner()}
    return {
        "capabilities": msgspec.structs.asdict(compat.probe()),
        "present": {f"{w}.{name}": hasattr(places[w], name) for w, name in compat.REQUIRED},
        "tried": msgspec.structs.asdict(compat.tried(fi.AutoTuner())),
        "digest": compat.sources_digest(),
    }


def probed(_engine: Engine) -> dict[str, Any]:
    """Say what the probe makes of the release."""
    digest = compat.sources_digest()
    return {"lack": compat.probe().lack, "digest is known": digest in PROVEN}


def alone(engine: Engine) -> dict[str, Any]:
    """Let FlashInfer tune the forward, without this package; return what it serves."""
    with tuning_over(engine.tuning_group), fi.autotune(True):
        engine.forward()
    return dict(engine.ops.served())


def started(engine: Engine) -> dict[str, Any]:
    """Start as the engine does; return the report, what is served, and what was logged."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # no more of it is needed
    logging.getLogger("warmup_plugin").addHandler(handler)
    result = warm_up_rank(engine)
    return {"report": result.report.to_json(), "served": dict(result.served), "said": said}


def looks_itself(engine: Engine) -> dict[str, Any]:
    """Say what FlashInfer calls these packages, and which tables it loads without this package."""
    assert engine.root is not None
    tables = engine.root.glob("flashinfer_autotune/*/*/*/rank_tp0_pp0_dp0.json")
    return {
        "fingerprint": compat.stamp()[FINGERPRINT],
        "loads": {str(path): fi.AutoTuner().load_configs(str(path)) for path in tables},
    }


def whole_call(engine: Engine) -> dict[str, Any]:
    """Let FlashInfer tune the forward in its own way; return what it would save."""
    with fi.autotune(True):
        engine.forward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.json")
        fi.AutoTuner.get().save_configs(str(path))
        document: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in document.items() if not key.startswith("_")}


def without_files(engine: Engine) -> dict[str, Any]:
    """Let FlashInfer tune and load; say what it would save, what we see it hold, what it reads.

    All without a directory, an anonymous file or a spare descriptor.
    """
    whole_call(engine)
    tuner = fi.AutoTuner.get()
    held = {key: [entry.runner, entry.tactic] for key, entry in held_entries().items()}
    document = {"_metadata": compat.stamp(), **held}
    del os.memfd_create
    tuner.clear_cache()
    with compat.as_file(json.dumps(document).encode()) as path:
        loaded = tuner.load_configs(path)
    again = {key: [entry.runner, entry.tactic] for key, entry in held_entries().items()}
    return {"held": held, "loaded": loaded, "again": again}


def slow_second_rank(engine: Engine) -> dict[str, Any]:
    """Warm up with a second rank that tunes slower; say when each had tuned and was done.

    And whether anything recorded is alive then.
    """
    tuned_until = [0.0]
    recorded: list[Any] = []

    def progress(step: str, *_: Any) -> None:
        if step == "tune":
            time.sleep(0.01 * engine.ranks.rank)
            tuned_until[0] = time.monotonic()

    def forward() -> None:
        engine.forward()
        survey = fi.AutoTuner.get().choose_one.__self__
        calls = {id(task.call): task.call for task in survey.tasks.values()}.values()
        recorded.extend(weakref.ref(call) for call in calls)
        recorded.extend(weakref.ref(runner) for call in calls for runner in call.runners)
        recorded.extend(weakref.ref(call.inputs[0]) for call in calls)

    report = warm_up(
        forward, identity=engine.identity(), ranks=engine.ranks, group=dist.group.WORLD,
        cache_root=engine.root, progress=progress,
    )  # fmt: skip
    done = time.monotonic()
    gc.collect()
    alive = [type(ref()).__name__ for ref in recorded if ref() is not None]
    return {
        "tuned_until": tuned_until[0], "done": done, "agreement": report.agreement,
        "recorded": len(recorded), "alive": alive,
    }  # fmt: skip
