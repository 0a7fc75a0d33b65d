# SPDX-License-Identifier: Apache-2.0
"""Our figures on SGLang's own ``/metrics``: its app, its choice of a folder, its schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from metrics_page import LEFT_ALONE, POD, check_left_alone, check_start
from sglang_launch import launch
from sglang_scheduler import OPT

from warmup_plugin.engines.sglang import compat

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]


def test_a_cold_and_a_warm_start_are_shown(job: Callable[..., Any]) -> None:
    """With --enable-metrics and nothing else set, while the schedulers live."""
    engine = job(config=OPT)

    pages = []
    for _ in range(2):
        said, _, log = launch(engine, 2, "--enable-metrics", POD_NAME=POD)
        assert said == ["ready"] * 2, log[-4000:]
        pages.append((engine.root / "out.json.page").read_text())

    for page, is_warm in zip(pages, (False, True), strict=True):
        check_start(page, "sglang", compat.TESTED[0], is_warm=is_warm, ranks=2)


HOOKS = {
    "another plugin's hook": {"script": "with_another_plugin"},
    "a hook that failed": {"script": "without_a_hook"},
}


@pytest.mark.parametrize(
    "start", [*LEFT_ALONE.values(), *HOOKS.values()], ids=[*LEFT_ALONE, *HOOKS]
)
def test_a_start_that_was_left_alone_is_told_of(
    job: Callable[..., Any], tmp_path: Path, start: dict[str, Any]
) -> None:
    """In the file: an alert has something to go by."""
    check_left_alone(job(), "sglang", tmp_path, **start)
