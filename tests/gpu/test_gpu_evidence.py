# SPDX-License-Identifier: Apache-2.0
"""The measurement on a GPU: its command behind a stand-in for one, its verdicts, and for real.

Only the last test says anything about a GPU; it skips itself where there is none.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.gpu_evidence.verdict import judge

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    status: int
    said: str
    folder: Path

    @property
    def result(self) -> Any:
        return json.loads((self.folder / "evidence.json").read_text())

    @property
    def section(self) -> str:
        return (self.folder / "evidence.md").read_text()


def run(folder: Path, *options: str, limit_s: float = 280.0) -> Run:
    command = [sys.executable, "-m", "warmup_plugin.gpu_evidence",
               "--json", "evidence.json", "--markdown", "evidence.md", *options]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(CHECKOUT)]),
             "FLASHINFER_AUTOTUNE_TIMER": "cuda_event"},
    )  # fmt: skip
    return Run(done.returncode, done.stdout + done.stderr, folder)


# -- behind a stand-in ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stood_in(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(
        tmp_path_factory.mktemp("evidence"), "--stand-in", f"{HERE / 'stand_in.py'}:install",
        "--seconds", "240", "--op-seconds", "8",
    )  # fmt: skip


@pytest.mark.timeout(300)
def test_an_op_is_compared_in_three_ways(stood_in: Run) -> None:
    """Cold tunes as FlashInfer alone does, and the default besides; warm tunes nothing."""
    assert stood_in.status == 0, stood_in.said
    for name in ("sound", "sound too"):
        alone, cold, warm = (stood_in.result["ops"][name][w] for w in ("alone", "cold", "warm"))
        assert (alone["timed"], alone["synthesised"]) == (16, 4)
        assert (cold["timed"], cold["synthesised"]) == (20, 4)
        assert (warm["timed"], warm["synthesised"]) == (0, 0)
        assert cold["entries"] == warm["entries"] == alone["entries"]
        assert alone["served"] == cold["served"] == warm["served"]
        assert len(alone["served"]) == len(stood_in.result["served"])
        verdict = stood_in.result["verdicts"][name]
        assert (verdict["broken"], verdict["why_not"]) == ([], "")
        assert verdict["equal"] == verdict["asked"] == len(alone["served"])
        assert (verdict["ratio"], verdict["noise"]) == (pytest.approx(1), pytest.approx(0))
        assert verdict["gain"] > 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cannot be called", "FlashInfer alone: RuntimeError: this card has no such kernel"),
        ("hangs", "FlashInfer alone: stopped after 8 s"),
        ("kills its process", "FlashInfer alone: its process died"),
        ("is not tuned", "FlashInfer alone times nothing of it here"),
    ],
)
@pytest.mark.timeout(300)
def test_what_cannot_be_compared_has_a_reason(stood_in: Run, name: str, why: str) -> None:
    """And what comes after it is compared all the same."""
    assert stood_in.result["verdicts"][name]["why_not"].startswith(why)
    assert f"- {name}: {why}" in stood_in.section


@pytest.mark.timeout(300)
def test_the_section_says_that_it_is_no_gpus(stood_in: Run) -> None:
    assert "not one figure here is a GPU's" in stood_in.section
    assert stood_in.result["stand_in"].endswith("stand_in.py:install")
    assert "another" not in stood_in.result["ops"]
    assert "| sound | 16, 20, 0 |" in stood_in.section
    assert stood_in.section in stood_in.said


@pytest.mark.timeout(300)
def test_the_budget_ends_the_run(tmp_path: Path) -> None:
    """Nothing is tried once the seconds are over, and nothing compared is no success."""
    found = run(
        tmp_path, "--stand-in", f"{HERE / 'stand_in.py'}:install", "--seconds", "0.1",
    )  # fmt: skip
    assert found.status == 1
    assert "no answer from the first child" in found.said


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert (found.status, found.said) == (2, "no CUDA device: nothing is measured\n")
    assert list(tmp_path.iterdir()) == []


# -- verdicts ------------------------------------------------------------------------------------

ROW = {"timed": 16, "synthesised": 4, "seconds": 1.0, "served": [[1, "op", "R", 2]], "told": []}
AGAIN = {"1": {"ours": 1.0, "default": 2.0, "alone": 1.0, "alone again": 1.01}}
GOOD: dict[str, Any] = {
    "alone": {**ROW}, "cold": {**ROW}, "warm": {**ROW, "timed": 0, "synthesised": 0, "again": AGAIN},
}  # fmt: skip


def changed(way: str, **values: Any) -> dict[str, Any]:
    found = copy.deepcopy(GOOD)
    found[way].update(values)
    return found


def test_what_holds_is_not_broken() -> None:
    found = judge(GOOD, 0.03)
    assert (found.broken, found.why_not, found.equal, found.asked) == ((), "", 1, 1)
    assert (found.ratio, found.gain) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("ways", "law"),
    [
        (changed("warm", timed=3), "3 tactics timed, 0 inputs synthesised"),
        (changed("warm", synthesised=1), "0 tactics timed, 1 inputs synthesised"),
        (changed("warm", served=[[1, "op", "R", 0]]), "a warm start serves otherwise at 1"),
        (changed("cold", error="ValueError: x"), "the cold start: ValueError: x"),
        (changed("warm", error="ValueError: x"), "the warm start: ValueError: x"),
        (changed("warm", again={"1": {**AGAIN["1"], "ours": 1.2}}), "1.20 of FlashInfer alone's"),
        (changed("warm", again={"1": {**AGAIN["1"], "ours": -1.0}}), "impossible times"),
        (changed("warm", again={"1": {**AGAIN["1"], "alone": 0.0}}), "impossible times"),
    ],
)
def test_a_broken_law_is_named(ways: dict[str, Any], law: str) -> None:
    (found,) = judge(ways, 0.03).broken
    assert law in found


@pytest.mark.parametrize(
    "ways",
    [
        changed("warm", timed=3, told=["raw batch in the key"]),
        changed("warm", again={"1": {**AGAIN["1"], "ours": 1.08}}),  # margin and least noise
        changed("warm", again={"1": {**AGAIN["1"], "ours": 1.3, "alone again": 1.11}}),  # noise
    ],
)
def test_what_is_told_or_within_noise_breaks_none(ways: dict[str, Any]) -> None:
    assert judge(ways, 0.03).broken == ()


def test_what_was_not_run_is_no_verdict() -> None:
    assert "not tried" in judge({"alone": ROW, "cold": ROW}, 0.03).why_not


# -- for real ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.timeout(560)
def test_on_a_gpu(tmp_path: Path) -> None:
    """FlashInfer's own ops on the card at hand, within the command's own budget."""
    found = run(tmp_path, limit_s=540.0)
    assert found.status == 0, found.said
    assert "stand-in" not in found.section
    assert any(not verdict["why_not"] for verdict in found.result["verdicts"].values())
