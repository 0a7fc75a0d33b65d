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


def test_a_forward_that_fails_on_rank_1_ends_the_engine(job: Callable[..., Any]) -> None:
    # vLLM alone hangs here: it waits for rank 0's answer first, which waits for rank 1.
    engine = job()

    failed = launch(engine, PLANTED_FAULT="dummy_run@1", WARMUP_PLUGIN_GRACE_S="2")

    assert failed.code not in (0, None), failed.log[-4000:]
    assert "planted in dummy_run" in failed.log
