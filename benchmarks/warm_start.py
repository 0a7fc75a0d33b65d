# SPDX-License-Identifier: Apache-2.0
"""Warm start against its floor: what this package adds to read, broadcast, `load_configs`.

    python benchmarks/warm_start.py [--ranks 1 2 4] [--entries 14 856 10000] [--repeats 9]

Prints one row per number of ranks and entries. README.md says what is measured and what is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

RANK = Path(__file__).with_name("warm_start_rank.py")
#: Entries -> calls of ``choose_one``, buckets of each.
SHAPES = {14: (2, 7), 856: (107, 8), 10_000: (1_000, 10)}
TARGET = 1.5
#: From which number of entries on the target holds; below, fixed costs are all there is.
TARGET_FROM = 856


def run(num_ranks: int, script: str, **arguments: Any) -> list[dict[str, Any]]:
    """Run a function of `warm_start_rank.py` in one fresh process per rank."""
    config = EngineConfig(tp=num_ranks, timing="deterministic")
    found: list[dict[str, Any]] = launch(
        config, script=f"{RANK}:{script}", arguments=arguments, timeout_s=170.0
    )
    return found


def whole_ms(results: list[dict[str, Any]]) -> float:
    """Return the time from the first rank's begin to the last one's end."""
    marks = [result["marks"] for result in results]
    return 1e3 * (max(m["ended"] for m in marks) - min(m["began"] for m in marks))


def without_forward_ms(results: list[dict[str, Any]]) -> float:
    """Return the same without the forward: from when all have reached it until all have left it."""
    marks = [result["marks"] for result in results]
    forward = max(m["forward_left"] for m in marks) - max(m["forward_reached"] for m in marks)
    return whole_ms(results) - 1e3 * forward


def forward_ms(results: list[dict[str, Any]]) -> float:
    """Return the slowest rank's own time in the forward."""
    marks = [result["marks"] for result in results]
    return 1e3 * max(m["forward_ended"] - m["forward_began"] for m in marks)


def check(results: list[dict[str, Any]], entries: int) -> None:
    """Make sure that what was measured was a warm start with this many entries, on every rank."""
    for result in results:
        told = (result["tasks"].get("from_cache"), result["tactics_timed"], result["agreement"])
        if told != (entries, 0, "certified"):
            raise SystemExit(f"not a warm start with {entries} entries: {told}, {result}")


def steps_ms(repeats: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Return the median time of each step on rank 0."""
    steps = repeats[0][0]["seconds"]
    return {
        step: 1e3 * statistics.median(results[0]["seconds"].get(step, 0.0) for results in repeats)
        for step in steps
    }


def cell(num_ranks: int, entries: int, repeats: int, table: Path, root: Path) -> dict[str, Any]:
    """Measure floor, ours and the forward under FlashInfer alone, interleaved."""
    num_calls, num_buckets = SHAPES[entries]
    shape = {"num_calls": num_calls, "num_buckets": num_buckets}
    floors, starts, plain = [], [], []
    for _ in range(repeats):
        floors.append(run(num_ranks, "floor", path=str(table)))
        starts.append(run(num_ranks, "start", root=str(root), **shape))
        check(starts[-1], entries)
        plain.append(run(num_ranks, "forward_alone", path=str(table), **shape))
    floor_ms = [whole_ms(results) for results in floors]
    ours_ms = [without_forward_ms(results) for results in starts]
    return {
        "ranks": num_ranks,
        "entries": entries,
        "bytes": table.stat().st_size,
        "floor_ms": floor_ms,
        "ours_ms": ours_ms,
        "ratio_min": min(ours_ms) / min(floor_ms),
        "ratio_median": statistics.median(ours_ms) / statistics.median(floor_ms),
        "survey_ms": statistics.median(map(forward_ms, starts)),
        "forward_alone_ms": statistics.median(map(forward_ms, plain)),
        "steps_ms": steps_ms(starts),
    }


def line(found: dict[str, Any]) -> str:
    """Return one row of the table."""
    return (
        f"{found['ranks']:5} {found['entries']:8} {found['bytes'] / 1e6:6.2f}"
        f" {min(found['floor_ms']):9.1f} {statistics.median(found['floor_ms']):7.1f}"
        f" {min(found['ours_ms']):8.1f} {statistics.median(found['ours_ms']):7.1f}"
        f" {found['ratio_min']:7.2f} {found['ratio_median']:7.2f}"
        f" {found['survey_ms']:9.1f} {found['forward_alone_ms']:8.1f}"
    )


_HEADER = (
    "ranks  entries     MB  floor min  median  our min  median   ratio  median"
    "    survey  FI alone   (ms)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cells; 1 where one misses the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--entries", type=int, nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--steps", action="store_true", help="also print rank 0's time by step")
    parser.add_argument("--root", type=Path, help="keep tables here, and use those that are")
    given = parser.parse_args(argv)
    found = []
    print(_HEADER)
    with tempfile.TemporaryDirectory(prefix="warm-start-") as folder:
        for entries in given.entries:
            root = (given.root or Path(folder)) / str(entries)
            num_calls, num_buckets = SHAPES[entries]
            # Cold the first time, so that the table is what FlashInfer has tuned.
            [first] = run(1, "start", root=str(root), num_calls=num_calls, num_buckets=num_buckets)
            for num_ranks in given.ranks:
                found.append(cell(num_ranks, entries, given.repeats, Path(first["path"]), root))
                print(line(found[-1]), flush=True)
                if given.steps:
                    steps = found[-1]["steps_ms"].items()
                    print("      ", ", ".join(f"{step} {ms:.1f}" for step, ms in steps))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    held = [row for row in found if row["entries"] >= TARGET_FROM]
    missed = [row for row in held if row["ratio_median"] > TARGET]
    print(f"target: median ratio <= {TARGET} from {TARGET_FROM} entries on:", end=" ")
    print("missed" if missed else "met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
