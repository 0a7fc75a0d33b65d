# SPDX-License-Identifier: Apache-2.0
"""A replay, bucket by bucket, gives what FlashInfer's own whole call gives: keys and winners.

One process lets FlashInfer tune; another, fresh one warms up with this package. Timings are the
simulated clock's, so both must find the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

CONTEXTS = (
    "plain",
    "v2",
    "buckets, up",
    "buckets, down",
    "own buckets, up",
    "v2 buckets, up",
    "graph replays",
)


@dataclass(frozen=True)
class Pair:
    """Both ways under one tuning context."""

    context: str
    whole: Mapping[str, Any]
    session: Mapping[str, Any]
    stored: Mapping[str, Any]


@pytest.fixture(scope="module", params=CONTEXTS)
def pair(request: pytest.FixtureRequest, make_children: Callable[[Path], Children]) -> Pair:
    tmp_path = request.getfixturevalue("tmp_path_factory").mktemp("replay")
    children = make_children(tmp_path)
    whole = children.one("on_replay:whole_call", context=request.param)
    whole = {**whole, "saved": winners(whole["saved"])}
    session = children.one("on_replay:in_session", context=request.param)
    return Pair(request.param, whole, session, children.entries)


def winners(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Without what FlashInfer 0.7.4 notes beside them: how it chose is in our manifest."""
    return {key: entry[:3] for key, entry in entries.items()}


def of(op: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key.startswith(f"({op!r}, ")}


@pytest.mark.parametrize(
    "op",
    [
        "hybrid", "pair", "staged1", "staged2", "cold", "graph", "grid", "static", "fast default",
        "routed", "hooked", "bare",
    ],
)  # fmt: skip
def test_keys_winners_and_policies_are_the_whole_calls(pair: Pair, op: str) -> None:
    """Of each kind of op: the same file keys, runner classes, tactics and measurement policies."""
    whole = of(op, pair.whole["saved"])
    assert whole
    assert of(op, pair.stored) == whole


def test_nothing_else_is_stored_and_nothing_else_timed(pair: Pair) -> None:
    assert pair.stored == pair.whole["saved"]
    report = pair.session["report"]
    assert report.tactics_timed == pair.whole["counts"]["profile_single_kernel"] > 0
    # Winners run once more at the batch that was asked for, where it is no bucket.
    assert report.inputs_synthesised >= pair.whole["counts"]["prepare_input_tensors"]
    assert report.agreement == "certified"


def test_every_call_is_served_as_after_the_whole_call(pair: Pair) -> None:
    """From the table, nothing from memory; at 100, 3000 and 10240 too, which are no buckets."""
    assert pair.session["served"] == pair.whole["served"]
    assert pair.session["held"] == {}
    if "buckets" not in pair.context:  # serving would have to open the same overrides
        served = pair.session["served"]
        assert all(tactic != -1 for kind in ("hybrid 100", "hybrid 3000", "hybrid 10240")
                   for _, tactic in served[kind])  # fmt: skip


def test_the_default_wins_only_where_it_races(pair: Pair) -> None:
    """FlashInfer times tactic -1 in v2 contexts only; the replay does as the recorded context."""
    wins = [tactic == -1 for _, tactic, _ in of("fast default", pair.stored).values()]
    assert wins == [pair.context.startswith("v2")] * len(wins)


def test_hybrid_keys_hold_mapped_batches(pair: Pair) -> None:
    """A batch that is no bucket is tuned as it is and stored where it will be looked up."""
    if pair.context in ("plain", "v2"):
        batches = {
            json.loads(key.split("((")[1].split(",")[0]) for key in of("hybrid", pair.stored)
        }
        assert {128, 3072, 16384} <= batches
        assert not {100, 3000, 10240} & batches


def test_the_engines_forward_is_stored_as_flashinfer_would(children: Children) -> None:
    """All ops of the embedded engine in one forward."""
    whole = children.one("on_replay:embedded_whole")
    children.one("on_replay:embedded_session")
    assert children.entries == winners(whole)
    assert len(whole) > 30


def test_one_context_at_a_time_and_no_process_group(children: Children) -> None:
    """While a tactic is timed one tuning context is open and FlashInfer's group is unset.

    Calls recorded under two kinds of context are replayed under their own kind.
    """
    one_tunes = {"WARMUP_PLUGIN_STRATEGY": "leader"}
    results = children.ranks("on_replay:watched", tp=2, env=one_tunes)
    for result in results:
        assert result["restored"]
        assert result["left open"] == (0, False)
    # (contexts open, no group, v2, a tactic other than the default)
    assert [seen for seen in results[0]["seen"] if seen[0]] == [
        (1, True, False, True),
        (1, True, True, False),
        (1, True, True, True),
    ]
    assert results[0]["report"].tasks["tuned"] == 8
