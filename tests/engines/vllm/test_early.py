# SPDX-License-Identifier: Apache-2.0
"""What begins as vLLM's worker begins to load its model: the process that will ask a fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

FLEET = {"WARMUP_PLUGIN_FLEET": "file:///nobody/has/this"}


@pytest.mark.parametrize(
    ("env", "is_watched", "begun"),
    [
        (FLEET, True, [1, None]),
        ({}, False, [None, None]),
        ({**FLEET, "WARMUP_PLUGIN_MODE": "off"}, False, [None, None]),
    ],
    ids=["fleet", "no fleet", "off"],
)
def test_rank_0_begins_it_with_the_loading(
    job: Callable[..., Any],
    env: dict[str, str],
    is_watched: bool,  # noqa: FBT001  # a table
    begun: list[int | None],
) -> None:
    """And vLLM's own function runs as ever; without a fleet it is not touched."""
    found = job(tp=2).start(script="loading", env=env).ranks
    assert [rank["is_watched"] for rank in found] == [is_watched] * 2
    assert [rank["begun"] for rank in found] == begun
    assert all("_maybe_get_memory_pool_context" in rank["failed"] for rank in found)
