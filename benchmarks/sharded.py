# SPDX-License-Identifier: Apache-2.0
"""Strategy `sharded` against `leader`, against FlashInfer's lock step, and on uneven work.

    python benchmarks/sharded.py [--ranks 2 4 8] [--timelines]

Prints steps 4 to 6 of each strategy by number of ranks, then uneven work against the best schedule
that any could have. README.md says what is measured and what is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

RANK = Path(__file__).with_name("sharded_rank.py")
OPS = {f"bench::gemm_{number}": 16 for number in range(6)}
#: Most that sharded may take, as a share of leader: that over the number of ranks.
TARGETS = {2: 1.15, 4: 1.15, 8: 1.3}
#: Most that uneven work may take, over the best schedule.
UNEVEN_TARGET = 1.25
STEPS = ("plan", "tune", "share")

Results = list[dict[str, Any]]


def run(num_ranks: int, script: str, **arguments: Any) -> Results:
    """Run a function of `sharded_rank.py` in one fresh process per rank."""
    config = EngineConfig(dp=num_ranks, timing="deterministic")
    script = f"{RANK}:{script}"
    found: Results = launch(config, script=script, arguments=arguments, timeout_s=200.0)
    return found


def start(num_ranks: int, strategy: str, tactics: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Tune once in an empty root; return time, certificate, entries and what each rank did."""
    with tempfile.TemporaryDirectory(prefix="sharded-") as root:
        results = run(num_ranks, "start", root=root, strategy=strategy, tactics=tactics, **more)
        path = Path(results[0]["path"])
        document = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "seconds": max(sum(r["seconds"].get(s, 0.0) for s in STEPS) for r in results),
        "certificates": sorted({r["certificate"] for r in results}),
        "entries": {key: row for key, row in document.items() if not key.startswith("_")},
        "tuned": [r["tuned"] for r in results],
        "timelines": [r["timeline"] for r in results],
    }


def compare(num_ranks: int) -> dict[str, Any]:
    """Measure one number of ranks; the three ways one after the other."""
    leader = start(num_ranks, "leader", OPS)
    sharded = start(num_ranks, "sharded", OPS)
    alone = max(r["seconds"] for r in run(num_ranks, "lock_step", tactics=OPS))
    return {
        "ranks": num_ranks, "leader_s": leader["seconds"], "sharded_s": sharded["seconds"],
        "lock_step_s": alone, "tuned": sharded["tuned"],
        "same_certificate": leader["certificates"] == sharded["certificates"],
        "same_entries": leader["entries"] == sharded["entries"] != {},
    }  # fmt: skip


def best_s(
    costs: Mapping[str, float], held: Sequence[Sequence[str]], paces: Sequence[float]
) -> float:
    """Return a time that no schedule can beat: of any ranks, the work that only they can do.

    ``costs``: seconds of all tasks of an op on a device of pace 1.
    """
    bounds = []
    ranks = range(len(held))
    for some in itertools.chain.from_iterable(itertools.combinations(ranks, n + 1) for n in ranks):
        theirs = {op for op in costs if all(r in some for r in ranks if op in held[r])}
        bounds.append(sum(costs[op] for op in theirs) / sum(1 / paces[rank] for rank in some))
    return max(bounds)


def uneven() -> list[dict[str, Any]]:
    """Measure work that cannot be split evenly, on four ranks."""
    ten = {f"bench::gemm_{number}": 4 + number for number in range(10)}
    names, found = list(ten), []
    cases = {
        "rank 0 has ten ops, the others one of them each": (
            [names, *([name] for name in names[-3:])], [1.0] * 4,
        ),
        "the device of rank 3 is 5 times slower": ([names] * 4, [1.0, 1.0, 1.0, 5.0]),
        "both": ([names, *([name] for name in names[-3:])], [1.0, 1.0, 1.0, 5.0]),
    }  # fmt: skip
    for name, (held, paces) in cases.items():
        seen = start(4, "sharded", ten, held=held, paces=paces)
        # What a task takes on a device of pace 1: the fastest of this run, so that it is no guess.
        costs = dict.fromkeys(ten, 0.0)
        for op in ten:
            rows = [
                (row[2], pace)
                for timeline, pace in zip(seen["timelines"], paces, strict=True)
                for row in timeline
                if row[0].startswith(f"{op} @")
            ]
            costs[op] = sum(seconds / pace for seconds, pace in rows)
        best = best_s(costs, held, paces)
        found.append({
            "case": name, "seconds": seen["seconds"], "best_s": best, "tuned": seen["tuned"],
            "ratio": seen["seconds"] / best, "timelines": seen["timelines"],
        })  # fmt: skip
    return found


def draw(timelines: Sequence[Sequence[Sequence[Any]]], width: int = 66) -> list[str]:
    """Return a line for each rank: a digit is the op of the task in hand, a dot is idleness."""
    rows = [row for timeline in timelines for row in timeline]
    began = min(row[1] for row in rows)
    scale = width / (max(row[1] + row[2] for row in rows) - began)
    lines = []
    for rank, timeline in enumerate(timelines):
        cells = ["."] * width
        for label, at, seconds in timeline:
            first, last = int((at - began) * scale), int((at + seconds - began) * scale)
            op = label.split(" @ ")[0].rpartition("_")[2]
            cells[first : max(first + 1, min(last, width))] = op * (
                max(first + 1, min(last, width)) - first
            )
        lines.append(f"rank {rank}  {''.join(cells)[:width]}")
    return lines


def timelines() -> None:
    """Print what each rank is at under each strategy, from the reports of real starts."""
    tactics = {f"bench::gemm_{number}": 4 + 4 * number for number in range(3)}
    for strategy in ("leader", "sharded", "per_rank"):
        seen = start(4, strategy, tactics)
        print(
            f"\n{strategy}: {seen['seconds']:.2f} s" if strategy != "per_rank" else f"\n{strategy}"
        )
        print("\n".join(draw(seen["timelines"])))
    seen = start(4, "sharded", tactics, paces=[1.0, 1.0, 1.0, 5.0])
    print(f"\nsharded, the device of rank 3 is 5 times slower: {seen['seconds']:.2f} s")
    print("\n".join(draw(seen["timelines"])))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="Sharded tuning against leader and lock step.")
    parser.add_argument("--ranks", type=int, nargs="*", default=list(TARGETS))
    parser.add_argument("--timelines", action="store_true", help="draw the strategies, no more")
    parser.add_argument("--json", type=Path, help="write every figure here")
    given = parser.parse_args(argv)
    if given.timelines:
        timelines()
        return 0
    missed, rows = 0, []
    print("ranks  leader, s  sharded, s  share x ranks  lock step, s  tuned by each rank")
    for num_ranks in given.ranks:
        row = compare(num_ranks)
        rows.append(row)
        share = row["sharded_s"] / row["leader_s"] * num_ranks
        print(
            f"{num_ranks:5} {row['leader_s']:10.2f} {row['sharded_s']:11.2f} {share:14.2f}"
            f" {row['lock_step_s']:13.2f}  {row['tuned']}", flush=True,
        )  # fmt: skip
        if not (row["same_certificate"] and row["same_entries"]):
            raise SystemExit("leader and sharded have come to different tables")
        missed += share > TARGETS.get(num_ranks, UNEVEN_TARGET)
    print("\nuneven work, four ranks                            s   best, s  ratio  tuned")
    for found in uneven():
        rows.append(found)
        missed += found["ratio"] > UNEVEN_TARGET
        print(
            f"{found['case']:48} {found['seconds']:4.2f} {found['best_s']:9.2f}"
            f" {found['ratio']:6.2f}  {found['tuned']}", flush=True,
        )  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(f"targets: {f'missed in {missed} rows' if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
