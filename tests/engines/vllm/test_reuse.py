# SPDX-License-Identifier: Apache-2.0
"""What others have tuned is not tuned again: vLLM's own tables, and other configs of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

LAYOUTS = [
    pytest.param({}, id="1"),
    pytest.param({"tp": 2}, id="tp2"),
    pytest.param({"tp": 4}, id="tp4"),
    pytest.param({"tp": 2, "pp": 2}, id="pp2xtp2"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_start_after_installation_is_warm(
    job: Callable[..., Any], layout: dict[str, Any]
) -> None:
    engine = job(**layout)
    alone = engine.start(plugin=False)
    theirs = engine.own_files()
    assert theirs
    assert sum(alone.timed) > 0

    first, second = engine.start(), engine.start()

    assert first.timed == second.timed == [0] * len(first.ranks)
    assert first.certificate == second.certificate
    # vLLM lets its pipeline stages choose differently; with us all serve what the first has chosen.
    stage = [rank for rank in range(len(alone.ranks)) if alone.ranks[rank]["stage"] == 0]
    for rank in stage:
        assert first.ranks[rank]["served"] == alone.ranks[rank]["served"]
    assert all(rank["report"]["tasks"]["adopted"] > 0 for rank in first.ranks)
    assert engine.own_files() == theirs
    without_us = engine.start(plugin=False)
    assert without_us.timed == [0] * len(alone.ranks)
    assert engine.own_files() == theirs


def test_another_environments_tables_are_not_adopted(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    engine.start(plugin=False)
    for path in engine.own_files():
        text = Path(path).read_text()
        spoiled = text.replace('"flashinfer_version": "0.', '"flashinfer_version": "0.1')
        assert spoiled != text
        Path(path).write_text(spoiled)

    first = engine.start()

    assert first.timed[0] > 0
    assert all("adopted" not in rank["report"]["tasks"] for rank in first.ranks)


def test_doubling_the_tokens_times_the_new_bucket_only(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    small = engine.start(tokens=64)
    (table,) = engine.tables()
    before = table.read_bytes()

    large = engine.start(tokens=128)

    # Either rank may have taken all of it from the queue.
    new = [label for rank in large.ranks for label, *_ in rank["report"]["timeline"]]
    assert new
    assert all(label.endswith(" @ 128") for label in new)
    tasks = large.ranks[0]["report"]["tasks"]
    first = small.ranks[0]["report"]["tasks"]
    assert tasks["adopted"] == first["tuned"] + first["received"]
    assert sum(rank["report"]["tasks"]["tuned"] for rank in large.ranks) == len(new)
    assert table.read_bytes() == before
    assert len(engine.tables()) == 2
    again = engine.start(tokens=128)
    assert again.timed == [0, 0]
    assert again.certificate == large.certificate
