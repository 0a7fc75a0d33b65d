# SPDX-License-Identifier: Apache-2.0
"""What is reused, and what is not: SGLang's own tables, other warm-ups and configs of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.sglang import compat

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

EXTEND = {"SGLANG_FLASHINFER_AUTOTUNE_EXTEND": "1"}
LAYOUTS = [
    pytest.param({}, id="1"),
    pytest.param({"tp": 2, "has_draft": True, "has_rank_keys": True}, id="tp2 and all"),
    pytest.param({"tp": 4, "has_draft": True, "has_rank_keys": True}, id="tp4 and all"),
    pytest.param({"tp": 2, "pp": 2}, id="pp2xtp2"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_start_after_installation_is_warm(
    job: Callable[..., Any], layout: dict[str, Any]
) -> None:
    engine = job(**layout)
    alone = engine.start(plugin=False, env=EXTEND)
    theirs = engine.own_files()
    assert theirs
    assert sum(alone.timed) > 0

    first, second = engine.start(env=EXTEND), engine.start(env=EXTEND)

    assert first.timed == second.timed == [0] * len(first.ranks)
    for phase, report in enumerate(first.ranks[0]["reports"]):
        assert report["tasks"]["adopted"] > 0
        assert report["certificate"] == second.ranks[0]["reports"][phase]["certificate"]
    # Stages tune apart, and disagree about the ops that both have; they share our directory, so the
    # one that comes second may find the first one's winner there, which is as good.
    for rank, before in zip(first.ranks, alone.ranks, strict=True):
        assert rank["served"].keys() == before["served"].keys()
        winners = [other["served"] for other in (alone.ranks if "pp" in layout else [before])]
        for key, tactic in rank["served"].items():
            assert tactic in [found[key] for found in winners if key in found]
    assert engine.own_files() == theirs


def test_reuse_switched_off(job: Callable[..., Any]) -> None:
    """Every start tunes, agrees and leaves no file; SGLang alone leaves one per rank and start."""
    engine = job(tp=2, has_draft=True)
    off = {"SGLANG_FLASHINFER_AUTOTUNE_CACHE": "0"}
    engine.start()  # there is something to reuse
    before = sorted(path for path in engine.root.rglob("*") if path.is_file())

    starts = [engine.start(env=off) for _ in range(3)]

    assert sorted(path for path in engine.root.rglob("*") if path.is_file()) == before
    assert len({sum(start.timed) for start in starts}) == 1
    assert sum(starts[0].timed) > 0
    assert all(start.certificate for start in starts)
    for number in (1, 2):
        engine.start(env=off, plugin=False)
        assert len(engine.own_files()) == 4 * number  # of target and draft, of each rank


def served(start: Any) -> set[Any]:
    """Return the tactics that the first rank serves."""
    return {tactic for _, tactic in start.ranks[0]["served"].values()}


def test_the_default_wins_where_it_is_the_fastest(job: Callable[..., Any]) -> None:
    """It races, is stored and served: as SGLang's own context has it, in a release that does."""
    engine = job(tp=2, timing="sglang_on_ranks:default_first")
    alone = engine.start(plugin=False)

    (engine.root / "flashinfer").rename(engine.root / "elsewhere")
    cold, warm = engine.start(), engine.start()

    assert warm.timed == [0, 0]
    assert cold.certificate == warm.certificate
    for start in (cold, warm):
        assert served(start) == {-1}
    races = compat.RACES_DEFAULT[version("sglang")]
    assert served(alone) == {-1} if races else -1 not in served(alone)
    (table,) = engine.tables()
    stored = [v for k, v in json.loads(table.read_text()).items() if not k.startswith("_")]
    assert stored
    assert {entry[1] for entry in stored} == {-1}


def test_keys_that_hold_the_rank_are_warm(job: Callable[..., Any]) -> None:
    engine = job(tp=2, has_rank_keys=True)
    for _ in range(2):
        assert min(engine.start(plugin=False).timed) > 0  # SGLang alone, at every start
    (engine.root / "flashinfer").rename(engine.root / "elsewhere")

    cold, warm = engine.start(), engine.start()

    assert sum(cold.timed) > 0
    assert warm.timed == [0, 0]
    assert cold.certificate == warm.certificate


def test_the_draft_keeps_what_the_target_has(job: Callable[..., Any]) -> None:
    """The target's graphs are captured by then: also where the draft's table says otherwise."""
    engine = job(tp=2, has_draft=True)
    first = engine.start()
    tables = {json.dumps(_identity(path)["role"]): path for path in engine.tables()}
    draft, target = tables['"draft"'], tables['"target"']
    shared = _entries(target).keys() & _entries(draft).keys()
    assert shared
    _make_anew(draft, shared)

    again, third = engine.start(), engine.start()

    assert again.timed == third.timed == [0, 0]
    assert again.ranks[0]["served"] == first.ranks[0]["served"]
    assert again.disputed == third.disputed == set()
    assert {key: _entries(draft)[key] for key in shared} == {
        key: _entries(target)[key] for key in shared
    }


def _identity(table: Path) -> Any:
    return json.loads((table.parent / "identity.json").read_text())


def _entries(table: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads(table.read_text()).items() if not k.startswith("_")}


def _make_anew(table: Path, keys: Any) -> None:
    """Give a table another winner for each key, and a manifest that vouches for them."""
    import hashlib

    document = json.loads(table.read_text())
    for key in keys:
        document[key][1] = (document[key][1] + 1) % 3
    table.write_text(json.dumps(document))
    manifest = table.with_suffix("").with_suffix(".manifest.json")
    content = json.loads(manifest.read_text())
    assert len(content["table_sha256"]) == 64
    content["table_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))


def test_doubling_the_tokens_times_the_new_bucket_only(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    engine.start(tokens=64, env=EXTEND)

    large = engine.start(tokens=128, env=EXTEND)

    # Either rank may have taken all of it from the queue.
    extend = [label for rank in large.ranks for label, *_ in rank["reports"][1]["timeline"]]
    assert extend
    assert all(label.endswith(" @ 128") for label in extend)
    assert [rank["reports"][0]["tasks"]["tuned"] for rank in large.ranks] == [0, 0]
