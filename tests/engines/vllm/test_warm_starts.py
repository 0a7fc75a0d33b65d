# SPDX-License-Identifier: Apache-2.0
"""Cold, then warm in new processes: vLLM's own warm-up code, real groups, the real tuner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_starts import installed
from vllm_on_ranks import MIXTRAL

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

LAYOUTS = [
    pytest.param({}, id="1"),
    pytest.param({"tp": 2}, id="tp2"),
    pytest.param({"tp": 4}, id="tp4"),
    pytest.param({"tp": 2, "pp": 2}, id="pp2xtp2"),
    pytest.param(
        {"dp": 2, "config": MIXTRAL, "extra": {"enable_expert_parallel": True}}, id="dp2-experts"
    ),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_second_start_is_warm(job: Callable[..., Any], layout: dict[str, Any]) -> None:
    engine = job(**layout)

    cold, warm = engine.start(), engine.start()

    assert all(rank["is_patched"] for rank in cold.ranks)
    assert sum(cold.timed) > 0
    assert warm.timed == [0] * len(warm.ranks)
    assert cold.certificate == warm.certificate
    assert cold.disputed == warm.disputed == set()
    assert cold.ranks[0]["served"] == warm.ranks[0]["served"]
    for start in (cold, warm):
        (line,) = start.lines
        assert line.startswith("warmup-plugin ")
        assert f"[{installed('vllm')}, " in line
        assert start.certificate[:12] in line
        # vLLM's own line names the file that it would have used; here it has none.
        assert not [text for rank in start.ranks for text in rank["lines"] if "cache file" in text]
    assert not engine.own_files()
