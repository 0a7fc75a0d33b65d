# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer 0.7.4 has and no release before it: nothing of it is lost in a session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.release.running import run_on

pytestmark = [pytest.mark.multiprocess, pytest.mark.release]


@functools.cache
def seen_on(release: Path) -> Any:
    """What `newest_starts.py` sees; run once."""
    with tempfile.TemporaryDirectory() as folder:
        return run_on(release, "newest_starts.py", Path(folder))


@pytest.fixture
def seen(newest_release: Path) -> Any:
    return seen_on(newest_release)


def test_entries_of_four_elements_go_through_a_session_whole(seen: Any) -> None:
    """The first session's, those that the engine has loaded and tuned: served and saved alike."""
    (found,) = seen["whole_entries"]
    assert found["agreement"] == ["certified", "certified"]
    assert found["after"] == found["before"]
    assert all(tactic != -1 for _, tactic in found["before"].values())
    assert found["loaded"][3] == {
        "time_ms": 1.0, "runner_up_ms": 2.0, "margin": 1.0, "candidates": 3,
    }  # fmt: skip
    assert found["own"]
    assert all(len(entry) == 4 for entry in found["own"].values())
    assert found["own held"] == found["own"]


def test_an_op_that_looks_up_what_it_was_told_finds_it(seen: Any) -> None:
    """While it serves, after a cold start and after a warm one: else FlashInfer's MLA raises."""
    (cold,), (warm,) = seen["asks_again"], seen["asks_again warm"]
    assert (cold["agreement"], warm["agreement"]) == ("certified", "certified")
    assert cold["timed"] > 0
    assert warm["timed"] == 0


def test_records_of_ops_with_a_loop_of_their_own_survive(seen: Any) -> None:
    """They are found once, and what is prepared under them stays so."""
    (found,) = seen["protocols"]
    assert found["runs"] == ["tuned"]
    assert found["answers"] == [{"knob": 7}] * 3
    assert found["is prepared still"]


def test_a_managed_store_with_such_a_record_is_read(seen: Any) -> None:
    """Its winners are."""
    (found,) = seen["managed_store"]
    assert found["ops"] == ["stored"]
    assert found["n"] >= 1


def test_ranks_that_skip_a_collective_op_apart_hear_of_it_alike(seen: Any) -> None:
    """FlashInfer has its ranks meet before it looks at a skip list: they all do, or none does."""
    said = seen["skips_a_collective_op"]
    assert len(said) == 2
    assert all("phase" in text or "plan mismatch" in text for text in said), said


def test_a_tolerance_for_near_ties_is_replayed(seen: Any) -> None:
    """The winner is FlashInfer's own under the engine's context, and another without it."""
    (found,) = seen["near_ties"]
    assert found["went"] == "certified"
    assert found["ours"] == found["alone"] != found["without"]
