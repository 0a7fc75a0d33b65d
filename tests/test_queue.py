# SPDX-License-Identifier: Apache-2.0
"""Queues: costliest first, by ranks that hold the task, each task once; and the guess of costs."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from warmup_plugin.planning.assignment import Plan, Queue
from warmup_plugin.planning.cost_model import Costs
from warmup_plugin.planning.inventory import Item, Lot
from warmup_plugin.planning.plan import make_plan
from warmup_plugin.planning.work_queue import draw, reach


def item(name: str, op: str = "op", at: str = "1") -> Item:
    return Item(name, op, (f"key of {name}",), "missing", at=at)


def lots(**names_of_ranks: str) -> list[Lot]:
    """``_01="a b"``: ranks 0 and 1 have the tasks a and b."""
    return [
        Lot(tuple(map(int, ranks.strip("_"))), [item(name) for name in names.split()])
        for ranks, names in names_of_ranks.items()
    ]


def run(plan: Plan, seconds: dict[str, float], paces: Sequence[float]) -> tuple[float, list[str]]:
    """Let ranks of these paces draw whenever they are free; return the end, and who got what."""
    counts: Counter[str] = Counter()

    def take(name: str) -> int:
        counts[name] += 1
        return counts[name] - 1

    draws = [draw(plan.shared, rank, take, lambda: False) for rank in range(len(paces))]
    free = [(0.0, rank) for rank in range(len(paces))]
    end, tuned = 0.0, []
    while free:
        now, rank = heapq.heappop(free)
        end = max(end, now)
        if (drawn := next(draws[rank], None)) is not None:
            tuned.append(drawn.task)
            heapq.heappush(free, (now + seconds[drawn.task] * paces[rank], rank))
    return end, tuned


def test_the_costliest_first_by_those_who_have_it() -> None:
    """One queue for each set of ranks; ranks in few queues are not kept from their own."""
    costs = dict(zip("abcdef", [1, 3, 2, 9, 1, 5], strict=True))
    plan = make_plan(
        lots(_0="a b c d", _1="a b c", _2="e f"), "sharded", cost=lambda row: costs[row.id]
    )
    assert plan.shared == (
        Queue((0,), ("d",)), Queue((2,), ("f", "e")), Queue((0, 1), ("b", "c", "a")),
    )  # fmt: skip
    assert [reach(plan.shared, rank) for rank in range(4)] == [4, 3, 2, 0]


def test_equal_costs_keep_their_order() -> None:
    """So every rank and every start makes the same plan."""
    plan = make_plan(lots(_01="c a b"), "sharded")
    assert plan.shared == (Queue((0, 1), ("c", "a", "b")),)


def test_what_has_killed_goes_last() -> None:
    """After all else that any rank could take."""
    plan = make_plan(lots(_0="a b", _01="c d"), "sharded", last={"a", "c"})
    assert plan.shared == (
        Queue((0,), ("b",)), Queue((0, 1), ("d",)), Queue((0,), ("a",)), Queue((0, 1), ("c",)),
    )  # fmt: skip
    assert make_plan(lots(_01="c d"), "leader", last={"c"}).shared == (
        Queue((0,), ("d",)), Queue((0,), ("c",)),
    )  # fmt: skip


def test_ops_with_side_effects_stay_on_one_rank() -> None:
    found = [Lot((0, 1), [item("a", "plain"), item("b", "leaves traces")])]
    plan = make_plan(found, "sharded", one_rank={"leaves traces"})
    assert plan.shared == (Queue((0,), ("b",)), Queue((0, 1), ("a",)))


def test_each_task_once_whatever_the_paces() -> None:
    """Random inventories, costs and paces; nobody tunes what it does not have."""
    rng = random.Random(1)  # noqa: S311  # no secret
    for _ in range(50):
        size, names = rng.randint(1, 6), [f"t{number}" for number in range(rng.randint(0, 60))]
        holds = [rng.sample(names, rng.randint(0, len(names))) for _ in range(size)]
        found = [Lot((rank,), [item(name) for name in own]) for rank, own in enumerate(holds)]
        seconds = {name: rng.expovariate(1.0) for name in names}
        plan = make_plan(found, "sharded", cost=lambda row: seconds[row.id])  # noqa: B023
        _, tuned = run(plan, seconds, [rng.choice([1.0, 1.0, 5.0]) for _ in range(size)])
        assert sorted(tuned) == sorted({name for own in holds for name in own})
        for ranks, tasks in plan.shared:
            assert all(set(tasks) <= set(holds[rank]) for rank in ranks)


@pytest.mark.parametrize("paces", [[1.0] * 4, [1.0, 1.0, 1.0, 5.0]])
def test_a_slow_rank_takes_less(paces: list[float]) -> None:
    """Within a quarter of what no schedule can beat; cut evenly, a slow rank would take 5 times."""
    seconds = {f"t{number}": 1.0 + number % 3 for number in range(80)}
    plan = make_plan(lots(_0123=" ".join(seconds)), "sharded", cost=lambda row: seconds[row.id])
    end, _ = run(plan, seconds, paces)
    assert end < 1.25 * sum(seconds.values()) / sum(1 / pace for pace in paces)


def test_nothing_is_taken_once_it_is_over() -> None:
    """What is taken is tuned: the budget is asked first."""
    asked: list[str] = []

    def take(name: str) -> int:
        asked.append(name)
        return len(asked) - 1

    queues = (Queue((0,), ("a", "b", "c")),)
    drawn = draw(queues, 0, take, lambda: len(asked) == 2)
    assert [row.task for row in drawn] == ["a", "b"]
    assert asked == ["queue0", "queue0"]


def test_costs_are_what_was_measured_or_the_nearest_to_it() -> None:
    """The label itself, the op at other sizes, the candidates, the size alone; in this order."""
    costs = Costs({"known @ 64": 7.0, "known @ 1024": 40.0}, {"counted": 64})
    assert costs(item("a", "known", "64")) == 7.0
    assert 7.0 < costs(item("a", "known", "512")) < 40.0
    assert costs(item("a", "counted", "1")) == pytest.approx(4 * costs(item("a", "new", "1")))
    assert costs(item("a", "new", "4096")) > costs(item("a", "new", "1"))
    assert costs(item("a", "new", "8x16")) == costs(item("a", "new", "128"))
    assert costs(item("a", "new", "fixed")) == costs(item("a", "new", "1"))
