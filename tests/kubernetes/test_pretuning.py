# SPDX-License-Identifier: Apache-2.0
"""The Job that tunes, and the init container that unpacks: their commands, run on this machine.

`toy_server.py` stands where the engine is; paths and port are those of the test. The archive that
the one leaves is what the other unpacks, and a start with the deployment's settings is warm.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes import manifests
from warmup_plugin.engines.embedded import EngineConfig, launch

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(240)]

SERVER = Path(__file__).with_name("toy_server.py")
PORTS = {"vllm": "8000", "sglang": "30000"}
ROOTS = {"vllm": "VLLM_CACHE_ROOT", "sglang": "SGLANG_CACHE_DIR"}
CONFIG = EngineConfig(tp=2, timing=f"{SERVER}:slow_timing")


def here(words: list[str], folder: Path, ports: dict[str, str]) -> list[str]:
    """Return a command with the pod's places replaced by the test's."""
    pairs = [(f":{theirs}/", f":{ours}/") for theirs, ours in ports.items()]
    pairs += [(rf"(^| ){place}", rf"\1{folder}{place}") for place in ("/archive", "/tables")]
    found = list(words)
    for theirs, ours in pairs:
        found = [re.sub(theirs, ours, word) for word in found]
    return found


def pod(path: Path) -> dict[str, Any]:
    (found,) = manifests.pods(path)
    return found


def environment(engine: str, folder: Path, server: str) -> dict[str, str]:
    """Return that of the Job: the engine's command is a script that starts the toy server."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / engine).write_text(f"#!/bin/sh\n{server}\n")
    (programs / engine).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    (container,) = pod(manifests.EXAMPLES / engine / "job-pretune.yaml")["containers"]
    own = {row["name"]: f"{folder}{row['value']}" for row in container["env"]}
    return {**os.environ, "PATH": path, "TOY_CAPTURE_S": "0", **own}


def run_job(engine: str, folder: Path, server: str, port: str) -> subprocess.Popen[str]:
    (container,) = pod(manifests.EXAMPLES / engine / "job-pretune.yaml")["containers"]
    command = here(container["command"], folder, {PORTS[engine]: port})
    return subprocess.Popen(
        command, env=environment(engine, folder, server), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the volumes are."""
    (tmp_path / "archive").mkdir()
    return tmp_path


@pytest.mark.parametrize("engine", manifests.ENGINES)
def test_tuned_packed_unpacked_and_warm(engine: str, folder: Path) -> None:
    """The whole way, by the commands and settings of the two manifests."""
    port = free_port()
    server = f'exec {sys.executable} {SERVER} "${ROOTS[engine]}" on 2 {port} 0 {folder}/moments'
    job = run_job(engine, folder, server, port)
    try:
        said, _ = job.communicate(timeout=150)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, said
    assert (folder / "archive" / "tables.tar").stat().st_size > 1000

    deployed = pod(manifests.EXAMPLES / engine / "deployment-pretuned.yaml")
    (unpack,) = deployed["initContainers"]
    command = here(unpack["command"], folder, {})
    done = subprocess.run(
        [sys.executable, "-m", "warmup_plugin", *command[1:]],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert command[0] == "warmup-plugin"
    assert done.returncode == 0, done.stderr

    (container,) = deployed["containers"]
    env = {row["name"]: row["value"] for row in container["env"]}
    assert env["WARMUP_PLUGIN_MODE"] == "require-complete"
    env["WARMUP_PLUGIN_LAYERS"] = f"{folder}{env['WARMUP_PLUGIN_LAYERS']}"
    passed = str(folder / "archive" / "root" / "all_reduce")  # the collective op's own file
    config = replace(CONFIG, all_reduce_dir=passed)
    for rank in launch(config, root=folder / "empty", env=env):
        assert rank.counts["profile_single_kernel"] == 0
        assert rank.report.tasks["from_cache"] == rank.report.tasks["seen"] > 0


def test_a_server_that_ends_fails_the_job(folder: Path) -> None:
    """At once, and nothing is packed."""
    job = run_job("vllm", folder, "echo no GPU here; exit 7", free_port())
    said, _ = job.communicate(timeout=60)
    assert job.returncode not in (0, None), said
    assert list((folder / "archive").iterdir()) == []


def test_the_job_hands_sigterm_on(folder: Path) -> None:
    """`tune` is the pod's first process: the server hears of the pod's end only from it."""
    server = f"trap 'echo heard > {folder}/heard; exit 0' TERM; while true; do sleep 0.2; done"
    job = run_job("vllm", folder, server, free_port())
    assert job.stdout is not None
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(timeout=3)
    os.kill(job.pid, signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert (folder / "heard").exists()
