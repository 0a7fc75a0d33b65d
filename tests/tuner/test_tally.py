# SPDX-License-Identifier: Apache-2.0
"""What a survey's tasks add up to, and when that is counted anew."""

from __future__ import annotations

from typing import Any

from warmup_plugin.tuner.task import State, Task
from warmup_plugin.tuner.task_summary import tally_of


def task(
    name: str,
    op: str = "op",
    state: State = "known",
    *,
    served: Any = ("R", 1),
    agreed: bool = True,
) -> Task:
    return Task(name, op, (name,), (), (8,), None, state, served=served, is_agreed=agreed)


def test_tasks_are_counted_by_op_and_state() -> None:
    found = tally_of([task("a"), task("b"), task("c", "other"), task("d", state="missing")])

    assert found.states == {("op", "known"): 2, ("other", "known"): 1, ("op", "missing"): 1}
    assert (found.number("known"), found.number("missing", "refused")) == (3, 1)
    assert found.ops == ["op", "other"]
    assert [each.id for each in found.others] == ["d"]


def test_known_tasks_are_told_by_what_answers_them() -> None:
    """Tactics that are equal to Python and not to a runner stay apart."""
    one, true = ("R", 1), ("R", True)
    found = tally_of([task("a", served=one), task("b", served=true), task("c", served=one)])

    assert sorted(found.served.values()) == [["a", "c"], ["b"]]


def test_a_task_that_is_served_otherwise_than_agreed_is_named() -> None:
    found = tally_of([task("a"), task("b", agreed=False)])

    assert found.deviating == ["op @ 8"]
    assert list(found.served.values()) == [["a", "b"]], "its answer is told all the same"
