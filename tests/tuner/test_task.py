# SPDX-License-Identifier: Apache-2.0
"""What makes two calls one task, and which attributes of a runner count."""

from __future__ import annotations

import enum
import functools
from typing import Any

import pytest
import torch

from warmup_plugin.tuner.task import (
    Extras,
    Task,
    TaskIds,
    canonical,
    may_differ,
    name_fields,
    numbers_of,
    options_of,
)

PROFILE = ((64, 8), (8, 8), (0,))


def extras(*real: Any, **own: tuple[int, int]) -> Extras:
    """Extras of a rank; ``ep_rank=(index, number)`` says where its own number may stand."""
    return name_fields(real, {index: (name, number) for name, (index, number) in own.items()})


def identity(*runners: tuple[str, Extras], op: str = "op") -> str:
    return TaskIds(op, runners).at(PROFILE)


A = ("A", extras(1, "fp8"))
B = ("B", extras(1, "fp8"))


def test_an_id_is_the_same_in_every_process() -> None:
    """Ranks and starts compare ids, whatever their hash seeds."""
    assert identity(A) == "a1ce0342747a0b0a0b560572a3ac6f54"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (identity(A), identity(A, op="other")),
        (identity(A), identity(B)),
        (identity(A), identity(A, A)),
        (identity(A), identity(("A", extras(2, "fp8")))),
        (identity(A), identity(("A", extras("1", "fp8")))),
        (identity(A), TaskIds("op", [A]).at(((128, 8), (8, 8), (0,)))),
    ],
    ids=["op", "class", "list", "extras", "type of extras", "profile"],
)
def test_ids_differ_in(one: str, other: str) -> None:
    assert one != other


def test_the_order_of_the_runners_is_no_part_of_an_id() -> None:
    """Some ops order them by the batch; the keys are the same."""
    assert identity(A, B) == identity(B, A)
    assert canonical([B, A]) == [1, 0]
    assert canonical([A, B]) == [0, 1]


def test_fields_that_follow_the_batch_are_no_part_of_an_id() -> None:
    at_8, at_512 = (name_fields((batch, "fp8"), {}, (0,)) for batch in (8, 512))
    assert at_8.follows_batch
    assert at_8.neutral == at_512.neutral == "('<batch>', 'fp8')"
    assert identity(("A", at_8)) == identity(("A", at_512))


def test_twins_are_one_task() -> None:
    """Extras that are each rank's own number differ in the file key, not in the task."""
    ranks = [extras("fp8", rank, 4, ep_rank=(1, rank)) for rank in range(3)]
    assert len({identity(("A", one)) for one in ranks}) == 1
    assert {one.real for one in ranks} == {("fp8", 0, 4), ("fp8", 1, 4), ("fp8", 2, 4)}


@pytest.mark.parametrize(
    ("real", "index", "is_twin"),
    [
        (("fp8", 3), 1, True),
        (("fp8", 2), 1, False),
        (("fp8", 3), 5, False),
        (("fp8", 3.0), 1, False),
        (("fp8", "3"), 1, False),
        (("fp8",), 1, False),
    ],
    ids=["own number", "another's number", "no such place", "float", "text", "too short"],
)
def test_only_this_ranks_own_number_makes_a_twin(
    real: tuple[Any, ...], index: int, is_twin: bool  # noqa: FBT001
) -> None:  # fmt: skip
    found = extras(*real, ep_rank=(index, 3))
    assert (found.is_twin, "<ep_rank>" in found.neutral) == (is_twin, is_twin)
    assert found.real == real


def test_true_is_no_rank_number() -> None:
    """``True == 1``, but a flag is an option."""
    assert not extras(True, ep_rank=(0, 1)).is_twin


class Color(enum.Enum):
    RED = 1


class Runner:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


def test_options_are_flags_names_enums_and_dtypes() -> None:
    runner = Runner(
        flag=True, name="silu", color=Color.RED, dtype=torch.float16, number=3, scale=0.5,
        table=torch.zeros(3), plan_cache="left out of FlashInfer's hash", nothing=None,
    )  # fmt: skip
    assert dict(options_of(runner)) == {
        "flag": "True",
        "name": "'silu'",
        "color": "<Color.RED: 1>",
        "dtype": "torch.float16",
    }
    assert numbers_of(runner) == (("number", 3), ("scale", 0.5))


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"number": 3, "name": "a"}, False),
        ({"number": 4, "name": "a"}, True),
        ({"number": 3, "name": "b"}, False),
        ({"number": -2, "name": "a"}, True),
    ],
)
def test_runners_may_differ_in_numbers(theirs: dict[str, Any], expected: bool) -> None:  # noqa: FBT001
    ours = Runner(number=3, name="a")
    assert may_differ([ours], [Runner(**theirs)]) is expected
    assert may_differ([ours, ours], [ours, Runner(**theirs)]) is expected


def test_runners_that_flashinfers_memory_cannot_tell_apart_do_not_differ() -> None:
    """Its MLA runners hash by class: whatever their numbers, one winner serves them all."""

    class ByClass(Runner):
        def __hash__(self) -> int:
            return hash(type(self))

    assert not may_differ([ByClass(number=3)], [ByClass(number=4)])


@pytest.mark.parametrize(
    ("buckets", "label"), [((64,), "op @ 64"), ((1, 16), "op @ 1x16"), ((), "op @ fixed")]
)
def test_a_tasks_name_for_people(buckets: tuple[int, ...], label: str) -> None:
    call: Any = None
    assert Task("id", "op", ("key",), PROFILE, buckets, call, "missing").label == label


def test_what_a_runner_has_computed_at_a_first_look_is_no_switch() -> None:
    """FlashInfer's MoELayer computes a part of its key so, between two calls of one runner."""

    class Runner:
        flag = True

        def __init__(self) -> None:
            self.layout = "k_major"

        @functools.cached_property
        def recipe(self) -> str:
            return "n/a"

    fresh, used = Runner(), Runner()
    assert used.recipe == "n/a"
    assert "recipe" in vars(used)
    assert options_of(used) == options_of(fresh) == (("layout", "'k_major'"),)
