# SPDX-License-Identifier: Apache-2.0
"""What may be borrowed, from whom, and that nothing of theirs is touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from warmup_plugin.cache.borrowed import Borrowed
from warmup_plugin.cache.external import borrow
from warmup_plugin.cache.manifest import Manifest, TaskRecord, render_manifest
from warmup_plugin.cache.paths import manifest_name, table_name
from warmup_plugin.cache.stamps import BLOCKLIST
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.settings import Settings

STAMP = {"flashinfer_version": "0.7.2", "cuda_version": "13.0"}
SETTINGS = Settings()
OURS, THEIRS, OTHERS = "a" * 64, "b" * 64, "c" * 64


def _sibling(
    folder: Path, tasks: Mapping[str, tuple[str, ...]], entries: Mapping[str, Entry],
    switches: Mapping[str, str] | None = None, **stamp: str,
) -> Path:  # fmt: skip
    """Write another identity's table: task id -> its keys."""
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps({"model": "m", "switches": switches or {}}))
    body = render_table(Table({**STAMP, **stamp}, entries))
    records = {name: TaskRecord("op", (keys,), "tuned") for name, keys in tasks.items()}
    manifest = Manifest(identity=folder.name, tasks=records, complete=True)
    (folder / table_name(0, 0, 0)).write_bytes(body)
    vouching = replace(manifest, table_sha256=digest(body))
    (folder / manifest_name(0, 0, 0)).write_bytes(render_manifest(vouching))
    return folder


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sibling_answers_the_task_it_was_tuned_for(tmp_path: Path) -> None:
    _sibling(tmp_path / THEIRS, {"t1": ("A", "B")}, {"A": Entry("R", 3)})
    before = _contents(tmp_path)

    found = borrow([tmp_path / OURS], (), STAMP, SETTINGS)

    assert found.entries == {"A": Entry("R", 3)}
    assert found.answers("t1", ("A", "B"))
    assert not found.misleads("t1", ("A", "B"))
    assert found.misleads("t2", ("A",))  # the same key under another list of runners
    assert not found.answers("t2", ("A",))
    assert _contents(tmp_path) == before


def test_a_task_is_taken_from_one_sibling_only(tmp_path: Path) -> None:
    _sibling(tmp_path / THEIRS, {"t1": ("A", "B")}, {"A": Entry("R", 3)})
    _sibling(tmp_path / OTHERS, {"t1": ("A", "B")}, {"B": Entry("S", 1)})

    assert len(borrow([tmp_path / OURS], (), STAMP, SETTINGS).entries) == 1


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        pytest.param(THEIRS, {"cuda_version": "12.8"}, id="another environment"),
        pytest.param("not an identity", {}, id="another folder"),
        pytest.param(OURS, {}, id="our own"),
    ],
)
def test_not_borrowed(tmp_path: Path, name: str, stamp: dict[str, str]) -> None:
    _sibling(tmp_path / name, {"t1": ("A",)}, {"A": Entry("R", 3)}, None, **stamp)

    assert borrow([tmp_path / OURS], (), STAMP, SETTINGS).entries == {}


def test_an_engines_table_answers_any_task_and_comes_first(tmp_path: Path) -> None:
    _sibling(tmp_path / THEIRS, {"t1": ("A",)}, {"A": Entry("R", 3)})
    engine = tmp_path / "autotune_configs_dp0_rank0.json"
    engine.write_bytes(render_table(Table(STAMP, {"A": Entry("R", 5)})))

    found = borrow([tmp_path / OURS], [engine], STAMP, SETTINGS)

    assert found.entries == {"A": Entry("R", 5)}
    assert found.answers("t1", ("A",))
    assert found.answers("t2", ("A",))


def _managed(root: Path, rows: list[Any], **stamp: str) -> Path:
    """Write FlashInfer's managed store."""
    (root / "entries").mkdir(parents=True)
    (root / "manifest.json").write_text(json.dumps({**STAMP, "cache_schema": "v2", **stamp}))
    for number, row in enumerate(rows):
        (root / "entries" / f"{number}.json").write_text(json.dumps(row))
    return root


def test_a_managed_store_is_read_entry_by_entry(tmp_path: Path) -> None:
    rows = [
        {"key": "A", "runner": "R", "tactic": [1, 2], "key_fields": []},
        {"key": "B", "runner": "S", "tactic": 0, "profiling_policy": ["l2", "cold"]},
        {"key": "C", "tactic": 0},
        {"key": "D", "runner": "R", "tactic": {"tile": 1}},
        {"key": "_E", "runner": "R", "tactic": 1},
        {"key": "('__protocol__', 'moe_ep', 'k')", "runner": "moe_ep", "tactic": {"knob": 7}},
        {"key": "('__protocol__', 'moe_ep', 'l')", "runner": "moe_ep", "tactic": 7},
        "no entry at all",
    ]
    store = _managed(tmp_path / "v2" / "env", rows)

    found = borrow([], [store, tmp_path / "absent"], STAMP, SETTINGS)

    assert found.entries == {"A": Entry("R", (1, 2)), "B": Entry("S", 0, ("l2", "cold"))}


def test_a_managed_store_of_another_environment_is_not_read(tmp_path: Path) -> None:
    row = {"key": "A", "runner": "R", "tactic": 1}
    store = _managed(tmp_path / "v2" / "env", [row], cuda_version="12.8")

    assert borrow([], [store], STAMP, SETTINGS).entries == {}


def test_where_two_keys_answer_the_first_read_wins() -> None:
    found = Borrowed()
    found.take_engine(Table(STAMP, {"B": Entry("S", 1)}))
    found.take_engine(Table(STAMP, {"A": Entry("R", 3)}))

    assert found.pick("t1", ("A", "B")) == "B"
    assert not found.pick("t1", ("A",))


def test_what_is_kept_comes_first(tmp_path: Path) -> None:
    _sibling(tmp_path / THEIRS, {"t1": ("A", "B")}, {"A": Entry("R", 3)})

    found = borrow([tmp_path / OURS], (), STAMP, SETTINGS, kept={"B": Entry("S", 1)})

    assert found.entries == {"B": Entry("S", 1)}
    assert found.answers("t1", ("A", "B"))


LIST, OTHER_LIST = {BLOCKLIST: "1" * 64}, {BLOCKLIST: "2" * 64}
TIMER = {"FLASHINFER_AUTOTUNE_TIMER": "cupti"}


@pytest.mark.parametrize(
    ("theirs", "ours", "is_taken"),
    [
        pytest.param({}, {}, True, id="none"),
        pytest.param(TIMER, TIMER, True, id="equal"),
        pytest.param(TIMER, {}, False, id="theirs alone"),
        pytest.param({}, TIMER, False, id="ours alone"),
        pytest.param({}, LIST, True, id="blocked here: every rank asks the list of each"),
        pytest.param(LIST, {}, False, id="blocked there: the best may have been"),
        pytest.param(LIST, LIST, True, id="the same list"),
        pytest.param(LIST, OTHER_LIST, False, id="another list"),
    ],
)
def test_a_sibling_tuned_among_other_candidates_answers_nothing(
    tmp_path: Path, theirs: dict[str, str], ours: dict[str, str], *, is_taken: bool
) -> None:
    _sibling(tmp_path / THEIRS, {"t1": ("A",)}, {"A": Entry("R", 3)}, theirs)
    found = borrow([tmp_path / OURS], (), STAMP, SETTINGS, switches=ours)
    assert bool(found.entries) == is_taken


def test_a_sibling_without_an_identity_answers_nothing(tmp_path: Path) -> None:
    (_sibling(tmp_path / THEIRS, {"t1": ("A",)}, {"A": Entry("R", 3)}) / "identity.json").unlink()
    assert borrow([tmp_path / OURS], (), STAMP, SETTINGS).entries == {}


@pytest.mark.parametrize(
    ("ours", "is_taken"),
    [({}, True), (LIST, True), (TIMER, True), ({"FLASHINFER_NVFP4_4OVER6": "1"}, False)],
    ids=["none", "list", "timer", "4over6"],
)
def test_an_engines_table_is_taken_where_no_switch_takes_candidates_away(
    tmp_path: Path, ours: dict[str, str], *, is_taken: bool
) -> None:
    """Nobody knows under which one it was tuned."""
    engine = tmp_path / "engine.json"
    engine.write_bytes(render_table(Table(STAMP, {"A": Entry("R", 3)})))
    found = borrow([tmp_path / OURS], [engine], STAMP, SETTINGS, switches=ours)
    assert bool(found.entries) == is_taken
