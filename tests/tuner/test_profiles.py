# SPDX-License-Identifier: Apache-2.0
"""Profiles are FlashInfer's own, whoever counts them out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TuningConfig

from tests.tuner.toys import HYBRID
from warmup_plugin.engines.embedded.ops import TOKENS_CONFIG
from warmup_plugin.tuner.profiles import Profiles

Shapes = tuple[tuple[int, ...], ...]


def powers_of_two(size: int) -> list[int]:
    """Return buckets up to a size, unsorted and one of them twice."""
    return [2**i for i in reversed(range(size.bit_length()))] + [1]


def same(size: int) -> int:
    return size


TOKENS = DynamicTensorSpec((0, 2), (0, 1), powers_of_two, same)
WIDTH = DynamicTensorSpec((1,), (0,), (8, 2, 4), same)
CONFIGS = {
    "the embedded engine's": TOKENS_CONFIG,
    "hybrid buckets": HYBRID,
    "nothing dynamic": TuningConfig(),
    "linked dimensions": TuningConfig(dynamic_tensor_specs=(TOKENS,)),
    "two dimensions": TuningConfig(dynamic_tensor_specs=(TOKENS, WIDTH)),
    "inferred": TuningConfig(
        dynamic_tensor_specs=(TOKENS, WIDTH),
        constraint_specs=(
            ConstraintSpec(3, 0, lambda shapes: shapes[0][0] * shapes[1][0]),
            ConstraintSpec(3, 1, lambda shapes: shapes[3][0] + 1),
        ),
    ),
}
#: Of two calls of one kind.
SIZES = ((6, 16, 3), (2, 8, 5))


def inputs_of(tokens: int, width: int, other: int) -> list[Any]:
    shapes = (tokens, width), (width, other), (other, tokens), (tokens * width, other)
    return [*map(torch.empty, shapes), None, 1.0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of profiles that FlashInfer has made, one for each time it was asked."""
    found: list[int] = []
    own = AutoTuner._generate_optimization_profiles

    @functools.wraps(own)
    def counting(*args: Any) -> list[Any]:
        profiles: list[Any] = own(*args)
        found.append(len(profiles))
        return profiles

    monkeypatch.setattr(AutoTuner, "_generate_optimization_profiles", counting)
    return found


def flashinfers(config: Any, inputs: list[Any]) -> list[Shapes]:
    profiles = AutoTuner.get()._generate_optimization_profiles(config, inputs)
    return [profile.get_opt_shapes() for profile in profiles]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_further_calls_of_a_kind_are_counted_out(config: Any, asked: list[int]) -> None:
    """In FlashInfer's order, which is asked once."""
    profiles, calls = Profiles(AutoTuner.get()), [inputs_of(*sizes) for sizes in SIZES]
    expected = [flashinfers(config, inputs) for inputs in calls]
    del asked[:]
    assert [profiles.of(config, inputs) for inputs in calls] == expected
    assert asked == [len(expected[0])]


def test_a_call_of_another_kind_is_asked_about(asked: list[int]) -> None:
    """With no tensor where there was one, with fewer inputs, or with another config."""
    config, profiles = CONFIGS["two dimensions"], Profiles(AutoTuner.get())
    inputs = inputs_of(*SIZES[0])
    for others in ([*inputs[:3], None, *inputs[4:]], inputs[:3]):
        profiles.of(config, inputs)
        profiles.of(config, others)
    assert len(asked) == 3
    profiles.of(CONFIGS["linked dimensions"], inputs)
    assert len(asked) == 4


def fewer(config: Any, inputs: list[Any], own: Callable[..., list[Any]]) -> list[Any]:
    return own(AutoTuner.get(), config, inputs)[1:]


def backwards(config: Any, inputs: list[Any], own: Callable[..., list[Any]]) -> list[Any]:
    return own(AutoTuner.get(), config, inputs)[::-1]


@pytest.mark.parametrize("other", [fewer, backwards])
def test_a_flashinfer_that_counts_otherwise_is_believed(
    other: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time."""
    config, own = CONFIGS["two dimensions"], AutoTuner._generate_optimization_profiles
    monkeypatch.setattr(
        AutoTuner,
        "_generate_optimization_profiles",
        lambda _tuner, config, inputs: other(config, inputs, own),
    )
    profiles = Profiles(AutoTuner.get())
    for sizes in SIZES:
        inputs = inputs_of(*sizes)
        assert profiles.of(config, inputs) == flashinfers(config, inputs)


def test_what_flashinfer_refuses_is_refused_by_it() -> None:
    """Also where a call like it was counted out before."""
    few = DynamicTensorSpec((0,), (0,), lambda size: range(size - 2), same)
    config, profiles = TuningConfig(dynamic_tensor_specs=(few,)), Profiles(AutoTuner.get())
    profiles.of(config, inputs_of(6, 16, 3))
    with pytest.raises(AssertionError, match="Empty tuning buckets"):
        profiles.of(config, inputs_of(2, 16, 3))
