# SPDX-License-Identifier: Apache-2.0
"""What ranks do on FlashInfer 0.7.4: functions of an engine, for `launch`.

It is the first that keeps how a winner was chosen, that has ops with a loop of their own, and that
has the ranks of its tuning group meet at every call while they tune.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flashinfer
import flashinfer.autotuner as fi
from flashinfer.autotuner import AutoTuner

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys
from warmup_plugin.cache.external import read_any
from warmup_plugin.cache.table import Table
from warmup_plugin.engines.embedded.parallel import tuning_over
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank
from warmup_plugin.identity import Identity
from warmup_plugin.tuner.compat import managed_stores

PROTOCOL = "moe_ep.sm100.next_cutedsl.native.v1"
POLICY = ["cuda_graph_profile_replays", None, "l2_cache_policy", "hot"]
MORE = {"time_ms": 1.0, "runner_up_ms": 2.0, "margin": 1.0, "candidates": 3}


def whole_entries(engine: Engine) -> dict[str, Any]:
    """Two sessions of a process, target and draft; the engine tunes and loads something itself."""
    key = str(("loaded", "Toy", ((4, 8), (8, 8)), ("toy",)))
    child.load({key: ["Toy", 2, POLICY, MORE]})

    def session(op: str) -> Any:
        return child.warm(
            engine, lambda: toys.toy_call(op), identity=Identity.of(model=op, dtype="float32")
        )

    target = session("target")
    with fi.autotune(True):
        toys.toy_call("own")
    before = {op: toys.toy_call(op) for op in ("target", "own")}
    own = {key: entry for key, entry in child.saved().items() if key.startswith("('own'")}
    draft = session("draft")
    after = {op: toys.toy_call(op) for op in ("target", "own")}
    held = child.saved()
    return {
        "agreement": [target.agreement, draft.agreement],
        "before": before,
        "after": after,
        "loaded": held[key],
        "own": own,
        "own held": {key: held.get(key) for key in own},
    }


def asks_again(engine: Engine) -> dict[str, Any]:
    """An op as FlashInfer's MLA: it looks up what it has been told, and refuses to go without."""
    tuner, inputs = AutoTuner.get(), [toys.rows(16), toys.WEIGHT]
    shapes = tuple(tuple(each.shape) for each in inputs)

    def mla() -> None:
        runners = [toys.Toy("mla")]
        for is_first in (True, False):
            if tuner.search_cache("mla", runners, shapes, toys.FLOOR, inputs=inputs)[0]:
                return
            if is_first and tuner.is_tuning_mode:
                tuner.choose_one("mla", runners, toys.FLOOR, inputs)
        if not tuner.is_tuning_mode:
            raise RuntimeError("no cached result")

    report = child.warm_unchecked(engine, mla)
    mla()
    return {"agreement": report.agreement, "timed": report.tactics_timed}


class Protocol:
    """An op with a loop of its own: it looks up its record, else finds one."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def run(self, context: Any) -> Any:
        found = context.lookup("k")
        if found is None and context.tuning_enabled:
            self.runs.append("tuned")
            found = {"knob": 7}
            context.publish("k", found)
        return fi.TuningResult(found or "no record", cache_hit=found is not None)


def protocols(engine: Engine) -> dict[str, Any]:
    """An op with a loop of its own tunes in the forward, and is called afterwards."""
    protocol, tuner, answers = Protocol(), AutoTuner.get(), []

    def forward() -> None:
        toys.toy_call()
        answers.append(tuner.choose_with_protocol(PROTOCOL, protocol))

    child.warm(engine, forward)
    before = tuner.protocol_context(PROTOCOL).cache_identity
    forward()
    child.warm(engine, toys.toy_call)
    forward()
    after = tuner.protocol_context(PROTOCOL).cache_identity
    return {"runs": protocol.runs, "answers": answers, "is prepared still": before == after}


def managed_store(engine: Engine) -> dict[str, Any]:
    """FlashInfer's managed store with a winner and a record of such an op."""
    with flashinfer.autotune_v2(cache_root=engine.root):
        toys.toy_call("stored")
        AutoTuner.get().publish_protocol_record(PROTOCOL, "k", {"knob": 7}, persist=True)
    (folder,) = managed_stores(engine.root)
    found = read_any(folder, 1 << 30)
    assert isinstance(found, Table), found
    return {"ops": sorted({key.split("'")[1] for key in found.entries}), "n": len(found.entries)}


def skips_a_collective_op(engine: Engine) -> str:
    """Rank 1 skips an op that is passed through: FlashInfer finds out, on both ranks."""
    own, forward = engine.ranks.rank == 1, engine.forward

    def forward_with_skip_list() -> Any:
        with fi.autotune(True, skip_ops={"embedded::all_reduce"} if own else None):
            return forward()

    vars(engine)["forward"] = forward_with_skip_list
    try:
        warm_up_rank(engine)
    except Exception as error:  # noqa: BLE001  # what it is, the test asks
        return f"{type(error).__name__}: {error}"
    return "served"


def near_ties(engine: Engine) -> dict[str, Any]:
    """Two tactics within the tolerance that the engine's context has: the first is kept."""

    def context() -> Any:
        return fi.autotune(True, tie_tolerance=0.9)

    def forward() -> None:
        toys.toy_call("tie")

    with tuning_over(None), context():
        forward()
    alone = toys.toy_call("tie")
    AutoTuner.get().clear_cache()
    report = child.warm(engine, forward, tuning_context=context)
    ours = toys.toy_call("tie")
    AutoTuner.get().clear_cache()
    with fi.autotune(True):
        forward()
    return {"alone": alone, "ours": ours, "without": toys.toy_call("tie"), "went": report.agreement}
