# SPDX-License-Identifier: Apache-2.0
"""SGLang's warm-up with this package against its own, cold and warm, in one run.

    python benchmarks/sglang_starts.py [--ranks 1 2 4] [--models 0x1 20x1 4x32] [--repeats 5]

Run it with the Python of an environment that has SGLang (`make test-sglang` makes one in
``.venv-sglang``). What is timed is SGLang's `BaseRunner.warmup`, forward included, on the slowest
rank, each start in new processes; kernels cost nothing, and the GPU's clock is simulated. The four
kinds of start take turns, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1] / "tests" / "engines"
HERE = [str(TESTS / "sglang"), str(TESTS)]
sys.path[:0] = HERE

import engine_starts  # noqa: E402  # of the tests, which know how SGLang starts without a GPU
from sglang_on_ranks import LLAMA, PRELOAD, Spec, serve  # noqa: E402

from warmup_plugin.steps.cold_steps import COLD_STEPS  # noqa: E402

PRELOAD.extend(COLD_STEPS)  # SGLang's own modules are loaded before the clock runs, too

#: Of a cold start on several ranks, and of a warm one.
TARGETS = "1.0 cold on several ranks, 0.5 warm"
#: Schedulers live for days: what is kept of the look at the environment is written after the start.
LIVES_ON_S = 3.0

#: Calls of nine tasks each beside the three of the smallest model, and in how many layers all are
#: made: a real model has tens of layers, whose calls are the same tasks.
Model = tuple[int, int]
MODELS: list[Model] = [(0, 1), (20, 1), (4, 32)]


def as_model(text: str) -> Model:
    """Read ``CALLSxLAYERS``."""
    calls, _, layers = text.partition("x")
    return int(calls), int(layers)


def start(root: Path, ranks: int, model: Model, *, plugin: bool) -> list[Any]:
    """Start all ranks in new processes; return what they came to."""
    port = engine_starts.free_port()
    env = {"SGLANG_CACHE_DIR": str(root / "cache")}
    specs = [
        Spec(
            rank=rank, port=port, model=str(root / "model"), tp=ranks, more_calls=model[0],
            layers=model[1], env=env, plugin=plugin, is_timed=True, timing="deterministic",
            fault="linger",
        )
        for rank in range(ranks)
    ]  # fmt: skip
    found: list[Any]
    found, errors, hung = engine_starts.run(specs, serve, 120.0, lives_on_s=LIVES_ON_S)
    if errors or hung:
        raise SystemExit(f"{errors} {hung}")
    return found


def seconds(found: list[Any]) -> float:
    """Return the slowest rank's time."""
    return max(float(rank["seconds"]) for rank in found)


def measure(root: Path, ranks: int, model: Model) -> dict[str, float]:
    """Return the seconds of the four kinds of start, each from an empty cache; check them."""
    times, tactics = {}, dict[str, set[str]]()
    for side in ("alone", "ours"):
        shutil.rmtree(root / "cache", ignore_errors=True)
        for kind in ("cold", "warm"):
            found = start(root, ranks, model, plugin=side == "ours")
            times[f"{side} {kind}"] = seconds(found)
            tactics[f"{side} {kind}"] = {json.dumps(r["served"], sort_keys=True) for r in found}
            if side == "ours":
                report = found[0]["report"]
                assert report["agreement"] == "certified"
                assert (report["tactics_timed"] == 0) == (kind == "warm")
    served = set[str]().union(*tactics.values())
    assert len(served) == 1, "sides, ranks or starts do not serve the same tactics"
    return times


def main() -> None:
    """Measure and print one row per number of ranks and calls."""
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--models", type=as_model, nargs="+", default=MODELS)
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    paths = os.pathsep.join([*HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="sglang-starts-") as folder:
        root = Path(folder)
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text(json.dumps(LLAMA))
        # Without a margin both sides must come to the same winners.
        private = {"SGLANG_CACHE_DIR": str(root / "fork"), "PYTHONPATH": paths}
        private["WARMUP_PLUGIN_MARGIN"] = "0"
        os.environ.update(engine_starts.ENVIRONMENT | private)
        engine_starts.CONTEXT.set_forkserver_preload(PRELOAD)
        start(root, 1, (0, 1), plugin=True)  # the fork server's own start
        print("ranks   model   cold: alone    ours   ratio    warm: alone    ours   ratio")
        for ranks in chosen.ranks:
            for model in chosen.models:
                show(root, ranks, model, chosen.repeats)
    print(f"milliseconds, medians of {chosen.repeats}; ratio of medians; targets {TARGETS}")


def show(root: Path, ranks: int, model: Model, repeats: int) -> None:
    """Measure one row and print it."""
    found = defaultdict(list)
    for _ in range(repeats):
        for kind, time in measure(root, ranks, model).items():
            found[kind].append(time)
    row = f"{ranks:5}  {'{}x{}'.format(*model):>6}"
    for kind in ("cold", "warm"):
        alone, ours = (1e3 * median(found[f"{side} {kind}"]) for side in ("alone", "ours"))
        row += f"        {alone:8.0f}{ours:8.0f}{ours / alone:8.2f}"
    print(row, flush=True)


if __name__ == "__main__":
    main()
