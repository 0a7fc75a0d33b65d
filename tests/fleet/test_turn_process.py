# SPDX-License-Identifier: Apache-2.0
"""The process that holds the lease for an engine: what becomes of the lease as the engine ends.

Hosts here are processes of the client without an engine (`hosts.py`), against real servers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.hosts import request, turn_request
from tests.fleet.tables import LIMIT, WHOSE, lease_of, write
from warmup_plugin.fleet import client
from warmup_plugin.fleet.bundle import limit_of
from warmup_plugin.fleet.lease import MISSED, Lease, parse_lease, render_lease
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pointer import bundle_key
from warmup_plugin.fleet.turn_process import TurnProcess
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.runtime.safe_json import digest

pytestmark = pytest.mark.multiprocess

Environment = Callable[..., dict[str, str]]
HOSTS = Path(__file__).with_name("hosts.py")
#: Seconds; a lease that stands still is taken over after six.
BEAT_S = 1.0


def opened() -> Objects:
    return Objects(os.environ["WARMUP_PLUGIN_FLEET"], "given", timeout_s=20, writes=True)


def lease() -> Lease | None:
    """Return the lease as it stands in the store."""
    seen = opened().lease(WHOSE)
    found = parse_lease(seen.data, WHOSE.identity) if seen else None
    return found if isinstance(found, Lease) else None


def is_free() -> bool:
    found = lease()
    return found is not None and not found.holder


def until(is_there: Callable[[], bool], limit_s: float = 60.0) -> float:
    """Wait for it; return how long that took."""
    began = time.monotonic()
    wait_until(is_there, within(limit_s), brief_pause_s=0.05)
    return time.monotonic() - began


def held(place: Path, **more: Any) -> TurnProcess:
    """Have a process hold the lease for this one."""
    turn = TurnProcess({**turn_request(place, BEAT_S), **more})
    found = turn.line(60.0)
    assert found is not None
    assert found["state"] == "held", found
    return turn


class Host:
    """A host that starts. ``said``: the lines of its start so far."""

    def __init__(self, root: Path, go: Path, beat_s: float = BEAT_S) -> None:
        self.said: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, str(HOSTS), "start", str(root), str(beat_s), str(go)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed in the middle of it
                    self.said.append(json.loads(line))

    def states(self) -> list[str]:
        return [line["state"] for line in self.said]

    def is_in(self, state: str) -> bool:
        return state in self.states()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def die(self) -> None:
        """End it with all its processes, as a host that loses its power."""
        stat = [*Path("/proc").glob("[0-9]*/stat")]
        mine = [path for path in stat if _parent(path) == self.pid]
        for path in mine:
            os.kill(int(path.parent.name), signal.SIGSTOP)  # before it hears of the other's end
        self.send(signal.SIGKILL)
        for path in mine:
            os.kill(int(path.parent.name), signal.SIGKILL)

    def end(self, limit_s: float = 60.0) -> int:
        return self._process.wait(limit_s)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10.0)


def _parent(stat: Path) -> int:
    try:
        text = stat.read_text()
    except OSError:
        return 0
    return int(text[text.rfind(")") + 2 :].split()[1])


@pytest.fixture
def host(fleet: Environment, tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Start a host by its name; it tunes until the file ``go`` is there."""
    fleet()
    hosts: list[Host] = []

    def start(name: str) -> Host:
        hosts.append(Host(tmp_path / name, tmp_path / "go"))
        return hosts[-1]

    yield start
    for each in hosts:
        each.close()


def test_it_is_renewed_until_it_is_freed(fleet: Environment, tmp_path: Path) -> None:
    """By a process that then ends."""
    fleet()
    turn = held(tmp_path)
    until(lambda: (found := lease()) is not None and found.generation >= 3)
    turn.free()
    until(is_free)
    turn.free()
    assert turn.line() == {"state": "failed", "reason": "its process has ended"}


def test_who_publishes_frees_it(fleet: Environment, tmp_path: Path) -> None:
    """After the table is there; the lease is renewed while the engine does not serve yet."""
    fleet()
    turn = held(tmp_path)
    write(tmp_path / "tables", ["x"])
    push = request("push", tmp_path / "tables", parent=os.getpid(), after_s=3.0)
    answer = turn.ask(push, 60.0)
    assert (answer["state"], answer["entries"]) == ("published", 1)
    assert is_free()
    found = lease()
    assert found is not None
    assert found.generation >= 4


def test_one_that_cannot_publish_frees_it_and_says_why(fleet: Environment, tmp_path: Path) -> None:
    """Another host may then tune."""
    fleet()
    turn = held(tmp_path)
    answer = turn.ask(request("push", tmp_path / "none", parent=os.getpid()), 60.0)
    assert answer["state"] == "failed"
    assert is_free()


def test_the_lease_of_an_engine_that_is_killed_is_freed(
    host: Callable[[str], Host], tmp_path: Path
) -> None:
    """At once, by its process: the host that waits need not see it stand still."""
    first = host("a")
    until(lambda: first.is_in("held"))
    second = host("b")
    until(lambda: second.is_in("waits"))
    first.send(signal.SIGKILL)
    assert until(lambda: second.is_in("held")) < MISSED * BEAT_S
    assert second.said[-1]["is_takeover"] is False
    (tmp_path / "go").touch()
    assert second.end() == 0
    assert second.said[-1]["state"] == "published"


def test_a_dead_host_is_taken_over(host: Callable[[str], Host], tmp_path: Path) -> None:
    """By one of two that wait; the other adopts what that one publishes."""
    first = host("a")
    until(lambda: first.is_in("held"))
    others = [host("b"), host("c")]
    until(lambda: all(each.is_in("waits") for each in others))
    first.die()
    took = until(lambda: any(each.is_in("held") for each in others))
    assert took < (MISSED + 2) * BEAT_S + 3.0, "what a busy machine adds"
    (tmp_path / "go").touch()
    assert [each.end() for each in others] == [0, 0]
    last = {each.said[-1]["state"]: each.said[-1] for each in others}
    assert last.keys() == {"published", "fetched"}
    assert last["published"]["bundle"] == last["fetched"]["bundle"]
    (holder,) = [each for each in others if each.is_in("held")]
    (line,) = [line for line in holder.said if line["state"] == "held"]
    assert line["is_takeover"] is True


def test_a_stopped_engine_loses_it_and_goes_on(host: Callable[[str], Host], tmp_path: Path) -> None:
    """Its process renews the lease for an engine that runs; woken, it tunes to the end."""
    first = host("a")
    until(lambda: first.is_in("held"))
    second = host("b")
    until(lambda: second.is_in("waits"))
    first.send(signal.SIGSTOP)
    until(lambda: second.is_in("held"))
    (line,) = [line for line in second.said if line["state"] == "held"]
    assert line["is_takeover"] is True
    first.send(signal.SIGCONT)
    (tmp_path / "go").touch()
    assert [first.end(), second.end()] == [0, 0]
    assert {each.said[-1]["state"] for each in (first, second)} <= {"published", "unchanged"}
    until(is_free)


def test_the_holder_is_told_that_it_has_lost_it(fleet: Environment, tmp_path: Path) -> None:
    """Another host has taken it over; the publication does not free that one's lease."""
    fleet()
    turn = held(tmp_path)
    other = lease_of("another")
    objects = opened()

    def is_swapped() -> bool:
        return objects.swap_lease(WHOSE, render_lease(other), objects.lease(WHOSE)) is not None

    until(is_swapped)
    assert turn.line(60.0) == {"state": "lost"}
    write(tmp_path / "tables", ["x"])
    answer = turn.ask(request("push", tmp_path / "tables", parent=os.getpid()), 60.0)
    assert answer["state"] == "published"
    assert lease() == other


@pytest.mark.timeout(60)
def test_a_store_that_never_answers_is_waited_for_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No line comes; the process that is left behind is ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "WARMUP_PLUGIN_FLEET": "s3://tables/x",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        turn = TurnProcess(turn_request(tmp_path, BEAT_S))
        assert turn.line(1.0) is None
        assert time.monotonic() - began < 5.0
        process = turn._process
        assert process is not None
        monkeypatch.setattr("warmup_plugin.fleet.turn_process._FREED_S", 0.5)
        turn.free()
        until(lambda: process.poll() is not None, 20.0)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit(3)", "its process ended with status 3"),
        ("print('hello')", "it said what is no answer"),
        ("import os; os.abort()", "its process ended with status -6"),
    ],
)
def test_a_process_that_says_nothing_of_use(
    code: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The answer is a reason, never an exception."""
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", "file:///nobody/has/this")
    monkeypatch.setattr(client, "_CODE", code)
    turn = TurnProcess(turn_request(tmp_path, BEAT_S))
    assert turn.line(20.0) == {"state": "failed", "reason": says}
    turn.free()


def test_no_process_to_be_had_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As at the limit of a container."""
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", "file:///nobody/has/this")
    monkeypatch.setattr(sys, "executable", "/nobody/has/this/python")
    turn = TurnProcess(turn_request(tmp_path, BEAT_S))
    found = turn.line()
    assert found is not None
    assert found["reason"].startswith("no process can be started")
    assert turn.ask({}, 1.0)["state"] == "failed"
    turn.free()


def _served(bundle: str) -> str:
    """Return the sha256 of the fleet's bundle as it lies there."""
    data = opened().get(bundle_key(bundle), limit_of(LIMIT))
    assert data is not None
    return digest(data)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dies", [False, True], ids=["all live", "the holder's host dies"])
@pytest.mark.parametrize("fleet", ["s3"], indirect=True)
def test_of_a_hundred_that_start_together_one_tunes(
    fleet: Environment, tmp_path: Path, *, dies: bool
) -> None:
    """All come to one bundle; where the holder's host dies, one other takes over."""
    fleet()
    go = tmp_path / "go"
    number = int(os.environ.get("WARMUP_SOAK_HOSTS", "100"))
    hosts = [Host(tmp_path / str(name), go, beat_s=5.0) for name in range(number)]
    try:
        until(lambda: sum(each.is_in("waits") for each in hosts) == number - 1, 400.0)
        (first,) = [each for each in hosts if each.is_in("held")]
        left = [each for each in hosts if each is not first] if dies else hosts
        if dies:
            first.die()
            took = until(lambda: any(each.is_in("held") for each in left), 120.0)
            assert took < (MISSED + 2) * 5.0 + 10.0, "what a busy machine adds"
            print(f"taken over after {took:.1f} s")  # noqa: T201  # the soak's report
        go.touch()
        assert {each.end(300.0) for each in left} == {0}
    finally:
        for each in hosts:
            each.close()
    until(lambda: all(each.said[-1]["state"] not in ("waits", "held") for each in left))
    assert sum(each.is_in("held") for each in left) == 1
    last = [each.said[-1] for each in left]
    assert sorted({line["state"] for line in last}) == ["fetched", "published"]
    (bundle,) = {line["bundle"] for line in last}
    assert _served(bundle) == bundle
    print(f"{number} hosts, {len(left)} of them serve bundle {bundle[:12]}")  # noqa: T201  # as above
