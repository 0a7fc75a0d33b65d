# SPDX-License-Identifier: Apache-2.0
"""The union of tables: one winner per task, whoever wrote what in which order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable, Source
from warmup_plugin.cache.manifest import (
    Manifest,
    Outcome,
    TaskRecord,
    parse_manifest,
    render_manifest,
)
from warmup_plugin.cache.merge import give_way, less, merge
from warmup_plugin.cache.table import Entry, Table

STAMP = {"flashinfer_version": "0.7.2.post1", "gpu": "NVIDIA H200"}
FIRST, SECOND, THIRD = (0, 0, 0), (0, 0, 1), (1, 0, 0)


def task(*keys: str, outcome: Outcome = "tuned") -> TaskRecord:
    """A task with one list of candidate keys."""
    return TaskRecord(op="op", keys=(keys,), outcome=outcome)


def part(
    entries: Mapping[str, int],
    tasks: Mapping[str, TaskRecord] | None,
    generation: int = 1,
    source: Source = FIRST,
    **manifest: Any,
) -> CachedTable:
    """A table of tactics by key; without `tasks`, without a manifest."""
    table = Table(STAMP, {key: Entry(key[0], tactic) for key, tactic in entries.items()})
    if tasks is None:
        return CachedTable(table, None, source)
    found = Manifest(identity="i", tasks=tasks, generation=generation, **manifest)
    return CachedTable(table, found, source)


def union(*parts: CachedTable) -> dict[str, Any]:
    """The merged tactics by key; checked to be the same for every order of the parts."""
    merged = [merge(order) for order in itertools.permutations(parts)]
    assert all(other == merged[0] for other in merged[1:])
    return {key: entry.tactic for key, entry in merged[0].table.entries.items()}


T1 = {"t1": task("A1", "B1")}
T2 = {"t2": task("A2", "B2")}


def test_nothing() -> None:
    """No parts make an empty table."""
    merged = merge([])
    assert (merged.table, merged.manifest, merged.conflicts) == (Table({}, {}), None, 0)


def test_one_part_is_taken_whole() -> None:
    """Table and manifest as they are, tasks not decoded."""
    only = part({"A1": 1}, T1)
    assert only.manifest is not None
    read = parse_manifest(render_manifest(only.manifest), limit=1 << 20)
    assert isinstance(read, Manifest)
    merged = merge([CachedTable(only.table, read, FIRST)])
    assert merged.table is only.table
    assert merged.manifest is read
    assert read.tasks._records is None  # type: ignore[attr-defined]


def test_disjoint_tasks_add_up() -> None:
    """Pipeline stages write tables of their own tasks."""
    one, two = part({"A1": 1}, T1), part({"B2": 2}, T2, source=SECOND)
    assert union(one, two) == {"A1": 1, "B2": 2}
    merged = merge([one, two])
    assert merged.conflicts == 0
    assert merged.manifest is not None
    assert dict(merged.manifest.tasks) == T1 | T2


def test_higher_generation_wins() -> None:
    """Wherever it lies."""
    old, new = part({"A1": 1}, T1, 1, FIRST), part({"A1": 2}, T1, 2, THIRD)
    assert union(old, new) == {"A1": 2}
    assert merge([old, new]).conflicts == 1


def test_then_the_lowest_source_wins() -> None:
    """Of one generation, by (tp, pp, dp): all readers choose alike."""
    parts = [part({"A1": i}, T1, 5, source) for i, source in enumerate((THIRD, SECOND, FIRST))]
    assert union(*parts) == {"A1": 2}
    assert merge(parts).conflicts == 2


def test_how_a_winner_was_chosen_is_no_conflict() -> None:
    """Two ranks have timed it, as FlashInfer 0.7.4 notes beside it: one answer, the first's."""
    parts = [part({"A1": 1}, T1, source=source) for source in (FIRST, SECOND)]
    noted = [
        replace(each, table=Table(STAMP, {"A1": Entry("A", 1, ("l2",), f'{{"time_ms":{ms}}}')}))
        for each, ms in zip(parts, (1, 2), strict=True)
    ]
    merged = merge(noted)
    assert merged.conflicts == 0
    assert merged.table.entries["A1"].more == '{"time_ms":1}'
    assert give_way(noted[0], noted[1].table.entries) is noted[0]


def test_losing_keys_go_with_their_winner() -> None:
    """Two parts chose another runner for one task: kept both, the first listed would be served."""
    old, new = part({"A1": 1}, T1, 1), part({"B1": 2}, T1, 2, SECOND)
    assert union(old, new) == {"B1": 2}
    assert merge([old, new]).conflicts == 1


def test_twins_go_together() -> None:
    """All key lists of a task follow its one winner."""
    twins = {"t": TaskRecord(op="op", keys=(("A1", "B1"), ("A2", "B2")), outcome="tuned")}
    old, new = part({"A1": 1, "A2": 1}, twins, 1), part({"B1": 2, "B2": 2}, twins, 2, SECOND)
    assert union(old, new) == {"B1": 2, "B2": 2}


def test_a_newer_default_displaces_a_winner() -> None:
    """A task that has no winner any more has no entry any more."""
    old = part({"A1": 1, "A2": 2}, T1 | T2, 1)
    new = part({}, {"t1": task("A1", "B1", outcome="default")}, 2, SECOND)
    assert union(old, new) == {"A2": 2}
    merged = merge([old, new])
    assert merged.manifest is not None
    assert merged.manifest.known_defaults == ("t1",)


def test_an_older_default_does_not() -> None:
    """Nor is that a conflict: it says nothing about a tactic."""
    old = part({}, {"t1": task("A1", "B1", outcome="default")}, 1)
    new = part({"A1": 1}, T1, 2, SECOND)
    assert union(old, new) == {"A1": 1}
    assert merge([old, new]).conflicts == 0


def test_agreeing_parts_are_no_conflict() -> None:
    """Every node wrote what the leader shared; the tasks need not even be looked at."""
    parts = [part({"A1": 1}, T1, 3, source) for source in (FIRST, SECOND, THIRD)]
    assert union(*parts) == {"A1": 1}
    merged = merge(parts)
    assert merged.conflicts == 0
    assert merged.manifest is parts[0].manifest


def test_equal_entries_with_other_defaults_are_not_the_same() -> None:
    """One part knows of a task without a winner that the other has never met."""
    one = part({"A1": 1}, T1, 3)
    two = part({"A1": 1}, T1 | {"t2": task("A2", outcome="default")}, 3, SECOND)
    merged = merge([one, two])
    assert merged.manifest is not None
    assert merged.manifest.known_defaults == ("t2",)
    assert merged.conflicts == 0


def test_loose_entries_fill_gaps() -> None:
    """Without a manifest, an entry is kept apart by name, and displaces nothing."""
    vouched = part({"A1": 1}, T1 | T2, 1, THIRD)
    loose = part({"A1": 9, "B1": 9, "A2": 9, "C3": 3}, None, source=FIRST)
    assert union(vouched, loose) == {"A1": 1, "C3": 3}
    merged = merge([vouched, loose])
    assert merged.unverified == {"C3"}
    assert merged.conflicts == 3
    assert merged.manifest is not None
    assert merged.manifest.loose == ("C3",)


def test_only_loose_entries() -> None:
    """The lowest source wins, key by key."""
    one, two = part({"A1": 1, "A2": 1}, None), part({"A1": 2, "A3": 2}, None, source=SECOND)
    assert union(one, two) == {"A1": 1, "A2": 1, "A3": 2}
    merged = merge([one, two])
    assert merged.manifest is None
    assert merged.unverified == {"A1", "A2", "A3"}
    assert merged.conflicts == 1


def test_loose_entries_stay_loose() -> None:
    """Published once in a table of ours, they are vouched for by nobody still."""
    only = part({"A1": 1, "C3": 3}, T1, loose=("C3",))
    assert merge([only]).unverified == {"C3"}
    vouching = part({"C3": 4}, {"t3": task("C3")}, source=SECOND)
    assert union(only, vouching) == {"A1": 1, "C3": 4}
    assert merge([only, vouching]).unverified == frozenset()


def test_vouched_entries_outside_any_task_are_kept() -> None:
    """Before loose ones, after those of tasks."""
    bare = part({"C3": 3, "B1": 3}, {}, 9)
    tasks = part({"A1": 1}, T1, 1, SECOND)
    loose = part({"C3": 4}, None, source=THIRD)
    assert union(bare, tasks, loose) == {"A1": 1, "C3": 3}
    assert merge([bare, tasks, loose]).unverified == frozenset()


def test_the_header_is_the_newest() -> None:
    """What the last survey found out; the generation is the highest."""
    old = part({"A1": 1}, T1, 1, complete=True, inventory="old", engine_version="1")
    new = part({"A2": 2}, T2, 4, SECOND, complete=False, inventory="new", engine_version="2")
    manifest = merge([old, new]).manifest
    assert manifest is not None
    assert (manifest.generation, manifest.inventory, manifest.complete) == (4, "new", False)
    assert manifest.engine_version == "2"
    assert manifest.table_sha256 == ""


def test_stamps_and_records_add_up() -> None:
    """A field that one part does not know comes from another; records by namespace."""
    one = CachedTable(
        Table({"gpu": "unknown", "a": "1"}, {}, {"n": {"x": 1}}), part({}, {}, 2).manifest, FIRST
    )
    two = CachedTable(
        Table({"gpu": "H", "b": "2"}, {"k": Entry("R", 1)}, {"n": {"x": 2}, "m": {}}),
        part({}, {}, 1).manifest,
        SECOND,
    )
    table = merge([two, one]).table
    assert table.stamp == {"gpu": "H", "a": "1", "b": "2"}
    assert table.records == {"n": {"x": 1}, "m": {}}


def test_what_is_no_good_goes_with_its_task() -> None:
    """The very entries, and no other rank's newer winner under the same key."""
    one = part({"A1": 1, "A2": 2}, {**T1, **T2}, loose=("A3",))
    left = less(one, {"A1": Entry("A", 1), "A2": Entry("A", 3), "A9": Entry("A", 9)})
    assert left.manifest is not None
    assert {key: entry.tactic for key, entry in left.table.entries.items()} == {"A2": 2}
    assert list(left.manifest.tasks) == ["t2"]
    assert less(one, {"A2": Entry("A", 3)}) is one


@pytest.mark.parametrize("number", [2, 3, 4])
def test_any_order_gives_one_union(number: int) -> None:
    """And merging the union with its parts again changes nothing."""
    tasks = {"t1": task("A1", "B1"), "t2": task("A2", "B2"), "t3": task("A3", outcome="default")}
    parts = [
        part({f"{'AB'[i % 2]}1": i, f"{'BA'[i % 2]}2": i}, tasks, i // 2, (i % 2, i, 0))
        for i in range(number)
    ] + [part({"A1": 7, "Z": 7}, None, source=(9, 9, 9))]
    union(*parts)
    merged = merge(parts)
    again = merge([CachedTable(merged.table, merged.manifest, (0, 0, 0)), *parts])
    assert again.table == merged.table
    assert again.unverified == merged.unverified


@pytest.mark.parametrize(
    ("kept", "entries", "tasks"),
    [
        pytest.param({}, {"A1": 1, "B2": 2}, {"t1", "t2"}, id="nothing kept"),
        pytest.param({"A1": 1}, {"A1": 1, "B2": 2}, {"t1", "t2"}, id="the same"),
        pytest.param({"A1": 7}, {"B2": 2}, {"t2"}, id="another tactic"),
        pytest.param({"B1": 7}, {"B2": 2}, {"t2"}, id="another runner"),
        pytest.param({"A9": 7}, {"A1": 1, "B2": 2}, {"t1", "t2"}, id="of no task here"),
        pytest.param({"A3": 7}, {"A1": 1, "B2": 2}, {"t1", "t2"}, id="a default here"),
    ],
)
def test_a_table_gives_way_to_what_is_kept(
    kept: dict[str, int], entries: dict[str, int], tasks: set[str]
) -> None:
    """Task by task, so that what is kept is the one winner."""
    defaults = {"t3": task("A3", outcome="default")} if "A3" in kept else {}
    before = part({"A1": 1, "B2": 2}, {**T1, **T2, **defaults}, complete=True)
    held = {key: Entry(key[0], tactic) for key, tactic in kept.items()}

    found = give_way(before, held)

    assert {key: entry.tactic for key, entry in found.table.entries.items()} == entries
    assert found.manifest is not None
    assert set(found.manifest.tasks) == tasks
    is_same = tasks == {"t1", "t2"} and not defaults
    assert (found is before) == found.manifest.complete == is_same


def test_a_table_without_a_manifest_gives_way_by_key() -> None:
    before = part({"A1": 1, "B2": 2}, None)

    found = give_way(before, {"A1": Entry("A", 7)})

    assert set(found.table.entries) == {"B2"}
    assert give_way(before, {"A9": Entry("A", 7)}) is before
