# SPDX-License-Identifier: Apache-2.0
"""A live rank of vLLM that lacks something, or hands in what it should not: `live_ranks.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live_ranks import BEGIN, PAGES, Row, cases, check, page

pytestmark = pytest.mark.engine


@pytest.mark.multiprocess
@pytest.mark.parametrize(("row", "side"), cases("vllm"))
def test_row(job: Callable[..., Any], row: Row, side: str) -> None:
    check(row, side, job, "vllm")


def test_the_page_has_these_rows() -> None:
    found = (PAGES / "vllm.md").read_text(encoding="utf-8")
    assert BEGIN in found
    assert found == page("vllm", "vLLM"), "run: python tests/engines/live_ranks.py"
