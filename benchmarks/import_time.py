# SPDX-License-Identifier: Apache-2.0
"""What ``import warmup_plugin`` costs over Python alone, and what the first session of a process.

    python benchmarks/import_time.py [--repeats 20]

Starts processes with and without the import, in turn, and compares medians. Engines import this
package in every process, whether or not it is used there. What a warm session needs is imported by
the first one, in a process that has torch and FlashInfer: other benchmarks have it imported before.
A cold one imports more, while programs are run for FlashInfer's look: that is told beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

TARGET_MS = 20.0
#: At least, since a busy machine only adds to it.
SESSION_TARGET_MS = 30.0
#: -P: the current folder may hold thousands of files, which an import would list.
PYTHON = (sys.executable, "-P", "-c")
STATEMENTS = {"python": "pass", "warmup_plugin": "import warmup_plugin"}

#: Prints the milliseconds that a session's own modules take to import, and a cold one's besides.
FIRST_SESSION = """
import importlib, time, torch, flashinfer.autotuner{}
began = time.perf_counter()
import warmup_plugin.kernel_warmup
warm = time.perf_counter()
from warmup_plugin.steps.cold_steps import COLD_STEPS
for name in COLD_STEPS:
    importlib.import_module(name)
print(1e3 * (warm - began), 1e3 * (time.perf_counter() - warm))
"""
#: vLLM and SGLang have imported msgspec before they warm up; a runner of one's own may not have.
PROCESSES = {"as it is": "", "msgspec there": ", msgspec"}


def start_ms(statement: str) -> float:
    """Return the wall time of a process that runs one statement."""
    began = time.perf_counter()
    subprocess.run([*PYTHON, statement], check=True)
    return 1e3 * (time.perf_counter() - began)


def first_session_ms(more: str) -> tuple[float, float]:
    """Return what importing a warm session's modules takes in a new process, and a cold one's."""
    command = [*PYTHON, FIRST_SESSION.format(more)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    warm, cold = map(float, done.stdout.split())
    return warm, cold


def first_session(process: str, repeats: int) -> float:
    """Print what the first session imports in such a process; return the least."""
    rows = [first_session_ms(PROCESSES[process]) for _ in range(1 + repeats // 4)]
    warm, cold = zip(*rows, strict=True)
    print(
        f"the first session's modules, {process}: {min(warm):.1f} ms min, {median(warm):.1f} ms "
        f"median; a cold one's besides: {min(cold):.1f} ms min, {median(cold):.1f} ms median"
    )
    return float(min(warm))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return 1 where the import costs more than the target."""
    parser = argparse.ArgumentParser(description="What importing warmup_plugin costs.")
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args(argv).repeats
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats + 1):
        for name, statement in STATEMENTS.items():
            times[name].append(start_ms(statement))
    medians = {name: median(found[1:]) for name, found in times.items()}  # the first one compiles
    minima = {name: min(found[1:]) for name, found in times.items()}
    for name in STATEMENTS:
        print(f"{name:14} {minima[name]:6.1f} ms min, {medians[name]:6.1f} ms median")
    cost = medians["warmup_plugin"] - medians["python"]
    at_best = minima["warmup_plugin"] - minima["python"]
    print(f"the import: {cost:.1f} ms by medians, {at_best:.1f} by minima; target {TARGET_MS:g}")
    least = {name: first_session(name, repeats) for name in PROCESSES}
    print(f"target of the first session, as it is, at least: {SESSION_TARGET_MS:g} ms")
    return 1 if cost > TARGET_MS or least["as it is"] > SESSION_TARGET_MS else 0


if __name__ == "__main__":
    sys.exit(main())
