# SPDX-License-Identifier: Apache-2.0
"""Who tunes which task: by id and by what every rank has, never by the order ranks met them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from warmup_plugin.planning.assignment import Plan, Queue
from warmup_plugin.planning.inventory import (  # fmt: skip
    Inventory,
    Item,
    Lot,
    find_refused,
    find_unshared,
)
from warmup_plugin.planning.plan import make_plan  # fmt: skip

Inventories = Mapping[int, Inventory]


def item(name: str, state: str = "missing", *keys: str, adopt: str = "") -> Item:
    """A task whose one key is its own name's, unless keys are given."""
    return Item(name, "op", keys or (f"key of {name}",), state, adopt)


def sized(name: str, bucket: str, met: int, *keys: str) -> Item:
    """A task at one of several sizes of a bucket."""
    return Item(name, "op", keys or (f"key of {name}",), "missing", bucket_id=bucket, met=met)


def lots(inventories: Inventories) -> list[Lot]:
    """What each rank has for itself."""
    return [Lot((rank,), inventory) for rank, inventory in inventories.items()]


def by(ranks: Mapping[int, tuple[str, ...]]) -> tuple[Queue, ...]:
    """One queue for each rank."""
    return tuple(Queue((rank,), names) for rank, names in ranks.items())


def items(names: str, state: str = "missing") -> list[Item]:
    return [item(name, state) for name in names.split()]


# Each row: what the ranks have, and the plan of strategy `leader`.
LEADER: dict[str, tuple[Inventories, Plan]] = {
    "nothing": ({0: [], 1: []}, Plan()),
    "all known": ({0: items("a b", "known"), 1: items("a b", "known")}, Plan()),
    "rank 0 tunes what all have": (
        {0: items("a b"), 1: items("a b"), 2: items("a b")},
        Plan(shared=by({0: ("a", "b")})),
    ),
    "the order of other ranks does not matter": (
        {0: items("a b c"), 1: items("c a b")},
        Plan(shared=by({0: ("a", "b", "c")})),
    ),
    "the order of the mapping does not matter": (
        {1: items("a b"), 0: items("b a")},
        Plan(shared=by({0: ("b", "a")})),
    ),
    "stages with disjoint tasks: the lowest rank that has it": (
        {0: items("a b"), 1: items("a b"), 2: items("c"), 3: items("c d")},
        Plan(shared=by({0: ("a", "b"), 2: ("c",), 3: ("d",)})),
    ),
    "what is known is not tuned": (
        {0: [*items("a", "known"), *items("b")], 1: [*items("a", "known"), *items("b")]},
        Plan(shared=by({0: ("b",)})),
    ),
    "defaults and unstable keys are known": (
        {0: [*items("a", "default"), *items("b", "unstable"), *items("c")]},
        Plan(shared=by({0: ("c",)})),
    ),
    "a twin whose key is stored answers the other's": (
        {0: [item("t", "known", "k0")], 1: [item("t", "missing", "k1")]},
        Plan(held=("t",)),
    ),
    "twins without an entry are tuned once": (
        {0: [item("t", "missing", "k0")], 1: [item("t", "missing", "k1")]},
        Plan(shared=by({0: ("t",)})),
    ),
    "an old file's entry answers": (
        {0: [item("a", adopt="old key"), item("b")], 1: [item("a"), item("b")]},
        Plan(shared=by({0: ("b",)}), held=("a",)),
    ),
    "unshared on one rank: each rank its own": (
        {0: items("a b"), 1: [item("a", "unshared"), item("b")], 2: items("b")},
        Plan(shared=by({0: ("b",)}), local={0: ("a",), 1: ("a",)}),
    ),
    "unshared although an entry is stored": (
        {0: [item("a", "unshared", adopt="old")], 1: items("a", "known")},
        Plan(local={0: ("a",), 1: ("a",)}),
    ),
    "one key in two tasks of two ranks": (
        {0: [item("a", "missing", "A", "B"), item("c")], 1: [item("b", "missing", "B"), item("c")]},
        Plan(shared=by({0: ("c",)}), local={0: ("a",), 1: ("b",)}),
    ),
    "one key in two tasks, one of them known": (
        {0: [item("a", "known", "A", "B")], 1: [item("b", "missing", "B")]},
        Plan(local={0: ("a",), 1: ("b",)}),
    ),
}


@pytest.mark.parametrize(("inventories", "expected"), LEADER.values(), ids=LEADER)
def test_leader(inventories: Inventories, expected: Plan) -> None:
    """Every task that no entry answers is tuned by exactly one rank that has it."""
    assert make_plan(lots(inventories), "leader") == expected


@pytest.mark.parametrize(("inventories", "expected"), LEADER.values(), ids=LEADER)
def test_every_task_is_answered_once(inventories: Inventories, expected: Plan) -> None:
    """Known, held, tuned by one rank for all, or by each of its ranks; nothing twice."""
    shared = list(expected.tasks)
    assert len(shared) == len(set(shared))
    for rank, inventory in inventories.items():
        for one in inventory:
            is_local = one.id in expected.local.get(rank, ())
            ways = [one.id in shared, one.id in expected.held, is_local]
            assert sum(ways) == (
                0 if one.state in ("known", "default", "unstable") and not any(ways) else 1
            )
    for (rank,), names in expected.shared:
        assert set(names) <= {one.id for one in inventories[rank]}


PER_RANK: dict[str, tuple[Inventories, Plan]] = {
    "each its own": (
        {0: items("a b"), 1: items("b c")},
        Plan(local={0: ("a", "b"), 1: ("b", "c")}),
    ),
    "unshared ones too": (
        {0: [item("a", "unshared"), item("b")], 1: items("a")},
        Plan(local={0: ("a", "b"), 1: ("a",)}),
    ),
    "not what has no winner": ({0: [item("a", "default"), item("b")]}, Plan(local={0: ("b",)})),
    "a rank without tasks": ({0: items("a"), 1: []}, Plan(local={0: ("a",)})),
}


@pytest.mark.parametrize(("inventories", "expected"), PER_RANK.values(), ids=PER_RANK)
def test_per_rank(inventories: Inventories, expected: Plan) -> None:
    """Nothing is shared: no rank waits for another's winner."""
    assert make_plan(lots(inventories), "per_rank") == expected


@pytest.mark.parametrize("strategy", ["leader", "per_rank"])
@pytest.mark.parametrize(("inventories", "_plan"), LEADER.values(), ids=LEADER)
def test_replay_times_nothing(inventories: Inventories, _plan: Plan, strategy: Any) -> None:
    """What is missing serves the default; what an entry answers is still held."""
    plan = make_plan(lots(inventories), strategy, time_nothing=True)
    assert (plan.shared, plan.local) == ((), {})
    if strategy == "leader":
        assert plan.held == make_plan(lots(inventories), "leader").held


def test_what_another_engine_has_tuned_meanwhile_is_held() -> None:
    """Tasks that came to be answered since the survey; unshared ones stay unshared."""
    inventories = {0: [*items("a b"), item("u", "unshared")], 1: items("a b c")}
    plan = make_plan(lots(inventories), "leader", answered={"a", "c", "u", "elsewhere"})
    assert plan == Plan(shared=by({0: ("b",)}), local={0: ("u",)}, held=("a", "c"))


@pytest.mark.parametrize(
    ("inventories", "expected"),
    [
        ({0: items("a b"), 1: items("a b")}, set()),
        ({0: [item("a", "unshared")], 1: items("a b")}, {"a"}),
        ({0: [item("a", "missing", "A", "B")], 1: [item("b", "missing", "C", "B")]}, {"a", "b"}),
        ({0: [item("a", "missing", "A"), item("b", "known", "A")]}, {"a", "b"}),
        ({0: [item("t", "missing", "k0")], 1: [item("t", "missing", "k1")]}, set()),
        (
            {0: [item("t", "", "0")], 1: [item("t", "", "1"), item("x", "", "0")]},
            {"t", "x"},
        ),
        ({0: [sized("a", "B", 0, "A"), sized("b", "B", 1, "A")]}, set()),
        (
            {0: [sized("a", "B", 0, "A"), sized("b", "B", 1, "C")], 1: [item("x", "", "A")]},
            {"a", "b", "x"},
        ),
    ],
    ids=["none", "a rank says so", "across ranks", "on one rank", "twins", "a twin's is another's",
         "two sizes of a bucket", "two sizes of a bucket, and another's"],
)  # fmt: skip
def test_tasks_that_must_not_be_shared(inventories: Inventories, expected: set[str]) -> None:
    """One file key in two tasks: whichever winner were stored, the other task would serve it."""
    assert find_unshared(lots(inventories)) == expected


def test_sizes_of_a_bucket_are_tuned_in_the_order_met() -> None:
    """Beside each other, as costly as the costliest: what is found for one may answer the next."""
    tasks = [sized("c", "B", 4), sized("a", "B", 9), sized("b", "B", 1), *items("x y")]
    plan = make_plan(lots({0: tasks}), "leader", cost=lambda i: {"c": 3.0, "x": 2.0}.get(i.id, 1.0))
    assert plan.shared == by({0: ("b", "c", "a", "x", "y")})


@pytest.mark.parametrize(("_inventories", "plan"), LEADER.values(), ids=LEADER)
def test_plans_cross_ranks_as_json(_inventories: Inventories, plan: Plan) -> None:
    body = json.loads(json.dumps(msgspec.to_builtins(plan, str_keys=True)))
    assert msgspec.convert(body, Plan, str_keys=True) == plan


def test_items_cross_ranks_as_json() -> None:
    one = Item("id", "op", ("key 1", "key 2"), "missing", "old key", "reason")
    assert Item.from_json(json.loads(json.dumps(one))) == one


def test_what_one_rank_refuses_is_tuned_by_it_for_all() -> None:
    """The others have kept no call of what an entry answers."""
    known, refused = Item("t", "op", ("k",), "known"), Item("t", "op", ("k",), "refused", "", "why")
    found = lots({0: [known], 1: [refused], 2: [refused]})
    plan = make_plan(found, "leader")
    assert plan.shared == by({1: ("t",)})
    assert plan.held == ()
    assert make_plan(found, "sharded").shared == (Queue((1, 2), ("t",)),)
    assert find_refused(found) == {"t": "op: rank 1: why"}
