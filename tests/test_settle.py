# SPDX-License-Identifier: Apache-2.0
"""From results to one table: a task has one winner, under that runner's key of every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from warmup_plugin.cache.manifest import Manifest, Outcome, TaskRecord
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.cache.task_result import Result
from warmup_plugin.planning.inventory import Inventory, Item, Lot
from warmup_plugin.planning.merge_results import Settled, fallen_with, settle, without

STAMP = {"flashinfer_version": "0.7.2.post1"}
A, B = "('op', 'A', 1)", "('op', 'B', 1)"
FAST, SLOW, OTHER = Entry("A", 1, ("hot",)), Entry("B", 2, ("hot",)), Entry("A", 9)


def item(
    name: str = "t", state: str = "missing", *keys: str, adopt: str = "", reason: str = ""
) -> Item:
    return Item(name, "op", keys or (A, B), state, adopt, reason)


def tuned(name: str = "t", winner: int = 0, entry: Entry = FAST, **more: Any) -> Result:
    return Result(name, "tuned", winner, entry, ms=1.0, rank=1, host="h", at=5.0, **more)


def record(outcome: Outcome = "tuned", *keys: str, **more: Any) -> TaskRecord:
    return TaskRecord(op="op", keys=(keys or (A, B),), outcome=outcome, ms=3.0, at=1.0, **more)


def settled(
    inventories: Mapping[int, Inventory],
    *results: Result,
    base: Mapping[str, Entry] | None = None,
    records: Mapping[str, TaskRecord] | None = None,
) -> Settled:
    lots = [Lot((rank,), inventory) for rank, inventory in inventories.items()]
    found = settle(Table(STAMP, base or {}), records or {}, lots, results)
    assert found.table.stamp == STAMP
    assert found.table.records == {}
    return found


@pytest.mark.parametrize(("winner", "key", "entry"), [(0, A, FAST), (1, B, SLOW)])
def test_the_winners_key_alone_is_stored(winner: int, key: str, entry: Entry) -> None:
    """The losers' keys go, else FlashInfer would serve the first listed, not the faster."""
    found = settled({0: [item()]}, tuned(winner=winner, entry=entry), base={A: OTHER, B: OTHER})
    assert found.table.entries == {key: entry}
    assert found.complete
    assert found.tasks["t"] == TaskRecord(
        op="op", keys=((A, B),), outcome="tuned", ms=1.0, rank=1, host="h", at=5.0
    )


def test_times_and_policy_are_kept() -> None:
    found = settled({0: [item()]}, tuned(default_ms=4.0))
    assert found.tasks["t"].default_ms == 4.0
    assert found.table.entries[A].policy == ("hot",)


def test_twins_get_the_winner_under_each_ranks_key() -> None:
    """Whichever rank tuned it; the record has every rank's keys."""
    ranks = {rank: [item("t", "missing", f"A{rank}", f"B{rank}")] for rank in range(3)}
    found = settled(ranks, tuned(winner=1, entry=SLOW), base={"A1": OTHER})
    assert found.table.entries == {"B0": SLOW, "B1": SLOW, "B2": SLOW}
    assert found.tasks["t"].keys == (("A0", "B0"), ("A1", "B1"), ("A2", "B2"))


def test_of_two_results_for_one_task_one_is_stored() -> None:
    """A stranger may have had two ranks take it."""
    found = settled({0: [item()], 1: [item()]}, tuned(), tuned(winner=1, entry=SLOW))
    assert found.table.entries == {B: SLOW}
    assert found.complete


def test_a_stored_twin_answers_the_others() -> None:
    """Known on rank 0, missing on rank 1: nothing is tuned, both keys are stored."""
    ranks = {0: [item("t", "known", "A0", "B0")], 1: [item("t", "missing", "A1", "B1")]}
    found = settled(ranks, base={"B0": SLOW}, records={"t": record("tuned", "A0", "B0")})
    assert found.table.entries == {"B0": SLOW, "B1": SLOW}
    assert found.tasks["t"].keys == (("A0", "B0"), ("A1", "B1"))
    assert found.tasks["t"].at == 1.0  # as it was: nothing new was learnt
    assert found.complete


def test_stages_with_disjoint_tasks_are_put_together() -> None:
    ranks = {0: [item("a", "missing", "KA")], 1: [item("b", "missing", "KB")]}
    found = settled(ranks, tuned("a"), tuned("b", entry=SLOW))
    assert found.table.entries == {"KA": FAST, "KB": SLOW}


def test_what_is_known_stays_as_it_is() -> None:
    before = record(host="elsewhere")
    found = settled({0: [item(state="known")]}, base={B: SLOW}, records={"t": before})
    assert found.table.entries == {B: SLOW}
    assert found.tasks == {"t": before}
    assert found.complete


def test_tasks_that_this_job_does_not_have_keep_entry_and_record() -> None:
    """Another model or phase may share the file."""
    found = settled(
        {0: [item()]},
        tuned(),
        base={"elsewhere": OTHER},
        records={"e": record("tuned", "elsewhere")},
    )
    assert found.table.entries == {A: FAST, "elsewhere": OTHER}
    assert found.tasks.keys() == {"t", "e"}


def test_a_task_without_a_winner_is_recorded_with_its_reason() -> None:
    """And takes with it what was stored for it."""
    result = Result("t", "default", reason="no tactic was timed", rank=0, at=5.0)
    found = settled({0: [item()]}, result, base={A: OTHER})
    assert found.table.entries == {}
    assert (found.tasks["t"].outcome, found.tasks["t"].reason) == ("default", "no tactic was timed")
    assert found.complete


@pytest.mark.parametrize(("kind", "is_complete"), [("failed", False), ("unshared", True)])
def test_what_says_nothing_of_the_task_is_not_recorded(kind: str, *, is_complete: bool) -> None:
    """Neither a failure of this start nor what each rank tunes for itself; only one is missing."""
    found = settled({0: [item(state="missing")]}, Result("t", kind, reason="out of memory", at=5.0))
    assert (found.tasks, found.table.entries) == ({}, {})
    assert found.complete == is_complete


def test_what_the_survey_knows_to_have_no_winner_is_recorded() -> None:
    found = settled({0: [item(state="default", reason="two processes have died in it")]})
    (task,) = found.tasks.values()
    assert (task.outcome, task.reason) == ("default", "two processes have died in it")
    assert found.complete


def test_known_defaults_keep_their_record() -> None:
    before = record("default", reason="no tactic was timed")
    found = settled({0: [item(state="default")]}, records={"t": before})
    assert found.tasks == {"t": before}


def test_a_task_that_was_not_tuned_is_missing() -> None:
    """Its rank failed, or nothing may be timed: not complete, not recorded."""
    found = settled({0: [item(), item("u", "missing", "U")]}, tuned("u"))
    assert found.tasks.keys() == {"u"}
    assert not found.complete


def test_a_record_without_its_entry_is_no_answer() -> None:
    found = settled({0: [item()]}, records={"t": record("tuned")})
    assert found.tasks == {}
    assert not found.complete


@pytest.mark.parametrize("runner", ["A", "B"])
def test_an_old_files_entry_is_adopted_under_its_runners_key(runner: str) -> None:
    old = "('op', 1)"
    entry = Entry(runner, 7)
    found = settled({0: [item(adopt=old)], 1: [item()]}, base={old: entry})
    assert found.table.entries == {old: entry, {"A": A, "B": B}[runner]: entry}
    assert found.tasks["t"].outcome == "adopted"
    assert found.complete


def test_an_entry_without_a_record_is_adopted() -> None:
    """A file that has lost its manifest: its entries answer exactly matching tasks."""
    found = settled({0: [item(state="known")]}, base={A: FAST})
    assert found.table.entries == {A: FAST}
    assert found.tasks["t"].outcome == "adopted"


# -- never shared --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unshared_task_is_not_stored_whichever_rank_says_so(rank: int) -> None:
    """Nor is what an older file has under its keys."""
    ranks = {r: [item(state="unshared" if r == rank else "known")] for r in range(2)}
    found = settled(ranks, base={A: FAST})
    assert found.table.entries == {}
    assert found.tasks == {}
    assert found.complete


def test_an_unshared_task_with_a_record_becomes_a_default() -> None:
    """Else the union with the file would bring its entry back."""
    found = settled({0: [item(state="unshared", reason="one file key, two configurations")]},
                    base={A: FAST}, records={"t": record()})  # fmt: skip
    assert found.table.entries == {}
    assert found.tasks["t"].outcome == "default"
    assert found.tasks["t"].reason == "one file key, two configurations"


def test_a_task_found_unshared_while_tuning_is_not_stored() -> None:
    found = settled(
        {0: [item()]}, Result("t", "unshared", reason="other candidates", at=5.0), base={A: FAST}
    )
    assert (found.table.entries, found.tasks, found.complete) == ({}, {}, True)


def test_two_tasks_with_one_key_are_not_stored() -> None:
    """Whatever a rank reports for them."""
    ranks = {0: [item("t")], 1: [item("u", "missing", B)]}
    found = settled(ranks, tuned("t"), tuned("u", entry=SLOW))
    assert (found.table.entries, found.tasks) == ({}, {})


# -- several sizes of one bucket -----------------------------------------------------------------


def sized(name: str, met: int, state: str = "missing") -> Item:
    """A task whose first runner's key holds its size, and whose second's all sizes share."""
    return Item(name, "op", (f"A at {name}", B), state, at=name, bucket_id="bucket", met=met)


SIZED_A, SIZED_B = Entry("A", 5), Entry("B", 7)


@pytest.mark.parametrize(
    ("results", "entries"),
    [
        ({"9": (0, FAST), "16": (0, SIZED_A)}, {"A at 9": FAST, "A at 16": SIZED_A}),
        ({"9": (1, SLOW), "16": (0, SIZED_A)}, {B: SLOW}),
        ({"9": (0, FAST), "16": (1, SIZED_B)}, {B: SIZED_B}),
        ({"9": (1, SLOW), "16": (1, SIZED_B)}, {B: SLOW}),
        ({"9": (1, SLOW)}, {B: SLOW}),
    ],
    ids=["each its own", "the first's is found at both", "so is the second's", "the first met wins",
         "the other was not tuned"],
)  # fmt: skip
def test_a_winner_that_is_found_at_all_sizes_answers_them(
    results: dict[str, tuple[int, Entry]], entries: dict[str, Entry]
) -> None:
    """As FlashInfer, which looks before it tunes; never two entries for one call."""
    given = (tuned(name, winner, entry) for name, (winner, entry) in results.items())
    found = settled({0: [sized("16", 5), sized("9", 2)]}, *given, base={B: OTHER})
    assert found.table.entries == entries
    assert found.complete
    shared = [name for name, record in found.tasks.items() if record.outcome == "adopted"]
    assert len(shared) == (1 if B in entries else 0)
    assert all("another size of its bucket" in found.tasks[name].reason for name in shared)


def test_a_size_that_is_met_later_keeps_what_is_known() -> None:
    known = {"9": record("tuned", "A at 9", B)}
    found = settled(
        {0: [sized("9", 0, "known"), sized("16", 1)]}, tuned("16", 0, SIZED_A),
        base={"A at 9": FAST}, records=known,
    )  # fmt: skip
    assert found.table.entries == {"A at 9": FAST, "A at 16": SIZED_A}


def test_what_a_dropped_entry_answered_goes_with_it() -> None:
    found = fallen_with(
        {"9": "rank 1: no kernel"}, [Lot((0,), [sized("9", 0), sized("16", 1), item("t")])], {B}
    )
    assert found == {"16": ("9", "rank 1: no kernel")}
    lot = Lot((0,), [sized("9", 0), sized("16", 1)])
    assert fallen_with({"9": "why"}, [lot], {"A at 9", "A at 16"}) == {}


# -- dropping afterwards -------------------------------------------------------------------------


def test_a_dropped_task_is_a_default_in_table_and_manifest() -> None:
    """A winner that some rank cannot build; the other tasks stay."""
    table = Table(STAMP, {A: FAST, "U": SLOW}, {"product": 1})
    manifest = Manifest(
        identity="i", tasks={"t": record(), "u": record("tuned", "U")}, generation=3
    )
    less, said = without(table, manifest, {"t": "rank 1: no kernel"})
    assert less == Table(STAMP, {"U": SLOW}, {"product": 1})
    assert (said.tasks["t"].outcome, said.tasks["t"].reason) == ("default", "rank 1: no kernel")
    assert said.tasks["u"] == manifest.tasks["u"]
    assert (said.generation, said.known_defaults) == (3, ("t",))
