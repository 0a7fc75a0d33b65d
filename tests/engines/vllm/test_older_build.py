# SPDX-License-Identifier: Apache-2.0
"""Two ranks of vLLM, one of which runs the package of an older commit: both say so, and come up.

That package is taken out of this checkout's history.
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.coordination.versions import BUILD

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

CHECKOUT = Path(__file__).resolve().parents[3]
#: What a rank is said to have, by commit: the first one knows of no number of the protocol.
OLDER = {"1f43ee7": "older", "92a8e8e": "(protocol 2)"}
REMEDY = "must be the same: install one version on all ranks"
#: A start takes some ten seconds; a rank that is not heard of would be waited for for 300.
BOUND_S = 90.0


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that name with the package as it was then."""
    commit = request.param
    folder: Path = tmp_path_factory.mktemp("older") / commit
    asked = ["git", "-C", str(CHECKOUT), "archive", commit, "warmup_plugin"]
    try:
        done = subprocess.run(asked, check=False, capture_output=True, timeout=30)
    except OSError:
        pytest.skip("git is not installed, and no other place has the older package")
    if done.returncode:
        pytest.skip(f"this checkout has no history as far back as {commit}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_both_ranks_say_which_builds_differ_and_come_up(
    job: Callable[..., Any], older: Path, rank: int
) -> None:
    """Whichever of them is the older one; vLLM then tunes by itself, on rank 0 for all."""
    engine = job(tp=2)
    own = {"script": "as_older_build", "env": {"OLDER_BUILD": str(older)}}
    start = engine.start(per_rank=lambda each: own if each == rank else {})
    assert start.seconds < BOUND_S
    assert [each["report"] for each in start.ranks] == [None, None]
    assert [each["serving"] for each in start.ranks] == ["", ""]
    assert start.ranks[0]["timed"] > 0
    assert start.disputed == set()
    assert engine.own_files()
    for number, each in enumerate(start.ranks):
        (line,) = [text for text in each["lines"] if "as without this package" in text]
        assert REMEDY in line, number
        assert BUILD in line, number
        assert OLDER[older.name] in line, number
