# SPDX-License-Identifier: Apache-2.0
"""The process that is begun before there is something to ask: whose it is, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.conftest import s3_environment
from warmup_plugin import SettingError, Settings, begin_early
from warmup_plugin.engines import gate
from warmup_plugin.fleet import client, waiting
from warmup_plugin.fleet.client import Worker
from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

FOLDER = "file:///nobody/has/this"


def pid_of(worker: Worker) -> int:
    assert worker._process is not None
    return worker._process.pid


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody has waited for has, too."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text[text.rfind(")") + 2] in "ZX"


def has_gone(pid: int, limit_s: float = 20.0) -> bool:
    wait_until(lambda: is_gone(pid), within(limit_s), brief_pause_s=0.05)
    return is_gone(pid)


@pytest.mark.multiprocess
@pytest.mark.parametrize("tp", [1, 2])
def test_a_start_asks_the_one_that_waits(
    start: Callable[..., Started], folder: dict[str, str], tmp_path: Path, tp: int
) -> None:
    """Rank 0 begins one as the model loads, and none with its warm-up; the others none at all."""
    cold = start(tmp_path / "a", {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}, tp=tp)
    warm = start(tmp_path / "b", folder, script="begun_early", tp=tp)
    assert [seen["begun"] for seen in warm.seen] == [[1, 1], *[[0, 0]] * (tp - 1)]
    assert (warm.fleet.state, warm.timed_of_tasks) == ("fetched", 0)
    assert warm.certificate == cold.certificate


@pytest.mark.parametrize(
    ("rank", "given"),
    [
        (1, {"fleet": FOLDER}),
        (0, {}),
        (0, {"fleet": FOLDER, "fleet_role": "off"}),
        (0, {"fleet": FOLDER, "mode": "off"}),
        (0, {"fleet": "s3://tables/without-credentials"}),
    ],
    ids=["rank 1", "no fleet", "role off", "mode off", "no credentials"],
)
def test_none_is_begun_that_would_not_be_asked(rank: int, given: dict[str, Any]) -> None:
    """It would only take memory."""
    begin_early(rank, Settings.from_env({}, **given))
    assert waiting.taken() is None


def test_one_is_begun_for_all_that_ask_for_it() -> None:
    """And the next session's is its own."""
    begin_early(0, Settings.from_env({}, fleet=FOLDER))
    begin_early(0, Settings.from_env({}, fleet=FOLDER))
    found = waiting.taken()
    assert found is not None
    assert waiting.taken() is None
    found.close()


def test_without_a_fleet_nothing_of_it_is_imported() -> None:
    """A runner may call it always."""
    code = (
        "import json, sys, warmup_plugin; warmup_plugin.begin_early(0); "
        "print(json.dumps([n for n in sys.modules if 'fleet' in n or n == 'subprocess']))"
    )
    env = {name: value for name, value in os.environ.items() if "FLEET" not in name}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert json.loads(done.stdout) == []


def test_the_settings_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none are given; a bad one is an error, as in the warm-up."""
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", FOLDER)
    begin_early(0)
    found = waiting.taken()
    assert found is not None
    found.close()
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", "ftp://nobody")
    with pytest.raises(SettingError, match="WARMUP_PLUGIN_FLEET"):
        begin_early(0)


def test_one_that_has_ended_is_no_use() -> None:
    """The session begins another one."""
    begin_early(0, Settings.from_env({}, fleet=FOLDER))
    pid = pid_of(waiting._waiting[0])
    os.kill(pid, signal.SIGKILL)
    assert has_gone(pid)
    assert waiting.taken() is None


def test_it_waits_for_an_hour_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up comes in an engine that needs none."""
    paths, _, rest = client._CODE.partition("; ")
    less = "from warmup_plugin.fleet import answering as a; a._IDLE_S = a._LOOK_S = 0.5"
    monkeypatch.setattr(client, "_CODE", "; ".join([paths, rest.replace("; ", f"; {less}; ", 1)]))
    worker = Worker()
    assert has_gone(pid_of(worker))
    worker.close()


def test_it_ends_where_its_engine_has_ended_before_it_was_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By then it is another process's child, and the pipe may be held by one of the engine's."""
    with monkeypatch.context() as patched:
        patched.setattr("os.getpid", lambda: 1)
        worker = Worker()
    assert has_gone(pid_of(worker), 5.0)
    worker.close()


#: An engine that begins it, and then has a child of its own that lives on.
_ENGINE = """
import os, subprocess, sys, time
from warmup_plugin import begin_early
from warmup_plugin.fleet import waiting
begin_early(0)
process = waiting._waiting[0]._process
if sys.argv[1] == "forks":
    child = os.fork()
    if not child:
        os.write(1, b"has one\\n" if waiting._waiting else b"has none\\n")
        time.sleep(60)
        os._exit(0)
else:
    fds = (process.stdin.fileno(), process.stdout.fileno())
    child = subprocess.Popen(["sleep", "60"], pass_fds=fds, stdout=subprocess.DEVNULL).pid
    os.write(1, b"has none\\n")
os.write(1, f"{process.pid} {child}\\n".encode())  # at once: both of them write
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["forks", "pipe"])
def test_it_ends_with_its_engine_though_a_child_lives(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child lets go of it; a pipe that another program holds does not keep it."""
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", FOLDER)
    with subprocess.Popen(
        [sys.executable, "-c", _ENGINE, way], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        lines = sorted([engine.stdout.readline().strip(), engine.stdout.readline().strip()])
        assert lines[1] == "has none"
        pid, child = map(int, lines[0].split())
        time.sleep(0.2)
        assert not is_gone(pid)
        engine.kill()
        try:
            assert has_gone(pid)
            assert not is_gone(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_ends_nothing_of_its_parents() -> None:
    """It may begin one of its own."""
    begin_early(0, Settings.from_env({}, fleet=FOLDER))
    (worker,) = waiting._waiting
    child = os.fork()
    if not child:
        is_let_go = not waiting._waiting and worker._process is None
        os._exit(0 if is_let_go else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.waits


def test_it_asks_with_the_environment_of_the_moment(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may have set credentials since, or taken a proxy out."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    worker = Worker()
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setitem(os.environ, "WARMUP_TEST_BYTES", os.fsdecode(b"\xff"))
    request = {
        "do": "list", "url": "s3://tables/empty", "credentials": "given", "limit_s": 20.0,
        "timeout_s": 20.0, "table_bytes": 1 << 20,
    }  # fmt: skip
    assert worker.ask(request, 20.0) == {"state": "listed", "rows": []}


def test_a_store_that_cannot_be_opened_ahead_is_told_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process does not end of it, and the environment may be mended until then."""
    for name, value in s3_environment("no address").items():
        monkeypatch.setenv(name, value)
    begin_early(0, Settings.from_env({}, fleet="s3://tables/x", fleet_wait_s=5.0))
    worker = waiting.taken()
    assert worker is not None
    request = {
        "do": "list", "url": "s3://tables/x", "credentials": "given", "limit_s": 5.0,
        "timeout_s": 4.5, "table_bytes": 1 << 20,
    }  # fmt: skip
    answer = worker.ask(request, 20.0)
    assert (answer["state"], bool(answer["reason"])) == ("failed", True)


def test_what_goes_wrong_as_a_model_loads_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The engine loads its model all the same."""

    def rank() -> int:
        raise RuntimeError("no world")

    gate.begin_with_loading(rank)
    assert "no world" in caplog.text
