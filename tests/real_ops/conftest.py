# SPDX-License-Identifier: Apache-2.0
"""Servers with FlashInfer's op code on a GPU that is not there, and what they are asked.

Owns the fixtures of this folder: `ask` runs a function of a file of this folder in a process of its
own, on a GPU and a FlashInfer release. A server is started when it is first asked, and imports once
what each of its children then has. Every answer comes within a bound, or is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
MAIN, NEXT = "0.7.2.post1", "0.7.4"
START_S = 90


class Servers:
    """One server for each release and GPU that was asked for."""

    def __init__(self, folder: Path, dependencies: Path, releases: Path) -> None:
        self._folder, self._dependencies, self._releases = folder, dependencies, releases
        self._running: dict[tuple[str, str], subprocess.Popen[str]] = {}

    def ask(
        self, file: str, function: str, *, on: str, release: str = MAIN, limit_s: int = 100,
        **arguments: Any,
    ) -> Any:  # fmt: skip
        """Return what the function returned; fail the test with what it raised."""
        request = {
            "file": file, "function": function, "arguments": arguments, "limit_s": limit_s,
        }  # fmt: skip
        path = self._server(release, on)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(limit_s + 10)
            connection.connect(path)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                line = stream.readline()
        answer = json.loads(line or '{"error": "the process died or took too long"}')
        if "error" in answer:
            pytest.fail(f"{file}.{function}({arguments}) on {on}, {release}:\n{answer['error']}")
        return answer["result"]

    def _server(self, release: str, on: str) -> str:
        """Return the socket of a server, started if it is not there."""
        path = str(self._folder / f"{release}-{on}")
        if (release, on) not in self._running:
            folders = [] if release == MAIN else [str(_folder(self._releases / release))]
            known = os.environ.get("PYTHONPATH", "")
            process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), path, on, str(self._dependencies)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*folders, known])},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._running[release, on] = process
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"no server for {release} on {on}"
        return path

    def close(self) -> None:
        for process in self._running.values():
            process.communicate(timeout=START_S)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.fail(f"{path} is not there: run `make test-real-ops`, which installs it")
    return path


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of this test run, in a folder whose name is short enough for a socket."""
    venv = CHECKOUT / ".venv"
    releases = Path(os.environ.get("WARMUP_TEST_RELEASES") or venv / "releases")
    dependencies = _folder(Path(os.environ.get("WARMUP_TEST_REAL_OPS") or venv / "real-ops"))
    folder = Path(tempfile.mkdtemp(prefix="ops-"))
    started = Servers(folder, dependencies, releases)
    yield started
    started.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ask(servers: Servers) -> Callable[..., Any]:
    """``ask("faults", "starts", on="10.0", ops=[...])``: run it in a process of its own."""
    return servers.ask
