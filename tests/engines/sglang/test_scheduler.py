# SPDX-License-Identifier: Apache-2.0
"""SGLang's own scheduler processes, from `load_plugins` to ready; see `sglang_scheduler.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_starts import installed
from sglang_launch import launch
from sglang_scheduler import OPT

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]


@pytest.mark.parametrize("tp", [1, 2])
def test_a_scheduler_starts_warm(job: Callable[..., Any], tp: int) -> None:
    engine = job(config=OPT)

    cold, warm = launch(engine, tp), launch(engine, tp)

    for said, receipts, log in (cold, warm):
        assert said == ["ready"] * tp, log[-4000:]
        for reports in receipts:
            assert [report["agreement"] for report in reports] == ["certified"]
            assert reports[0]["certificate"] == cold[1][0][0]["certificate"]
    assert sum(reports[0]["tactics_timed"] for reports in cold[1]) > 0
    assert [reports[0]["tactics_timed"] for reports in warm[1]] == [0] * tp
    (line,) = [line for line in warm[2].splitlines() if "warmup-plugin 0" in line]
    assert f"[{installed('sglang')}, {tp} rank(s)]" in line
    assert "0 tactics timed" in line


@pytest.mark.parametrize(
    ("env", "begun"),
    [({"WARMUP_PLUGIN_FLEET": "file:///nobody/has/this"}, ["1", "None"]), ({}, ["None"] * 2)],
    ids=["fleet", "no fleet"],
)
def test_rank_0_begins_the_fleets_process_with_the_loading(
    job: Callable[..., Any], env: dict[str, str], begun: list[str]
) -> None:
    """It waits by the time that SGLang warms up; the fleet that is not there only costs a line."""
    engine = job(config=OPT)

    said, receipts, log = launch(engine, 2, **env)

    assert said == ["ready"] * 2, log[-4000:]
    assert [(engine.root / f"out.json.{rank}.begun").read_text() for rank in range(2)] == begun
    states = [reports[0]["fleet"].get("state", "") for reports in receipts]
    assert states == (["failed", ""] if env else ["", ""])


def test_switched_off_it_starts_as_without_us(job: Callable[..., Any]) -> None:
    engine = job(config=OPT)

    said, receipts, log = launch(engine, 1, WARMUP_PLUGIN_MODE="off")

    assert said == ["ready"]
    assert receipts == [[]]
    assert "warmup-plugin 0" not in log
    assert engine.own_files()
