# SPDX-License-Identifier: Apache-2.0
"""What a warm start of one rank has imported by its end, in a process as an engine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_warm_imports import COLD, SHARED

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


def start_alone(root: Path) -> dict[str, Any]:
    """Start a process that warms up alone over the tables below this root."""
    as_the_others = {"CUDA_VISIBLE_DEVICES": "", "FLASHINFER_AUTOTUNE_TIMER": "cuda_event"}
    path = os.pathsep.join([*filter(None, sys.path), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, str(HERE / "warm_alone.py"), str(root)],
        env={**os.environ, **as_the_others, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def starts(
    make_children: Callable[[Path], Children], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Tune in one process; serve in two more, of which the first keeps its look, too."""
    children = make_children(tmp_path_factory.mktemp("imports"))
    children.one("on_alone:one_op")
    return [start_alone(children.root) for _ in range(2)]


def test_both_are_warm_and_the_second_has_its_look_kept(starts: list[dict[str, Any]]) -> None:
    assert [found["warm"] for found in starts] == [True, True]
    assert [found["tasks"]["from_cache"] for found in starts] == [1, 1]
    assert [found["kept"] for found in starts] == [False, True]


def test_the_second_has_imported_no_module_of_a_cold_start(starts: list[dict[str, Any]]) -> None:
    """The first one has: it looks, and cannot know meanwhile that its table answers all."""
    cold = {f"warmup_plugin.{name}" for name in (*COLD, *SHARED)}
    first, second = (cold.intersection(found["modules"]) for found in starts)
    assert "warmup_plugin.steps.tune" in first
    assert second == set()


def test_it_has_imported_nothing_of_others_but_msgspec(starts: list[dict[str, Any]]) -> None:
    """Engines have that already; FlashInfer imports modules of its own in its first call."""
    others = {name.partition(".")[0] for name in starts[1]["modules"]} - sys.stdlib_module_names
    assert others - {"warmup_plugin", "flashinfer"} <= {"msgspec", "typing_extensions"}
