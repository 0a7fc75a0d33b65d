# SPDX-License-Identifier: Apache-2.0
"""What `test_install.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashinfer
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.cache.table import Table, render_table
from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.known_ops import KNOWN_OPS
from warmup_plugin.tuner.tuner_state import Installed, held_entries

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys
from tests.tuner.toys import COLD, FLOOR, GRAPH, Toy, call, toy_call

POLICY = ["cuda_graph_profile_replays", None, "l2_cache_policy", "hot"]
RECORDS = {"plan": {"tiles": [1, 2]}}


def key(op: str, batch: int, *extras: Any) -> str:
    return str((op, "Toy", ((batch, 8), (8, 8)), extras or ("toy",)))


def with_others(engine: Engine, *, fails: bool = False) -> dict[str, Any]:
    """Warm up in a process that holds entries of others: loaded, tuned, and of our own op."""
    child.load({
        key("loaded", 4): ["Toy", 2, POLICY],
        key("toy", 4): ["Toy", 77, POLICY],
        key("toy", 4096): ["Toy", 78, POLICY],
        "an old, unreadable key": ["Toy", 5],
    })  # fmt: skip
    with autotune(True):
        toy_call("tuned before")
    before = child.saved()

    def forward() -> None:
        toy_call()
        if fails:
            raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        child.warm(engine, forward)
    return {
        "before": before,
        "after": child.saved(),
        "served": toy_call(batch=4),
        "tuned before": toy_call("tuned before"),
        "memory": len(AutoTuner.get().profiling_cache),
    }


def under_a_policy(engine: Engine) -> Any:
    """Winners that another product holds in memory under a measurement policy of its own."""

    def context(mode: str) -> Any:
        policy = flashinfer.MeasurementPolicy(execution_mode="cuda_graph")
        return flashinfer.autotune_v2(mode=mode, persistent_cache=False, measurement_policy=policy)

    with context("tune"):
        tuned = toy_call("theirs")
    child.warm(engine, toy_call)
    with context("replay"):
        return tuned, toy_call("theirs")


def records(engine: Engine, file: str, when: str) -> dict[str, Any]:
    """Another product publishes records into a cache of its own, before or during the session."""
    tuner = AutoTuner.get()
    path = Path(file)
    if when == "loaded":
        child.load({}, _records={"product": RECORDS}, _generation="g1")

    def publish() -> None:
        with autotune(True, cache=file):
            pass  # as products do: the file's generation is noted at entry
        tuner.publish_namespaced_records("product", RECORDS)

    def forward() -> None:
        if when == "during":
            publish()
        toy_call()

    if when == "before":
        publish()
    child.warm(engine, forward)
    found = {
        "records": tuner.get_namespaced_records("product"),
        "dirty": sorted(tuner._dirty_namespaces),
        "generation": tuner._observed_cache_generations.get(str(path)),
        "ours": toy_call(),
    }
    if when != "loaded":
        tuner.save_configs(file)  # raises where the generation was lost or the file is another's
        found["saved"] = json.loads(path.read_text())["_records"]
    return found


def make_records(_engine: Engine, file: str) -> None:
    tuner = AutoTuner.get()
    tuner.publish_namespaced_records("product", {"old": 1})
    tuner.save_configs(file)


def take_records(engine: Engine) -> Any:
    """Warm up from a table into which FlashInfer alone has saved records."""
    report = child.warm(engine, toy_call)
    return report, AutoTuner.get().get_namespaced_records("product")


def policies(engine: Engine, replays: int) -> Any:
    """Ops measured with a cold L2, in CUDA graphs and plainly."""

    def context() -> Any:
        return autotune(True, cuda_graph_profile_replays=replays)

    def forward() -> None:
        call("cold", [Toy("cold")], COLD)
        call("graph", [Toy("graph")], GRAPH)
        toy_call("plain")

    before = child.counting()
    with before as counts:
        report = child.warm(engine, forward, tuning_context=context)
    served = [call("cold", [Toy("cold")], COLD), call("graph", [Toy("graph")], GRAPH)]
    return report, dict(counts), served


def old_keys(engine: Engine) -> Any:
    """Ops without extras, with a cold one, and with extras in one of two runners."""

    def forward() -> None:
        call("bare", [Toy("bare", ())], FLOOR)
        call("cold bare", [Toy("cold bare", ())], COLD)
        call("mixed", [Toy("mixed", ()), toys.Other("mixed")], FLOOR)
        call("pair", [Toy("pair", ()), toys.Other("pair", ())], FLOOR)

    report = child.warm(engine, forward)
    return report, child.saved()


def restores(_engine: Engine) -> dict[str, Any]:
    """Replace what is loaded in several ways, and let `Installed` have a look."""
    installed = Installed.take_down()
    entries = {key("toy", b): ["Toy", b, POLICY] for b in (1, 4)}
    document = json.dumps({"_metadata": compat.stamp(), **entries}).encode()
    installed.load(document, compat.stamp(), {"listed"})
    found: dict[str, Any] = {"untouched": (installed.restore(), child.saved() == entries)}

    def replace() -> None:
        AutoTuner.get().clear_cache()
        child.load({k: ["Toy", 9, POLICY] for k in entries})

    ways: dict[str, Callable[[], object]] = {
        "emptied": lambda: AutoTuner.get().clear_cache(),
        "replaced": replace,
        "added to": lambda: child.load({key("foreign", 1): ["Toy", 1, POLICY]}),
        "extended by a listed op": lambda: child.load({key("listed", 1): ["Toy", 1, POLICY]}),
    }
    for way, change in ways.items():
        change()
        is_needed, held = installed.restore(), child.saved()
        listed = held.pop(key("listed", 1), None)
        found[way] = (is_needed, held == entries, listed is not None, installed.is_intact())
    return found


def keeps_listed_ops(engine: Engine) -> Any:
    """A pass-through op has loaded its own entries, and tunes more in the forward."""
    child.load({key("listed", 64): ["Toy", 3, POLICY]})
    ops = KNOWN_OPS.plus(pass_through={"listed": "planted"})
    during = []

    def forward() -> None:
        during.append(toy_call("listed", batch=64))
        toy_call()

    report = child.warm(engine, forward, ops=ops)
    return report, during, toy_call("listed", batch=64), child.saved()


def holds(_engine: Engine) -> list[dict[str, Any]]:
    """What FlashInfer would save, and what we take its entries to be: loaded, tuned, both."""
    child.load({
        key("loaded", 4): ["Toy", 2, POLICY],
        key("without a policy", 4): ["Toy", [1, [2, "x"]]],
        key("cold", 4): ["Toy", 77, POLICY],
        "an old, unreadable key": ["Toy", 5],
    })  # fmt: skip
    with autotune(True, cuda_graph_profile_replays=3):
        call("cold", [Toy("cold")], COLD)
        call("graph", [Toy("graph")], GRAPH)
        call("bare", [Toy("bare", ())], FLOOR)
        toy_call("tuned")
    ours = {
        key: value
        for key, value in json.loads(render_table(Table(compat.stamp(), held_entries()))).items()
        if not key.startswith("_")
    }
    return [child.saved(), ours]


def refuses(_engine: Engine) -> list[str]:
    """Documents that cannot be installed; the tuner is left empty."""
    said = []
    stamp = compat.stamp()
    for document in (
        b"{",
        json.dumps({"_metadata": stamp, "a": None}).encode(),
        json.dumps({"_metadata": {"flashinfer_version": "*"}}).encode(),
    ):
        installed = Installed()
        try:
            installed.load(document, stamp, ())
        except Exception as error:  # noqa: BLE001  # the parent looks at it
            said.append(f"{type(error).__name__}: {error}")
    other = {**stamp, "flashinfer_version": "0.0.1"}
    try:
        Installed().load_final({}, other, ())
    except Exception as error:  # noqa: BLE001
        said.append(f"{type(error).__name__}: {error}")
    return [*said, json.dumps(child.saved())]
