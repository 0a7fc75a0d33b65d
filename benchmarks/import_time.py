# SPDX-License-Identifier: Apache-2.0
"""What ``import warmup_plugin`` costs, over Python alone.

    python benchmarks/import_time.py [--repeats 20]

Starts processes with and without the import, in turn, and compares medians. Engines import this
package in every process, whether or not it is used there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

TARGET_MS = 20.0
STATEMENTS = {"python": "pass", "warmup_plugin": "import warmup_plugin"}


def start_ms(statement: str) -> float:
    """Return the wall time of a process that runs one statement."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return 1e3 * (time.perf_counter() - began)


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
    return 1 if cost > TARGET_MS else 0


if __name__ == "__main__":
    sys.exit(main())
