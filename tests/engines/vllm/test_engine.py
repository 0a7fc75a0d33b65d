# SPDX-License-Identifier: Apache-2.0
"""The whole engine: `LLM(...)`, its EngineCore, its executor, two spawned workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vllm_jobs import launch

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]


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
    assert reports[0][0]["tactics_timed"] > 0
    (certificate,) = {report["certificate"] for start in reports for report in start}
    assert len(certificate) == 64
    assert certificate[:12] in warm.lines[0]
    assert "0 tactics timed" in warm.lines[0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        # vLLM alone hangs: it waits for rank 0's answer first, which waits for rank 1.
        pytest.param("dummy_run@1", "planted in dummy_run", id="rank 1's forward raises"),
        pytest.param(
            "dummy_run@0",
            "planted in dummy_run",
            id="rank 0's forward raises",
            marks=pytest.mark.soak,
        ),
        pytest.param("kill@1", "died unexpectedly", id="SIGKILL of rank 1 while tuning"),
    ],
)
def test_a_rank_that_fails_ends_the_engine(job: Callable[..., Any], fault: str, said: str) -> None:
    engine = job()
    bound = {"WARMUP_PLUGIN_GRACE_S": "2", "WARMUP_PLUGIN_SILENCE_S": "5"}

    failed = launch(engine, limit_s=120.0, PLANTED_FAULT=fault, **bound)

    assert failed.code not in (0, None), failed.log[-4000:]
    assert said in failed.log


@pytest.mark.soak
def test_a_tactic_that_raises_on_rank_1(job: Callable[..., Any]) -> None:
    engine = job()

    start = launch(engine, PLANTED_FAULT="tactic@1")

    assert start.code == 0, start.log[-4000:]
    assert start.ranks[0]["served"] == start.ranks[1]["served"]
    assert [rank["report"]["agreement"] for rank in start.ranks] == ["certified"] * 2


@pytest.mark.soak
def test_vllms_file_of_rank_1_is_no_table(job: Callable[..., Any]) -> None:
    # vLLM alone hangs at every start.
    engine = job()
    alone = launch(engine, WARMUP_PLUGIN_MODE="off")
    assert alone.code == 0, alone.log[-4000:]
    (theirs,) = engine.root.glob("flashinfer_autotune_cache/**/*rank1.json")
    theirs.write_text("[]")

    start = launch(engine)

    assert start.code == 0, start.log[-4000:]
    assert start.ranks[0]["served"] == start.ranks[1]["served"]
    assert [rank["report"]["agreement"] for rank in start.ranks] == ["certified"] * 2
    assert theirs.read_text() == "[]"
