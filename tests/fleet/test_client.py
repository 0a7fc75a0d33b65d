# SPDX-License-Identifier: Apache-2.0
"""The process that asks the fleet: bounded, ended, and never more than a reason."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.fleet import client
from warmup_plugin.fleet.client import Worker


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A request of a store that never answers, with requests that are patient."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield {
            "do": "list", "url": "s3://tables", "credentials": "given", "limit_s": 60.0,
            "timeout_s": 60.0, "table_bytes": 1 << 20,
        }  # fmt: skip


def pid_of(worker: Worker) -> int:
    assert worker._process is not None
    return worker._process.pid


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.timeout(30)
def test_a_process_that_does_not_answer_is_ended(silent: dict[str, Any]) -> None:
    """By the engine's side, whatever the client library waits for; and it leaves no zombie."""
    worker = Worker()
    pid = pid_of(worker)
    answer = worker.ask(silent, 1.0)
    assert answer == {"state": "failed", "reason": "no answer within 1.0 s"}
    assert is_gone(pid)


@pytest.mark.timeout(30)
def test_a_process_whose_engine_is_gone_ends_by_itself(silent: dict[str, Any]) -> None:
    """The alarm is its own: nobody else is there to kill it."""
    worker = Worker()
    answer = worker.ask({**silent, "limit_s": 0.5}, 20.0)
    assert answer == {"state": "failed", "reason": "its time was up"}


def test_a_process_that_was_never_asked_ends_with_its_engine(tmp_path: Path) -> None:
    """Its standard input is closed then."""
    code = (
        "import os, signal; from warmup_plugin.fleet.client import Worker; w = Worker(); "
        "print(w._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False,
                          cwd=tmp_path)  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not is_gone(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone(int(done.stdout))


def test_one_that_was_never_asked_is_ended(silent: dict[str, Any]) -> None:
    """A session that fails before step 1 leaves no process; asked later it has a reason."""
    worker = Worker()
    pid = pid_of(worker)
    worker.close()
    worker.close()
    assert is_gone(pid)
    assert worker.ask(silent, 1.0)["state"] == "failed"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit(3)", "its process ended with status 3"),
        ("print('hello')", "its process ended with status 0"),
        ("print('[]')", "its process ended with status 0"),
        ("import os; os.abort()", "its process ended with status -6"),
    ],
)
def test_a_process_that_says_nothing_of_use(
    code: str, says: str, silent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is a reason, never an exception."""
    monkeypatch.setattr(client, "_CODE", code)
    answer = Worker().ask(silent, 20.0)
    assert (answer["state"], answer["reason"]) == ("failed", says)


def test_the_extra_that_is_not_installed_is_named(
    silent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what installs it."""
    monkeypatch.setattr(client, "_CODE", "import nothing_of_that_name")
    monkeypatch.setattr(client, "_has_client", lambda _kind: False)
    assert "pip install 'warmup-plugin[fleet]'" in Worker().ask(silent, 20.0)["reason"]


def test_no_process_to_be_had_is_a_reason(
    silent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the limit of a container."""
    monkeypatch.setattr(sys, "executable", "/nobody/has/this/python")
    answer = Worker().ask(silent, 1.0)
    assert answer["state"] == "failed"
    assert answer["reason"].startswith("no process can be started")
