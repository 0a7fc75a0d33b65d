# SPDX-License-Identifier: Apache-2.0
"""Strangers at the port of the session's store: no word of theirs is acted on, at any step.

A start with them is certified as without them, or all ranks go on without this package and say that
strangers are the reason; it is over within the bounds of `docs/protocol.md` either way.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.runtime.polling import wait_until, within

pytestmark = pytest.mark.multiprocess

RANK = f"{Path(__file__).with_name('on_strangers.py')}:start"
STRANGER = Path(__file__).with_name("stranger.py")
#: A stranger has not been at all keys of a cold start on four ranks for as long as that.
SILENCE_S = 20.0
#: One that does not stop is borne for so long.
BRIEF_S = 4.0
SAID = "was not written by its ranks"
CONFIG = {"layers": 1, "hidden": 32, "ffn": 32, "vocab": 32, "timing": "deterministic"}
Ranks = list[dict[str, Any]]
#: Left out of a run unless asked for: the rows that are in it have the same in fewer ranks.
SOAK = pytest.mark.soak


def run(size: int, root: Path, silence_s: float = SILENCE_S, **arguments: Any) -> Ranks:
    config = EngineConfig(dp=size, **CONFIG)  # type: ignore[arg-type]  # of several types
    env = {"WARMUP_PLUGIN_SILENCE_S": str(silence_s), "WARMUP_PLUGIN_GRACE_S": "4"}
    found: Ranks = launch(
        config, root=root, env=env, script=RANK, arguments=arguments, timeout_s=90.0
    )
    return found


@contextlib.contextmanager
def stranger(folder: Path, how: str) -> Iterator[Any]:
    """Have a stranger there in the body; yields a function that returns what it has done."""
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(STRANGER), str(folder), how])

    def did() -> dict[str, int]:
        (folder / "over").touch()
        wait_until((folder / "did").exists, within(30.0))
        found: dict[str, int] = json.loads((folder / "did").read_text())
        return found

    try:
        yield did
    finally:
        process.kill()
        process.wait(20)


def assert_certified_or_without(ranks: Ranks) -> bool:
    """Return whether the start was certified, on all ranks; else all say why it was not."""
    if all(rank["agreement"] == "certified" for rank in ranks):
        assert {rank["error"] for rank in ranks} == {""}
        return True
    assert all(rank["error"].startswith("SessionError: ") for rank in ranks), ranks
    assert all(SAID in rank["error"] for rank in ranks), ranks
    return False


@pytest.mark.parametrize(
    ("size", "how"),
    [(2, "once"), pytest.param(2, "take", marks=SOAK), pytest.param(4, "once", marks=SOAK),
     pytest.param(4, "take", marks=SOAK)],
)  # fmt: skip
def test_a_stranger_at_each_key_of_each_step(tmp_path: Path, size: int, how: str) -> None:
    """Cold, then warm. The ranks write again what is theirs, and nothing forged counts."""
    for kind in ("cold", "warm"):
        with stranger(tmp_path / kind, how) as did:
            ranks = run(size, tmp_path / "root", folder=str(tmp_path / kind), rests_s=0.1)
            keys = did()
        steps = {"agree", "survey0"} if assert_certified_or_without(ranks) else set()
        assert {key.partition("/")[0] for key in keys} >= {"open", "card", *steps}, keys
        assert all(rank["seconds"] < 60 for rank in ranks), ranks
        assert any(SAID in " ".join([rank["error"], *rank["warnings"]]) for rank in ranks), ranks


def test_ranks_whose_claims_of_tasks_are_taken_away_tune_the_same_ones(tmp_path: Path) -> None:
    """That costs their time: of two results for one task all serve the same.

    A claim that the other rank has seen before it is gone is one that counts.
    """
    alone = run(2, tmp_path / "alone")
    ranks = run(2, tmp_path / "root", loses_claims=True)
    assert [rank["agreement"] for rank in ranks] == ["certified"] * 2, ranks
    assert [rank["missing"] for rank in ranks] == [0, 0]
    assert {rank["certificate"] for rank in ranks} == {alone[0]["certificate"]}
    timed = sum(rank["timed"] for rank in alone)
    assert all(timed / 2 < rank["timed"] <= timed for rank in ranks), (ranks, timed)
    assert sum(rank["timed"] for rank in ranks) > 1.5 * timed
    warm = run(2, tmp_path / "root")
    assert [rank["timed"] for rank in warm] == [0, 0]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=SOAK)])
def test_a_stranger_that_does_not_stop(tmp_path: Path, size: int) -> None:
    """It writes for as long as there is a store: all ranks say so within the bounds."""
    with stranger(tmp_path / "stranger", "always") as did:
        ranks = run(size, tmp_path / "root", BRIEF_S, folder=str(tmp_path / "stranger"))
        assert sum(did().values()) > 100
    assert_certified_or_without(ranks)
    assert all(rank["seconds"] < 60 for rank in ranks), ranks


@pytest.mark.parametrize("how", [pytest.param("idle", marks=SOAK), "noise"])
def test_strangers_who_say_nothing_or_noise(tmp_path: Path, how: str) -> None:
    """Neither what a start comes to nor how long it takes is another."""
    alone = run(2, tmp_path / "alone")
    with stranger(tmp_path / "stranger", how) as did:
        ranks = run(2, tmp_path / "root", folder=str(tmp_path / "stranger"), rests_s=0.05)
        assert did()["connections"] >= (300 if how == "idle" else 10)
    assert [rank["agreement"] for rank in ranks] == ["certified"] * 2
    assert [rank["certificate"] for rank in ranks] == [rank["certificate"] for rank in alone]
    assert [rank["warnings"] for rank in ranks] == [rank["warnings"] for rank in alone]
    assert all(rank["seconds"] < 20 for rank in ranks), ranks


def test_a_start_on_one_machine_listens_on_the_loopback_interface_alone(tmp_path: Path) -> None:
    """One port, of rank 0's; the engine's own were there before."""
    ranks = run(2, tmp_path / "root")
    assert [len(rank["listens"]) for rank in ranks] == [1, 0]
    assert ranks[0]["listens"][0].startswith("0100007F:")
