# SPDX-License-Identifier: Apache-2.0
"""What this package costs vLLM: registration, its warm-up, whole starts. Against vLLM without us.

    python benchmarks/vllm_starts.py [--parts registration warm-up start]

In an environment that has vLLM (`make .venv-vllm` by ``make test-engines``). Everything is vLLM's
own code but the GPU's clock and kernels, which take no time: a start on a GPU is longer on both
sides, by what kernels take. Both sides take turns, each start in new processes.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engines"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engines" / "vllm"))

from vllm_jobs import CONTEXT, ENVIRONMENT, inspect, launch, make_job
from vllm_on_ranks import PRELOAD

#: What each kind of process has imported when vLLM loads its plugins there.
PROCESSES = {
    "front end": "vllm.engine.arg_utils",
    "engine core": "vllm.v1.engine.core",
    "worker": "vllm.v1.worker.worker_base",
}
REGISTRATION_MS = 5.0
#: ranks -> most that a start may take, over vLLM's own.
COLD, WARM = {1: 1.3, 2: 1.0, 4: 1.0}, 0.5
START = 1.05
#: A real model has tens, whose calls are the same tasks; with one, fixed costs are all there is.
LAYERS = (1, 32)
SKIP = {"WARMUP_PLUGIN_ON_HIT": "skip"}
#: Workers live for days: what is kept of the look at the environment is written after the start.
LIVES_ON_S = 3.0

Rows = list[tuple[str, list[float], list[float], float]]


def make_empty_plugin(folder: Path) -> None:
    """Install a plugin that does nothing, for whoever has the folder on its path."""
    (folder / "empty_plugin.py").write_text("def register():\n    pass\n")
    about = folder / "empty_plugin-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: empty-plugin\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nempty = empty_plugin:register\n"
    )


def compile_ours() -> None:
    """Compile this package, as pip does when it installs; a checkout may be without."""
    ours = importlib.util.find_spec("warmup_plugin")
    assert ours is not None
    for place in ours.submodule_search_locations or ():
        compileall.compile_dir(place, quiet=2)


def load_plugin(modules: str, folder: str, plugin: str, send: Any) -> None:
    """Import what that kind of process has, load one plugin, send the milliseconds it took."""
    importlib.import_module(modules)
    from vllm.plugins import load_general_plugins

    sys.path.append(folder)
    os.environ["VLLM_PLUGINS"] = plugin
    for name in [name for name in sys.modules if name.split(".")[0] == "warmup_plugin"]:
        raise SystemExit(f"{name} is imported already")
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        began = time.perf_counter()
        load_general_plugins()
        seconds = time.perf_counter() - began
    registered = "warmup_plugin.engines.vllm" in sys.modules
    assert registered == (plugin == "warmup_plugin"), sys.modules.keys()
    send.send(1e3 * seconds)


def in_process(target: Callable[..., None], *arguments: Any) -> float:
    """Run a function that sends one number in a new process of the fork server."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    found = float(ours.recv()) if ours.poll(120) else float("nan")
    process.join(10)
    process.kill()
    return found


def registration(folder: Path, repeats: int) -> Rows:
    """Return milliseconds of `load_general_plugins` with an empty plugin and with ours."""
    make_empty_plugin(folder)
    compileall.compile_dir(str(folder), quiet=2)
    os.environ.update(ENVIRONMENT)
    CONTEXT.set_forkserver_preload(list(PROCESSES.values()))
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    rows: Rows = []
    for kind, modules in PROCESSES.items():
        found: dict[str, list[float]] = {"empty": [], "warmup_plugin": []}
        for _ in range(repeats + 1):  # the first one warms the disk's cache
            for plugin, times in found.items():
                times.append(in_process(load_plugin, modules, str(folder), plugin))
        alone, with_us = (times[1:] for times in found.values())
        rows.append((f"registration, {kind}", alone, with_us, REGISTRATION_MS))
    return rows


def warm_up(folder: Path, repeats: int) -> Rows:
    """Return milliseconds of `flashinfer_autotune`, of the slowest rank, alone and with us."""
    # Not above: this module is imported in the processes that measure the registration, too.
    from warmup_plugin.steps.cold_steps import COLD_STEPS

    PRELOAD.extend(COLD_STEPS)  # vLLM's own modules are loaded before the clock runs, too
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    inspected = inspect(folder)
    rows: Rows = []
    for (tp, limit), layers in itertools.product(COLD.items(), LAYERS):
        found: dict[tuple[str, bool], list[float]] = {}
        for turn in range(repeats):
            for plugin in (False, True):
                place = folder / f"{tp}-{layers}-{turn}-{plugin}"
                place.mkdir()
                job = make_job(
                    place, inspected, tp=tp, layers=layers, timing="clock", plugin=plugin
                )
                for temperature in ("cold", "warm"):
                    start = job.start(env=SKIP, fault="linger", lives_on_s=LIVES_ON_S)
                    took = 1e3 * max(rank["seconds"] for rank in start.ranks)
                    check(start, is_ours=plugin, is_warm=temperature == "warm")
                    found.setdefault((temperature, plugin), []).append(took)
        for temperature, most in (("cold", limit), ("warm", WARM)):
            alone, ours = found[temperature, False], found[temperature, True]
            rows.append((f"{temperature}, {tp} rank(s), {layers} layer(s)", alone, ours, most))
    return rows


def check(start: Any, *, is_ours: bool, is_warm: bool) -> None:
    """Make sure that what was measured is what it is called."""
    for rank in start.ranks:
        report = rank["report"]
        assert bool(report) == is_ours, rank
        if report:
            assert report["agreement"] == "certified"
            assert (sum(report["tasks"].values()) > 0) or is_warm
            assert not (is_warm and report["tactics_timed"])


def whole_starts(folder: Path, repeats: int) -> Rows:
    """Return milliseconds of `LLM(...)` with two workers, warm, alone and with us."""
    inspected = inspect(folder)
    jobs = {}
    for plugin in ("empty", "warmup_plugin"):
        place = folder / plugin
        place.mkdir()
        jobs[plugin] = make_job(place, inspected)
        one_launch(jobs[plugin], plugin)  # cold
    found: dict[str, list[float]] = {plugin: [] for plugin in jobs}
    for turn in range(repeats):
        for plugin in sorted(jobs, reverse=bool(turn % 2)):
            found[plugin].append(one_launch(jobs[plugin], plugin))
    alone, ours = found.values()
    pairs = [b / a for a, b in zip(alone, ours, strict=True)]
    print("pairs:", ", ".join(f"{pair:.3f}" for pair in pairs), flush=True)
    return [("whole start, 2 workers, warm", alone, ours, START)]


def one_launch(job: Any, plugin: str) -> float:
    """Start an engine; return how long `LLM(...)` took."""
    started = launch(job, VLLM_PLUGINS=plugin)
    if started.code != 0:
        raise SystemExit(started.log[-4000:])
    assert [rank["is_patched"] for rank in started.ranks] == [plugin == "warmup_plugin"] * 2
    seconds: float = json.loads((job.root / "out.json").read_text())["seconds"]
    return 1e3 * seconds


PARTS: dict[str, tuple[Callable[[Path, int], Rows], int]] = {
    "registration": (registration, 20),
    "warm-up": (warm_up, 9),
    "start": (whole_starts, 5),
}


def verdict(name: str, alone: list[float], ours: list[float], most: float) -> tuple[str, bool]:
    """Return the row as text, and whether it meets its target."""
    a, b = median(alone), median(ours)
    if name.startswith("registration"):
        figure, unit = b - a, "ms more"
    elif name.startswith("whole"):
        figure, unit = median(y / x for x, y in zip(alone, ours, strict=True)), "median of pairs"
    else:
        figure, unit = b / a, "ratio"
    is_met = figure <= most
    word = "met" if is_met else "MISSED"
    return f"{name:32} {a:9.1f} {b:9.1f} ms  {figure:6.2f} {unit}, target {most:g}: {word}", is_met


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="What this package costs vLLM.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, help="instead of 20, 9 and 5")
    given = parser.parse_args(argv)
    if len(given.parts) > 1:  # each in a process of its own: one has one fork server
        options = [] if given.repeats is None else ["--repeats", str(given.repeats)]
        script = [sys.executable, __file__, *options, "--parts"]
        codes = [subprocess.run([*script, part], check=False).returncode for part in given.parts]
        return max(codes)
    compile_ours()
    measure, repeats = PARTS[given.parts[0]]
    with tempfile.TemporaryDirectory(prefix="vllm-starts-") as folder:
        rows = measure(Path(folder), given.repeats or repeats)
    print(f"{'':32}   without   with us, medians")
    told = [verdict(*row) for row in rows]
    print("\n".join(text for text, _ in told), flush=True)
    return 0 if all(is_met for _, is_met in told) else 1


if __name__ == "__main__":
    sys.exit(main())
