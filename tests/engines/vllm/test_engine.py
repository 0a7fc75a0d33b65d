# SPDX-License-Identifier: Apache-2.0
"""The whole engine: `LLM(...)`, its EngineCore, its executor, two spawned workers.

Without us and with us: the rows of `fault_rows.ENGINE_ROWS`, among which vLLM alone hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fault_rows import ENGINE_ROWS, EngineRow
from fault_table import defaults
from vllm_jobs import launch

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

#: vLLM's own way to leave plugins out.
SIDES = {"alone": {"VLLM_PLUGINS": "another"}, "ours": {}}
BOUND = {"WARMUP_PLUGIN_GRACE_S": "2", "WARMUP_PLUGIN_SILENCE_S": "5"}
#: Over once the fault is in the log, an engine that ends is gone in seconds; else it is a hang.
HANG_S = 45.0
#: Those of ours that vLLM alone answers with a hang, and with a clean end.
QUICK = ("none", "rank 1's forward raises", "SIGKILL")


def test_a_whole_engine_starts_warm(job: Callable[..., Any]) -> None:
    engine = job()

    cold, warm = launch(engine), launch(engine)

    for start in (cold, warm):
        assert start.code == 0, start.log[-4000:]
        assert [rank["is_patched"] for rank in start.ranks] == [True, True]
        assert start.ranks[0]["served"] == start.ranks[1]["served"]
        assert len(start.lines) == 1, start.lines
    reports = [[rank["report"] for rank in start.ranks] for start in (cold, warm)]
    assert [report["tactics_timed"] for report in reports[1]] == [0, 0]
    assert sum(report["tactics_timed"] for report in reports[0]) > 0
    (certificate,) = {report["certificate"] for start in reports for report in start}
    assert len(certificate) == 64
    assert certificate[:12] in warm.lines[0]
    assert "0 tactics timed" in warm.lines[0]


@pytest.mark.parametrize(
    ("row", "side"),
    [
        pytest.param(
            row,
            side,
            id=f"{row.fault}, {side}",
            marks=[] if side == "ours" and row.fault.startswith(QUICK) else pytest.mark.soak,
        )
        for row in ENGINE_ROWS[1:]
        for side in SIDES
    ],
)
def test_row(job: Callable[..., Any], row: EngineRow, side: str) -> None:
    engine = job()
    theirs = _empty_list_for_rank_1(engine) if row.planted == "[]" else None
    fault = {"PLANTED_FAULT": row.planted} if theirs is None else {}

    start = launch(engine, said=row.said, then_s=HANG_S, **fault, **BOUND, **SIDES[side])

    expected, _, more = getattr(row, side).partition(", ")
    assert _verdict(start) == expected, start.log[-4000:]
    assert expected == "up" or row.said in start.log
    if theirs is not None:
        assert (theirs.read_text() == "[]") == (side == "ours" or expected == "hang")
    if expected == "up":
        assert start.ranks[0]["served"] == start.ranks[1]["served"]
        agreements = [rank["report"] and rank["report"]["agreement"] for rank in start.ranks]
        assert agreements == (["certified"] if side == "ours" else [None]) * 2
    if more == "that task on its default":
        assert defaults(start)


def _empty_list_for_rank_1(engine: Any) -> Any:
    """Let vLLM write its files, then make rank 1's no table."""
    alone = launch(engine, **SIDES["alone"])
    assert alone.code == 0, alone.log[-4000:]
    (theirs,) = engine.root.glob("flashinfer_autotune_cache/**/*rank1.json")
    theirs.write_text("[]")
    return theirs


def _verdict(start: Any) -> str:
    """Return in a word or two what a launch came to."""
    if start.code is None:
        return "hang"
    return "up" if start.code == 0 else f"exit {start.code}"
