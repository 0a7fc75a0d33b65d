# SPDX-License-Identifier: Apache-2.0
"""Two environments with the same packages at different paths have one identity and one table.

FlashInfer 0.7.4 has a digest of each package's installation record in its stamp, and `pip` writes
the path of the environment into some of what a record names.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.release.environments import environment, wheel
from tests.release.running import run_on

pytestmark = [pytest.mark.multiprocess, pytest.mark.release]


@functools.cache
def seen_on(release: Path) -> dict[str, Any]:
    """A start here, one there, one here again, and one where the package holds something else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package, other = (wheel(folder / text, f"WHAT = {text!r}") for text in ("one", "other"))
        here = environment(folder / "here", package)
        there = environment(folder / "another" / "path", package)
        changed = environment(folder / "changed", other)
        starts = {"here": here, "there": there, "here again": here, "changed": changed}
        return {start: _start(release, folder / "root", python) for start, python in starts.items()}


def _start(release: Path, root: Path, python: Path) -> Any:
    root.mkdir(mode=0o700, exist_ok=True)
    found = run_on(release, "environment_starts.py", root, python=python)
    reports = [rank["report"] for rank in found["ranks"]]
    assert {report["agreement"] for report in reports} == {"certified"}
    (found["identity"],) = {report["identity"] for report in reports}
    (path,) = {report["path"] for report in reports}
    found["table"] = path, hashlib.sha256(Path(path).read_bytes()).hexdigest()
    found["timed"] = sum(report["tactics_timed"] for report in reports)
    return found


@pytest.fixture
def seen(newest_release: Path) -> dict[str, Any]:
    return seen_on(newest_release)


def test_the_same_packages_elsewhere_are_one_identity_with_one_table(seen: Any) -> None:
    """Tuned once, then warm in both; FlashInfer's own fingerprints differ."""
    here, there, again = seen["here"], seen["there"], seen["here again"]
    assert here["fingerprint"] == again["fingerprint"] != there["fingerprint"]
    assert here["identity"] == there["identity"] == again["identity"]
    assert here["table"] == there["table"] == again["table"]
    assert here["timed"] > 50
    assert (there["timed"], again["timed"]) == (0, 0)
    served = [rank["served"] for start in (here, there, again) for rank in start["ranks"]]
    assert all(answers == served[0] for answers in served)


def test_flashinfer_itself_loads_the_table_where_it_was_made(seen: Any) -> None:
    """After a start elsewhere, too. Elsewhere its own comparison of stamps refuses it."""
    path, _ = seen["here"]["table"]
    assert seen["here"]["loads"] == seen["here again"]["loads"] == {path: True}
    assert seen["there"]["loads"] == {path: False}


def test_another_content_of_the_same_version_is_another_identity(seen: Any) -> None:
    """Tuned anew, into a table of its own."""
    changed, here = seen["changed"], seen["here"]
    assert changed["identity"] != here["identity"]
    assert changed["timed"] == here["timed"]
    assert changed["loads"] == {here["table"][0]: False, changed["table"][0]: True}
