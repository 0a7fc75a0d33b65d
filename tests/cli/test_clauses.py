# SPDX-License-Identifier: Apache-2.0
"""`demo --design`: the clauses hold of real starts, and each of them can say no."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from warmup_plugin.cli.demo_clauses import Node, Starts, judge_design, start_by_strategy
from warmup_plugin.engines.embedded import EngineConfig, RankResult
from warmup_plugin.engines.embedded.count_calls import telling_calls

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

NAMES = ["path", "one context", "one broadcast", "local rank 0 wrote", "barrier", "sharded saves"]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    """The three starts of TP2 x PP2."""

    @contextlib.contextmanager
    def watch(_name: str) -> Iterator[Callable[[int, str], None]]:
        yield lambda _rank, _line: None

    folder = tmp_path_factory.mktemp("design")
    return start_by_strategy(EngineConfig(tp=2, pp=2), folder, watch=watch)


def verdict(starts: Starts) -> dict[str, bool]:
    return {check.name: check.holds for check in judge_design(starts)}


def altered(ranks: Any, rank: int, *, tasks: dict[str, int] | None = None, **seen: Any) -> Any:
    """Return a start with what was seen of one rank changed."""
    found: list[RankResult] = list(ranks)
    old = found[rank]
    report = msgspec.structs.replace(old.report, tasks={**old.report.tasks, **(tasks or {})})
    found[rank] = replace(old, report=report, evidence=replace(old.evidence, **seen))
    return found


@pytest.mark.multiprocess
def test_all_of_them_hold(starts: Starts) -> None:
    """Each with its figure."""
    words = {check.name: check.words for check in judge_design(starts)}
    assert [check.name for check in judge_design(starts) if check.holds] == NAMES, words
    assert re.search(r"cpu/[0-9a-f]{12}\.\.\./rank_tp0_pp0_dp0\.json", words["path"])
    assert "rank 0 tunes 27 tasks" in words["one context"]
    assert "1 tuning context, none nested; rank 2 the 35" in words["one context"]
    assert "put by rank 0, taken by ranks 0-3" in words["one broadcast"]
    assert "local rank 0 of 2 nodes: ranks 0, 2" in words["local rank 0 wrote"]
    assert "27/27/53/53 tasks by rank" in words["barrier"]
    assert re.search(r"\d+% less", words["sharded saves"])


def no_context(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 0, contexts=(200, 43)))


def no_nesting(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 1, nested=1))


def another_tuner(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 1, tasks={"tuned": 1}, contexts=(9,)))


def left_to_others(found: Starts) -> Starts:
    ranks = altered(found.leader, 0, tasks={"tuned": 26})
    return replace(found, leader=altered(ranks, 1, tasks={"tuned": 1}, contexts=(9,)))


def not_taken(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 3, got=frozenset({"ab" * 32})))


def put_twice(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 2, put=found.leader[0].evidence.put))


def other_bytes(found: Starts) -> Starts:
    first, second = found.nodes
    table = replace(second.tables[0], sha256="ab" * 32)
    return replace(found, nodes=[first, Node(second.root, [table])])


def no_table(found: Starts) -> Starts:
    return replace(found, nodes=[found.nodes[0], Node(found.nodes[1].root, [])])


def another_folder(found: Starts) -> Starts:
    first, second = found.nodes
    table = first.tables[0]
    moved = replace(table, path=table.path.parents[1] / ("ab" * 32) / table.path.name)
    return replace(found, nodes=[Node(first.root, [moved]), second])


def another_writer(found: Starts) -> Starts:
    name = "rank_tp1_pp0_dp0.json"
    return replace(found, leader=altered(found.leader, 1, wrote=(name,)))


def written_twice(found: Starts) -> Starts:
    return replace(found, leader=altered(found.leader, 0, wrote=("a.json", "a.json")))


def left_early(found: Starts) -> Starts:
    last = max(rank.evidence.last_tactic for rank in found.per_rank)
    return replace(found, per_rank=altered(found.per_rank, 0, left=last - 0.01))


def received(found: Starts) -> Starts:
    return replace(found, per_rank=altered(found.per_rank, 1, tasks={"tuned": 20}))


def no_saving(found: Starts) -> Starts:
    return replace(found, sharded=altered(found.sharded, 2, contexts=(9999,)))


def not_tuned(found: Starts) -> Starts:
    return replace(found, sharded=altered(found.sharded, 2, tasks={"tuned": 0}))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("clause", "change"),
    [
        ("path", no_table),
        ("path", another_folder),
        ("one context", no_context),
        ("one context", no_nesting),
        ("one context", another_tuner),
        ("one context", left_to_others),
        ("one broadcast", not_taken),
        ("one broadcast", put_twice),
        ("one broadcast", other_bytes),
        ("local rank 0 wrote", another_writer),
        ("local rank 0 wrote", written_twice),
        ("barrier", left_early),
        ("barrier", received),
        ("sharded saves", no_saving),
        ("sharded saves", not_tuned),
    ],
)
def test_each_can_say_no(starts: Starts, clause: str, change: Callable[[Starts], Starts]) -> None:
    """And none of the others does, where they have nothing to do with it."""
    assert not verdict(change(starts))[clause]
    assert verdict(starts)[clause]


def test_one_rank_has_nobody_to_share_with(cli: Callable[..., Ran]) -> None:
    """Wrong usage, said before anything is started."""
    ran = cli("demo", "--tp", 1, "--design")
    assert (ran.code, ran.out) == (2, "")
    assert "--design with one rank: must be two ranks or more" in ran.err


@pytest.mark.multiprocess
def test_whatever_the_environment_says(cli: Callable[..., Ran]) -> None:
    """The clauses are about starts with default settings."""
    ran = cli("demo", "--tp", 2, "--design", "--json", "-q", WARMUP_PLUGIN_MODE="read-only")
    clauses = ran.document["clauses"]
    assert [clause["name"] for clause in clauses if clause["holds"]] == NAMES


def test_a_generator_is_told_of_once() -> None:
    """When its body begins, with its arguments; not when it goes on."""
    told: list[tuple[str, int]] = []

    def numbers(most: int) -> Iterator[int]:
        yield from range(most)
        yield most

    with telling_calls(lambda name, frame: told.append((name, frame.f_locals["most"])), n=numbers):
        assert list(numbers(3)) == [0, 1, 2, 3]
        assert list(numbers(1)) == [0, 1]
    list(numbers(2))
    assert told == [("n", 3), ("n", 1)]
