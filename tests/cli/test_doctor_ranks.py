# SPDX-License-Identifier: Apache-2.0
"""`doctor --ranks` as a launcher runs it: one process for each rank, on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.multiprocess

COMMAND = [sys.executable, "-m", "warmup_plugin", "doctor", "--ranks", "--json"]
TORCHRUN, SLURM = ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")
#: Of the launcher that runs these tests, should there be one.
LAUNCHER = (*TORCHRUN, *SLURM, "MASTER_ADDR", "MASTER_PORT")
PLAIN = {name: value for name, value in os.environ.items() if name not in LAUNCHER}

Ended = list[tuple[int, str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    size: int,
    *,
    but: frozenset[int] = frozenset(),
    names: tuple[str, str] = TORCHRUN,
    env: Callable[[int], dict[str, str]] = lambda _rank: {},
) -> Ended:
    """Run the command on all ranks ``but`` some; return exit code, output and errors of each."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=PLAIN | meet | dict(zip(names, (str(rank), str(size)), strict=True)) | env(rank),
        )
        for rank in range(size)
        if rank not in but
    ]  # fmt: skip
    return [(rank.wait(100), *rank.communicate(timeout=100)) for rank in started]


def findings(ended: Ended) -> dict[str, dict[str, Any]]:
    """Return what rank 0 has printed, by what was looked at."""
    return {found["what"]: found for found in json.loads(ended[0][1])["findings"]}


@pytest.mark.parametrize(
    ("size", "names"),
    [(1, TORCHRUN), (4, TORCHRUN), (2, SLURM)],
    ids=["torchrun 1", "torchrun 4", "slurm 2"],
)
def test_ranks_of_one_machine(size: int, names: tuple[str, str]) -> None:
    ended = launch(size, names=names)
    assert [code for code, _, _ in ended] == [0] * size
    assert [out for _, out, _ in ended[1:]] == [""] * (size - 1)
    found = findings(ended)
    assert {each["state"] for each in found.values()} == {"good"}
    assert found["session"]["words"].startswith("opens over loopback, in ")


def test_variables_that_differ_are_named_without_their_values() -> None:
    """As where a launcher does not hand the variables on to its workers."""
    ended = launch(2, env=lambda rank: {"WARMUP_PLUGIN_CACHE_ROOT": f"/secret/{rank}"})
    assert [code for code, _, _ in ended] == [1, 1]
    found = findings(ended)["settings"]
    assert found["state"] == "bad"
    assert "rank 1 " in found["words"]
    assert found["words"].endswith("differ in WARMUP_PLUGIN_CACHE_ROOT")
    assert "runtime_env" in found["fix"]
    assert "secret" not in ended[0][1]


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever() -> None:
    """Each rank says it for itself, since they cannot tell each other."""
    ended = launch(3, but=frozenset({2}), env=lambda _rank: {"WARMUP_PLUGIN_SILENCE_S": "3"})
    assert [code for code, _, _ in ended] == [1, 1]
    for rank, (_, out, _) in enumerate(ended):
        (found,) = json.loads(out)["findings"]
        assert found["words"].startswith(f"rank {rank} has not met the others at 127.0.0.1:")
        assert "every rank must run this command" in found["fix"]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "which sets RANK and WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "which sets RANK and WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ],
    ids=["no launcher", "no such rank", "nowhere to meet"],
)
def test_without_a_launcher_it_is_a_usage_error(env: dict[str, str], words: str) -> None:
    done = subprocess.run(
        COMMAND, env=PLAIN | env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
