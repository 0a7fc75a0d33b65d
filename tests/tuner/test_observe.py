# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer measures is seen and counted, and nothing of ours stays on its tuner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess


def test_counts_and_times_are_flashinfers(children: Children) -> None:
    """As counted where FlashInfer's own code starts to run; times are the simulated ones."""
    seen = children.one("on_observe:tune")
    assert seen["tactics_timed"] == seen["counts"]["profile_single_kernel"] == 16
    assert seen["inputs_synthesised"] == seen["counts"]["prepare_input_tensors"] == 4
    assert seen["times"] == seen["expected"]
    assert seen["left"] == []


def test_failures_are_infinite_and_memory_is_told_apart(children: Children) -> None:
    """Out of memory while timing or while making inputs; any other error is a failed tactic."""
    found = children.one("on_observe:fail")
    assert found["error"] == ([("Failing", 0, "inf"), ("Failing", 1, "inf")], False)
    assert found["memory"] == ([("Failing", 0, "inf")], True)
    assert found["inputs"] == ([], True)
    assert found["fine"][1] is False
    assert len(found["fine"][0]) == 4


def test_an_error_in_the_body_takes_the_observer_down_too(children: Children) -> None:
    assert children.one("on_observe:interrupted") == []
