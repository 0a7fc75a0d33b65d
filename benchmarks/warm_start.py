# SPDX-License-Identifier: Apache-2.0
"""Warm start against its floor: what this package adds to read, broadcast, `load_configs`.

    python benchmarks/warm_start.py [--ranks 1 2 4] [--entries 14 856 10000] [--repeats 9]

Prints one row per number of ranks and entries. README.md says what is measured and what is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

RANK = Path(__file__).with_name("warm_start_rank.py")
#: Entries -> calls of ``choose_one``, buckets of each.
SHAPES = {14: (2, 7), 856: (107, 8), 10_000: (1_000, 10)}
TARGET = 1.5
#: From which number of entries on the target holds; below, fixed costs are all there is.
TARGET_FROM = 856

#: What the ranks of one launch return.
Results = list[dict[str, Any]]


def run(num_ranks: int, script: str, **arguments: Any) -> Results:
    """Run a function of `warm_start_rank.py` in one fresh process per rank."""
    config = EngineConfig(tp=num_ranks, timing="deterministic")
    script = f"{RANK}:{script}"
    found: Results = launch(config, script=script, arguments=arguments, timeout_s=170.0)
    return found


def clocks(results: Results, mark: str) -> list[float]:
    """Return when the ranks reached a mark, on the machine's one clock, in milliseconds."""
    return [1e3 * result["marks"][mark][0] for result in results]


def whole_ms(results: Results) -> float:
    """Return the time from the first rank's begin to the last one's end."""
    return max(clocks(results, "ended")) - min(clocks(results, "began"))


def without_forward_ms(results: Results) -> float:
    """Return the same without the forward: from when all have reached it until all have left it."""
    forward = max(clocks(results, "forward_left")) - max(clocks(results, "forward_reached"))
    return whole_ms(results) - forward


def forward_ms(results: Results) -> float:
    """Return the slowest rank's own time in the forward."""
    began, ended = clocks(results, "forward_began"), clocks(results, "forward_ended")
    return max(end - begin for begin, end in zip(began, ended, strict=True))


def cpu_ms(results: Results, *spans: tuple[str, str]) -> float:
    """Return the processor time of all ranks between pairs of marks: less noisy than clocks."""
    marks = [result["marks"] for result in results]
    seconds: float = sum(m[end][1] - m[begin][1] for m in marks for begin, end in spans)
    return 1e3 * seconds


def check(results: Results, entries: int) -> None:
    """Make sure that what was measured was a warm start with this many entries, on every rank."""
    for result in results:
        told = (result["tasks"].get("from_cache"), result["tactics_timed"], result["agreement"])
        if told != (entries, 0, "certified"):
            raise SystemExit(f"not a warm start with {entries} entries: {told}, {result}")


def measure(num_ranks: int, entries: int, repeats: int, table: Path, root: Path) -> dict[str, Any]:
    """Measure floor, ours and the forward under FlashInfer alone, interleaved."""
    num_calls, num_buckets = SHAPES[entries]
    shape = {"num_calls": num_calls, "num_buckets": num_buckets}
    floors, starts, alone = [], [], []
    for _ in range(repeats):
        floors.append(run(num_ranks, "floor", path=str(table)))
        starts.append(run(num_ranks, "start", root=str(root), **shape))
        check(starts[-1], entries)
        alone.append(run(num_ranks, "forward_alone", path=str(table), **shape))
    around = ("began", "forward_reached"), ("forward_left", "ended")
    steps = {step for results in starts for step in results[0]["seconds"]}
    return {
        "ranks": num_ranks,
        "entries": entries,
        "bytes": table.stat().st_size,
        "floor_ms": [whole_ms(results) for results in floors],
        "ours_ms": [without_forward_ms(results) for results in starts],
        "floor_cpu_ms": [cpu_ms(results, ("began", "ended")) for results in floors],
        "ours_cpu_ms": [cpu_ms(results, *around) for results in starts],
        "survey_ms": [forward_ms(results) for results in starts],
        "forward_alone_ms": [forward_ms(results) for results in alone],
        "steps_ms": {
            step: [1e3 * results[0]["seconds"].get(step, 0.0) for results in starts]
            for step in sorted(steps)
        },
    }


HEADER = """\
                         floor, ms       ours, ms          ratio     ratio   forward, ms
ranks  entries    MB    min  median    min  median     min  median     CPU  survey   alone"""


def line(found: dict[str, Any]) -> str:
    """Return one row of the table."""
    floor, ours = found["floor_ms"], found["ours_ms"]
    cpu = median(found["ours_cpu_ms"]) / median(found["floor_cpu_ms"])
    return (
        f"{found['ranks']:5} {found['entries']:8} {found['bytes'] / 1e6:5.2f}"
        f" {min(floor):6.1f} {median(floor):7.1f} {min(ours):6.1f} {median(ours):7.1f}"
        f" {min(ours) / min(floor):7.2f} {median(ours) / median(floor):7.2f} {cpu:7.2f}"
        f" {median(found['survey_ms']):7.1f} {median(found['forward_alone_ms']):7.1f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cells; return 1 where one misses the target."""
    parser = argparse.ArgumentParser(description="Warm start against its floor.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--entries", type=int, nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--steps", action="store_true", help="print rank 0's time by step too")
    parser.add_argument("--root", type=Path, help="keep tables here, and use those that are there")
    given = parser.parse_args(argv)
    found = []
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="warm-start-") as folder:
        for entries in given.entries:
            root = (given.root or Path(folder)) / str(entries)
            num_calls, num_buckets = SHAPES[entries]
            # Cold the first time, so that the table is what FlashInfer has tuned.
            [first] = run(1, "start", root=str(root), num_calls=num_calls, num_buckets=num_buckets)
            for num_ranks in given.ranks:
                row = measure(num_ranks, entries, given.repeats, Path(first["path"]), root)
                found.append(row)
                print(line(row), flush=True)
                if given.steps:
                    steps = (f"{step} {median(ms):.1f}" for step, ms in row["steps_ms"].items())
                    print("      ", ", ".join(steps), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    missed = [
        row
        for row in found
        if row["entries"] >= TARGET_FROM
        and median(row["ours_ms"]) > TARGET * median(row["floor_ms"])
    ]
    verdict = f"missed in {len(missed)} rows" if missed else "met"
    print(f"target, a median ratio of at most {TARGET} from {TARGET_FROM} entries on: {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
