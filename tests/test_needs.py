# SPDX-License-Identifier: Apache-2.0
"""What a session takes is asked for before anything of it is taken."""

from __future__ import annotations

import _thread
import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from warmup_plugin.runtime.needs import lacking, lacks_processes
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.topology import host_name

#: Sets a limit in a process of its own and asks.
ASKS = """
import os, resource, sys
from warmup_plugin.runtime.needs import lacking
which, more, rank, size = sys.argv[1], *map(int, sys.argv[2:])
if which == "NOFILE":
    limit = max(map(int, os.listdir("/proc/self/fd"))) + more
else:
    mapped = open("/proc/self/statm").read().split()
    limit = int(mapped[5 if which == "DATA" else 0]) * 4096 + more * 2**20
resource.setrlimit(getattr(resource, f"RLIMIT_{which}"), (limit, limit))
print(lacking(rank, size))
"""


def asked(which: str, more: int, rank: int = 0, size: int = 2) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASKS, which, *map(str, (more, rank, size))],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_process_without_limits_lacks_nothing() -> None:
    threads = _thread._count()
    assert lacking(0, 8) == lacking(7, 8) == ""
    wait_until(lambda: _thread._count() == threads, within(20))


@pytest.mark.parametrize(("rank", "size", "more"), [(0, 2, 20), (1, 2, 14), (0, 8, 32)])
def test_descriptors_by_the_number_of_ranks(rank: int, size: int, more: int) -> None:
    """Rank 0 holds the store: two connections of each rank."""
    assert asked("NOFILE", more + 2, rank, size) == ""
    found = asked("NOFILE", more - 2, rank, size)
    assert f"files more can be opened, {more} are needed" in found


def test_address_space() -> None:
    assert asked("AS", 2000) == ""
    assert "MiB of address space are left, 768 are needed (RLIMIT_AS)" in asked("AS", 300)


def test_data() -> None:
    """A thread for which there is no memory once it runs is waited for without an end."""
    assert asked("DATA", 400) == ""
    assert "MiB of data are left, 96 are needed (RLIMIT_DATA)" in asked("DATA", 32)


def allow_threads(
    monkeypatch: pytest.MonkeyPatch, left: int, *, late_s: float = 0.0, taken_s: float = 0.0
) -> None:
    """Let so many threads live at a time; each does what it has to do so much later.

    Others have them all for the first ``taken_s``.
    """
    own, living, began = _thread.start_new_thread, list[None](), time.monotonic()

    def is_free() -> bool:
        return len(living) < left and time.monotonic() - began >= taken_s

    def start(function: Callable[[], None], _none: tuple[()]) -> None:
        with contextlib.suppress(TimeoutError):  # one that has nothing more to do is about to end
            wait_until(is_free, within(0.2))
        if not is_free():
            raise RuntimeError("can't start new thread")
        living.append(None)
        own(run, (function,))

    def run(function: Callable[[], None]) -> None:
        time.sleep(late_s)
        function()
        living.pop()

    monkeypatch.setattr(_thread, "start_new_thread", start)


@pytest.mark.parametrize(("rank", "left", "needed"), [(1, 0, 3), (1, 2, 3), (1, 3, 3), (0, 3, 4)])
def test_threads(rank: int, left: int, needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once, and none of them left."""
    before = _thread._count()
    allow_threads(monkeypatch, left)
    lacks = f"{left} threads more can be started, {needed} are needed: can't start new thread"
    assert lacking(rank, 2) == ("" if left >= needed else lacks)
    wait_until(lambda: _thread._count() == before, within(20))


@pytest.mark.parametrize("left", [10, 11])
def test_processes_run_beside_twice_the_threads_of_a_session(
    left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank asks for twice as many as it takes, at the same time."""
    allow_threads(monkeypatch, left)
    lacks = "10 threads more can be started, 11 are needed: can't start new thread"
    assert lacks_processes(3) == ("" if left == 11 else lacks)


def test_threads_that_end_late_are_waited_for_near_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the first attempt are not taken for what is lacking."""
    allow_threads(monkeypatch, 3, late_s=1.0)
    assert lacking(1, 2) == ""


def test_threads_that_another_rank_holds_for_a_moment_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks of one pod ask at a time, each for as many as it may need."""
    allow_threads(monkeypatch, 3, taken_s=0.7)
    assert lacking(1, 2) == ""


def test_a_limit_that_cannot_be_compared_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc: what is left is not known."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1 << 30, 1 << 30))
    monkeypatch.setattr("pathlib.Path.read_text", no_such_file)
    assert lacking(1, 2) == ""


def no_such_file(*_args: object, **_options: object) -> Iterator[str]:
    raise FileNotFoundError


@pytest.mark.parametrize(
    ("name", "text"), [("node-7", "node-7"), ("caf\udce9\udcff", "caf\ufffd\ufffd"), ("", "")]
)
def test_a_host_name_is_text(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words between ranks, leases and journals are; the kernel takes any bytes."""
    monkeypatch.setattr("socket.gethostname", lambda: name)
    assert host_name() == text
    assert host_name().encode().decode() == text
