# SPDX-License-Identifier: Apache-2.0
"""What crosses ranks is JSON, short, and comes out as it went in."""

from __future__ import annotations

import json

import pytest

from warmup_plugin.cache.table import Entry
from warmup_plugin.cache.task_result import Result
from warmup_plugin.planning.codec import (
    pack_items,
    pack_results,
    packed,
    unpack_items,
    unpack_results,
    unpacked,
)
from warmup_plugin.planning.inventory import Item

IDS = [f"{number:032x}" for number in range(300)]
ITEMS = [
    Item(name, "op", (f"('op', 'A', {name})", f"('op', 'B', {name})"), "missing", "", "", "8x16")
    for name in IDS
]
ITEMS[7:7] = [Item(IDS[0][::-1], "op", ("k",), "missing", bucket_id=IDS[7], met=3)]
RESULTS = [
    Result(IDS[0], "tuned", 0, Entry("A", 3, ("hot", 1)), ms=0.5, default_ms=1.0, rank=2, host="h"),
    Result(IDS[1], "tuned", 1, Entry("B", (1, ("x", None), True), None), ms=0.25, at=1.7e9),
    Result(IDS[2], "default", reason="out of memory", samples=10, candidates=0, gpu="g"),
    Result(IDS[3], "tuned", 0, Entry("A", -1, ("hot", 1)), reason="the default", seconds=12.5),
]


@pytest.mark.parametrize("value", [{}, [], {"shared": [[[0, 1], IDS]]}, ["\u00e4", None, 1.5]])
def test_values(value: object) -> None:
    body = packed(value)
    assert unpacked(body) == value
    json.loads(body.decode("ascii"))


@pytest.mark.parametrize("items", [[], ITEMS[:1], ITEMS])
def test_inventories(items: list[Item]) -> None:
    """A fifth of their length or less: file keys repeat themselves."""
    body = pack_items(items)
    assert unpack_items(body) == items
    json.loads(body.decode("ascii"))
    if len(items) > 1:
        assert len(body) < len(json.dumps(items)) / 5


def test_results() -> None:
    """By their place in the plan; those of no queue are left out."""
    order = IDS[::-1]
    places = {task: place for place, task in enumerate(order)}
    body = pack_results([*RESULTS, Result("own", "tuned")], places)
    assert unpack_results(body, order) == RESULTS
    json.loads(body.decode("ascii"))


def test_times_are_told_as_precisely_as_they_are_measured() -> None:
    (found,) = unpack_results(
        pack_results([Result("t", "default", ms=0.123456789)], {"t": 0}), ["t"]
    )
    assert found.ms == pytest.approx(0.123456789, rel=1e-3)
