# SPDX-License-Identifier: Apache-2.0
"""SGLang's Ray mode: its actors load no plugins by themselves, and do as `docs/ray.md` says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sglang_launch import launch
from sglang_on_ray import SETUP
from sglang_scheduler import OPT

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.soak]
SCRIPT = Path(__file__).with_name("sglang_on_ray.py")
PAGE = Path(__file__).parents[3] / "docs" / "ray.md"


def test_actors_start_warm(job: Callable[..., Any]) -> None:
    engine = job(config=OPT)

    cold, warm = launch(engine, 2, script=SCRIPT), launch(engine, 2, script=SCRIPT)

    for said, receipts, log in (cold, warm):
        assert said == ["ready"] * 2, log[-4000:]
        for reports in receipts:
            assert [report["agreement"] for report in reports] == ["certified"]
    assert sum(reports[0]["tactics_timed"] for reports in cold[1]) > 0
    assert [reports[0]["tactics_timed"] for reports in warm[1]] == [0, 0]
    assert f'"worker_process_setup_hook": "{SETUP}"' in PAGE.read_text()


def test_without_it_they_start_as_without_us(job: Callable[..., Any]) -> None:
    """A release that loads plugins there by itself shows here: the page is to be changed then."""
    said, receipts, log = launch(job(config=OPT), 1, "--without-plugins", script=SCRIPT)

    assert said == ["ready"]
    assert receipts == [[]]
    assert "warmup-plugin 0" not in log
