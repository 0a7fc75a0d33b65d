# SPDX-License-Identifier: Apache-2.0
"""Our file is FlashInfer's: a process without this package serves the same tactics from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


@pytest.fixture(scope="module")
def both(
    make_children: Callable[[Path], Children], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Children, Any, Mapping[str, Any]]:
    """Tune and publish in one process, serve in another that is FlashInfer's alone."""
    children = make_children(tmp_path_factory.mktemp("alone"))
    ours = children.one("on_alone:publish")
    path = os.pathsep.join([*filter(None, sys.path), str(CHECKOUT)])
    found = subprocess.run(
        [sys.executable, str(HERE / "alone.py"), str(children.table_path)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return children, ours, json.loads(found.stdout.splitlines()[-1])


def plain(served: Any) -> Any:
    return json.loads(json.dumps(served))


def test_flashinfer_alone_serves_the_same_tactics(both: tuple[Any, Any, Any]) -> None:
    """Every kind of op: hybrid batches, two classes, cold L2, compound tactics."""
    _, ours, alone = both
    assert alone["ours"] == []
    assert alone["loaded"] is True
    assert alone["served"] == plain(ours["served"])
    assert sum(tactic != -1 for answers in alone["served"].values() for _, tactic in answers) > 25


def test_runner_options_are_told_apart(both: tuple[Any, Any, Any]) -> None:
    """Two layouts of one class and one profile have an entry each, and not the same winners."""
    children, _, alone = both
    assert len(children.keys("options")) == 8
    answers = alone["served"]["told apart"]
    assert answers[:4] != answers[4:]
    assert all(tactic != -1 for _, tactic in answers)


def test_flashinfers_own_trtllm_gemm_runner_is_told_apart(both: tuple[Any, Any, Any]) -> None:
    """The real class with its real cache key extras, for both values of ``use_8x4_sf_layout``."""
    children, ours, alone = both
    keys = children.keys("fp4_gemm")
    extras = {key.rsplit("), (", 1)[1].split(",")[0] for key in keys}
    assert extras == {"True", "False"}
    assert all("'TrtllmGemmRunner'" in key for key in keys)
    answers = alone["served"]["fp4"]
    assert [runner for runner, _ in answers] == ["TrtllmGemmRunner"] * 4
    assert {tactic for _, tactic in answers[:2]} <= {0, 1, 2}
    assert {tactic for _, tactic in answers[2:]} <= {3, 4, 5, 6}
    assert ours["report"].unshared == {}


def test_with_this_package_the_same_file_is_warm(both: tuple[Any, Any, Any]) -> None:
    children, ours, _ = both
    warm = children.one("on_alone:publish")
    assert warm["report"].tactics_timed == 0
    assert warm["report"].tasks["from_cache"] == warm["report"].tasks["seen"]
    assert warm["served"] == ours["served"]
