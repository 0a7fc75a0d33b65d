# SPDX-License-Identifier: Apache-2.0
"""A race of tactics against FlashInfer's sweep, on simulated clocks: device time, regret, ties.

    python benchmarks/race.py [--tasks 2000] [--seed 1] [--json FILE]

Ratios, side by side in one run; ends with 1 where a target is missed. What races is the installed
package's rule (`tuner/race/rules.py`), and for a job's cold start its rounds through FlashInfer's
own tuner. README.md says what is simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # after all else: the package stays the wheel's

from benchmarks.race_tasks import Figures, Kind, measure
from warmup_plugin.tuner.race.rules import FEWEST

#: Kinds of tasks, and the share of a sweep's device time that a race of them may take.
KINDS = {
    Kind(920, 5, 0.035): 0.33,
    Kind(920, 25, 0.029): 0.33,
    Kind(920, 28, 0.012): 0.33,
    Kind(920, 10, 0.007): 0.33,
    Kind(120, 8, 0.02): 0.5,
    Kind(50, 6, 0.007): 0.9,
    Kind(16, 3, 0.02): 1.0,
}
REGRET, AGREE = 0.5, 0.95
#: A device that is slower, and one that gets slower by the minute.
DISTURBED = {"30 % slow": {"pace": 1.3}, "drifting 1 % a minute": {"drift": 0.01}}
#: The cold start: tasks of this kind on so many ranks, over one rank alone and over lock step.
JOB, RANKS, OVER_ALONE, OVER_LOCK_STEP = Kind(920, 25, 0.029), 4, 0.10, 0.08


#: Cases of tests/real_ops that offer many, and the GPU whose op code is asked.
REAL_OPS = {
    "prims_ts_bf16_moe": "10.0", "prims_ts_fp4_block_scale_moe": "10.0",
    "cute_dsl_fused_moe w4a4 ep2": "10.0", "mm_bf16 tgv": "10.0", "mm_mxfp8 cute-dsl": "10.0",
    "cute_dsl_fused_moe_bf16 sm90": "9.0",
}  # fmt: skip


class Rows:
    """What is printed, what was missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.kept: list[dict[str, Any]] = []

    def hold(self, what: str, figure: float, target: float, *, least: bool = False) -> str:
        """Return a figure as a cell, with a mark where it misses its target."""
        is_missed = figure < target if least else figure > target
        if is_missed:
            self.missed.append(f"{what}: {figure:.2f}, target {target:.2f}")
        return f"{figure:.2f}{'!' if is_missed else ' '}"


def many_tasks(rows: Rows, tasks: int, seed: int) -> None:
    """Print a row for each kind of task: race over sweep."""
    print("candidates near noise   time/sweep  regret/sweep   p95/sweep  regret of race   sweep"
          "    alike twice: race  sweep  confidence")  # fmt: skip
    for kind, target in KINDS.items():
        found = measure(kind, tasks, seed)
        name = f"{kind.candidates} candidates, noise {kind.noise:.1%}"
        cells = _cells(rows, name, found, target)
        print(
            f"{kind.candidates:10d} {kind.near:4d} {kind.noise:5.1%}  {cells[0]:>10} {cells[1]:>13}"
            f" {cells[2]:>11} {found.race_regret:14.2%} {found.sweep_regret:7.2%}"
            f" {cells[3]:>20} {found.sweep_agree:6.2f} {found.confidence:11.2f}", flush=True,
        )  # fmt: skip
        rows.kept.append({"kind": asdict(kind), **asdict(found)})


def _cells(rows: Rows, name: str, found: Figures, target: float) -> tuple[str, ...]:
    return (
        rows.hold(f"device time, {name}", found.share, target),
        rows.hold(f"mean regret, {name}", found.race_regret / found.sweep_regret, REGRET),
        rows.hold(f"p95 of the regret, {name}", found.race_p95 / found.sweep_p95, REGRET),
        rows.hold(f"two starts choose alike, {name}", found.race_agree, AGREE, least=True),
    )


def disturbed(rows: Rows, tasks: int, seed: int) -> None:
    """Print the regret of a race on a slow or drifting device over that of an undisturbed sweep."""
    print("\nregret of a race on a device that is ..., over the sweep's on one that is not")
    for name, how in DISTURBED.items():
        for kind in (Kind(920, 25, 0.029), Kind(120, 8, 0.02)):
            found = measure(kind, tasks, seed, **how)
            ratio = found.race_regret / found.sweep_regret
            cell = rows.hold(f"regret, {name}, {kind.candidates} candidates", ratio, 1.0)
            print(f"  {name:22} {kind.candidates:4d} candidates  {cell}", flush=True)
            rows.kept.append({"disturbed": name, "kind": asdict(kind), **asdict(found)})


def cold_start(rows: Rows, seed: int) -> None:
    """Print a job's cold start in five ways."""
    os.environ.setdefault("FLASHINFER_LOGGING_LEVEL", "ERROR")  # read at import
    from benchmarks.race_job import TASKS, job, lock_step, side_by_side

    _, alone = job(JOB, seed, way="alone")
    swept, sweep = job(JOB, seed, way="sweep")
    raced, race = job(JOB, seed, way="race")
    ways = {
        "FlashInfer alone, one rank": alone,
        f"FlashInfer's lock step, {RANKS} ranks": lock_step(JOB, seed, RANKS),
        "this package's sweep, one rank": sweep,
        f"the same, sharded over {RANKS} ranks": side_by_side(swept, RANKS),
        "race, one rank": race,
        f"race, sharded over {RANKS} ranks": side_by_side(raced, RANKS),
    }
    print(f"\ncold start, {TASKS} tasks of {JOB.candidates} candidates, seconds on the device")
    for name, ms in ways.items():
        print(f"  {name:36} {ms / 1000:8.2f}  {ms / alone:5.2f} of FlashInfer alone")
    last = side_by_side(raced, RANKS)
    cell = rows.hold("cold start over FlashInfer alone", last / alone, OVER_ALONE)
    print(f"  sharded race over FlashInfer alone   {cell}")
    ratio = last / lock_step(JOB, seed, RANKS)
    print(f"  sharded race over lock step          {rows.hold('over', ratio, OVER_LOCK_STEP)}")
    rows.kept.append({"cold_start_ms": ways})


def real_ops(rows: Rows, seed: int) -> None:
    """Print what a race takes of the candidates that FlashInfer's own op code offers.

    Their number is the op code's; gaps and noise are simulated: a thirtieth near the best, 2 %.
    """
    from tests.real_ops.conftest import Servers

    folder = Path(tempfile.mkdtemp(prefix="ops-"))
    servers = Servers(folder, Path(os.environ["WARMUP_TEST_REAL_OPS"]))
    print("\nFlashInfer's candidate lists             tasks  candidates   time/sweep regret/sweep")
    try:
        for name, gpu in REAL_OPS.items():
            lists = servers.ask("lists", "candidates", on=gpu, name=name)
            took = swept = 0.0
            regret = [0.0, 0.0]
            for number, offered in enumerate(lists):
                if offered < FEWEST:
                    continue
                kind = Kind(offered, max(3, offered // 30), 0.02)
                found = measure(kind, 40, seed + number)
                # A sweep of that many takes so long in all, and a race that share of it.
                took, swept = took + found.share * offered, swept + offered
                regret = [regret[0] + found.race_regret, regret[1] + found.sweep_regret]
            share, ratio = took / swept, regret[0] / regret[1]
            said = f"{min(lists)} to {max(lists)}"
            print(f"  {name:34} {len(lists):9d} {said:>11} {share:12.2f} {ratio:13.2f}", flush=True)
            rows.kept.append({"op": name, "candidates": lists, "share": share, "regret": ratio})
    finally:
        servers.close()
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="A race of tactics against FlashInfer's sweep.")
    parser.add_argument("--tasks", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--real-ops", action="store_true",
        help="also on FlashInfer's own lists; WARMUP_TEST_REAL_OPS has what they need",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write every figure here")
    given = parser.parse_args(argv)
    rows = Rows()
    many_tasks(rows, given.tasks, given.seed)
    disturbed(rows, given.tasks, given.seed)
    cold_start(rows, given.seed)
    if given.real_ops:
        real_ops(rows, given.seed)
    if given.json:
        given.json.write_text(json.dumps(rows.kept, indent=1), encoding="utf-8")
    for what in rows.missed:
        print(f"missed: {what}")
    print(f"targets: {f'missed {len(rows.missed)} times' if rows.missed else 'met'}")
    return 1 if rows.missed else 0


if __name__ == "__main__":
    sys.exit(main())
