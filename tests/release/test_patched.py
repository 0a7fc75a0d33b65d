# SPDX-License-Identifier: Apache-2.0
"""A FlashInfer that no test has run on is told apart by what it does, before anything is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.release.patched import COMMENT, PATCHES, Patch, patched
from tests.release.running import run_on

pytestmark = [pytest.mark.multiprocess, pytest.mark.release]


def seen(release: Path, tmp_path: Path, patch: Patch) -> Any:
    """What two ranks see on it; the first start, and another one."""
    folder = patched(release, tmp_path / "release", patch)
    return run_on(folder, "patched_starts.py", tmp_path / "job")


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_what_no_release_does_is_told_apart(
    newest_release: Path, tmp_path: Path, patch: Patch
) -> None:
    """The engine's own tuning serves, as without this package; it says why, once, and stores none.

    ``alone`` is FlashInfer's own tuning of the same forward.
    """
    found = seen(newest_release, tmp_path, patch)
    assert found["digest is known"] is False
    assert patch.named in found["lack"]
    assert newest_release.name in found["lack"]
    for ranks in found["starts"]:
        for rank in ranks:
            assert rank["report"]["agreement"] == "unguarded"
            assert patch.named in rank["report"]["reason"]
            assert rank["report"]["path"] == ""
            assert rank["served"] == found["alone"]
        said = [[text for text in rank["said"] if patch.named in text] for rank in ranks]
        assert [len(texts) for texts in said] == [1, 0], "rank 0 says it, once"
    assert found["files"] == []


def test_a_release_that_does_what_all_do_is_used(newest_release: Path, tmp_path: Path) -> None:
    """Its source is not known, and it has been tried: tuned once, then warm."""
    found = seen(newest_release, tmp_path, COMMENT)
    assert (found["digest is known"], found["lack"]) == (False, "")
    cold, warm = found["starts"]
    assert {rank["report"]["agreement"] for rank in (*cold, *warm)} == {"certified"}
    assert sum(rank["report"]["tactics_timed"] for rank in cold) > 50
    assert [rank["report"]["tactics_timed"] for rank in warm] == [0, 0]
