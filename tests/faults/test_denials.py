# SPDX-License-Identifier: Apache-2.0
"""Never worse than alone: what the engine comes up without, it comes up without together with us.

Each cell denies one resource to all ranks, rank 0 or rank 1 of the embedded engine, cold or warm;
the engine alone under the same denial is the oracle. One cell of each row is in every run, all of
them by ``-m soak``. WARMUP_DENIALS_OUT names a file for one line of JSON about each start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded.config import resolve

HERE = Path(__file__).parent
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1800)]

DENIALS = resolve(f"{HERE / 'denials.py'}:DENIALS")
RANKS: Mapping[str, tuple[int, ...]] = resolve(f"{HERE / 'denials.py'}:RANKS")
#: What a start with us may take longer than alone: two silences and a grace period, on a busy
#: machine. A start that waits for a time-out of the engine's takes longer.
LONGER_S = 12.0
RUNNERS = 3

Cell = dict[str, Any]


def can_deny() -> str:
    """Return why this machine cannot do it, or an empty string."""
    if os.geteuid() != 0:
        return "needs root: namespaces, limits and users of a rank's own"
    done = subprocess.run(
        ["unshare", "-mu", "true"],  # noqa: S607  # the system's own
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


def grid() -> list[Cell]:
    """Return every cell of ours."""
    return [
        {"denial": denial.id, "ranks": ranks, "side": "ours", "warm": warm}
        for denial in DENIALS
        for ranks in RANKS.values()
        for warm in (False, True)
    ]


def sample() -> list[Cell]:
    """Return one cell of each row: who is denied, and whether it is warm, takes turns.

    Of the rows that differ in a number only, every third.
    """
    graded = [d for d in DENIALS if d.kind in ("descriptors", "threads")]
    left_out = {denial.id for index, denial in enumerate(graded) if index % 3}
    cells = [grid()[6 * index + index % 6] for index in range(len(DENIALS))]
    return [cell for cell in cells if cell["denial"] not in left_out]


def run(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """Run cells, several at a time, each beside the engine alone; return what became of both."""
    oracles = {(cell["denial"], cell["ranks"]): {**cell, "side": "alone", "warm": False}
               for cell in cells}  # fmt: skip
    every = [*oracles.values(), *cells]
    found: list[dict[str, Any]] = [{} for _ in every]

    def one(share: int) -> None:
        own = folder / f"runner{share}"
        own.mkdir()
        indices = range(share, len(every), RUNNERS)
        with subprocess.Popen(
            [sys.executable, str(HERE / "denied.py"), str(own)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            json.dump([every[index] for index in indices], process.stdin)
            process.stdin.close()
            for line in process.stdout:
                row = json.loads(line)
                found[indices[row["cell"]]] = row
                _keep({**every[indices[row["cell"]]], "start": row})
        assert process.returncode == 0

    with ThreadPoolExecutor(RUNNERS) as pool:
        list(pool.map(one, range(RUNNERS)))
    alone = dict(zip(oracles, found, strict=False))
    return [
        {"cell": cell, "alone": alone[cell["denial"], cell["ranks"]], "ours": ours}
        for cell, ours in zip(cells, found[len(oracles) :], strict=True)
    ]


def _keep(start: Mapping[str, Any]) -> None:
    if out := os.environ.get("WARMUP_DENIALS_OUT"):
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(start)}\n")


def is_up(start: Mapping[str, Any]) -> bool:
    return all(rank["up"] for rank in start["ranks"])


def worse(row: Mapping[str, Any]) -> str:
    """Return in what a cell is worse with us than alone, or an empty string."""
    alone, ours = row["alone"], row["ours"]
    hows = {rank["how"] for rank in ours["ranks"]}
    if is_up(alone) and not is_up(ours):
        return f"does not come up: {sorted(hows)}"
    if "hung" in hows and not any(rank["how"] == "hung" for rank in alone["ranks"]):
        return "hangs"
    if ours["seconds"] > alone["seconds"] + LONGER_S:
        return f"takes {ours['seconds']} s, alone {alone['seconds']} s"
    if is_up(ours) and len(hows) > 1:
        return f"ranks go different ways: {sorted(hows)}"
    return ""


def named(row: Mapping[str, Any]) -> str:
    cell = row["cell"]
    who = next(name for name, ranks in RANKS.items() if ranks == tuple(cell["ranks"]))
    return f"{cell['denial']}, {who}, {'warm' if cell['warm'] else 'cold'}"


def check(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """Hold cells against the oracle; return what became of them."""
    rows = run(cells, folder)
    found = {named(row): worse(row) for row in rows if worse(row)}
    assert not found, json.dumps(found, indent=1)
    return rows


@pytest.fixture
def denying() -> None:
    if reason := can_deny():
        pytest.skip(reason)


@pytest.mark.usefixtures("denying")
def test_never_worse_than_alone(tmp_path: Path) -> None:
    """A cell of each row. The engine alone comes up in most, else there would be nothing to see."""
    rows = check(sample(), tmp_path)
    assert sum(is_up(row["alone"]) for row in rows) > len(rows) / 2


@pytest.mark.soak
@pytest.mark.usefixtures("denying")
def test_never_worse_than_alone_in_all_cells(tmp_path: Path) -> None:
    rows = check(grid(), tmp_path)
    assert len(rows) >= 400  # what was promised


def test_a_cell_that_is_worse_is_found_out() -> None:
    up, down = {"up": True, "how": "alone"}, {"up": False, "how": "hung"}
    alone = {"ranks": [up, up], "seconds": 1.0}

    def told(*ranks: Mapping[str, Any], seconds: float = 1.0) -> str:
        return worse({"alone": alone, "ours": {"ranks": ranks, "seconds": seconds}})

    certified = {"up": True, "how": "certified"}
    assert not told(certified, certified)
    assert "does not come up" in told(certified, down)
    assert "takes" in told(certified, certified, seconds=30.0)
    assert "different ways" in told(certified, up)
