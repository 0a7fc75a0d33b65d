# SPDX-License-Identifier: Apache-2.0
"""SIGTERM in the middle of tuning: the task may end, what is known is kept, the process leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from warmup_plugin.runtime.sigterm import _KEEP_S, LEAVE_S, Shutdown

if TYPE_CHECKING:
    from tests.protocol.conftest import Child

pytestmark = pytest.mark.multiprocess

#: The bound of most of these processes, and what a busy machine adds to it, seconds.
SOON_S, SLACK_S = 0.8, 1.5

#: A process that tunes; how its task goes on once the signal is there is an argument.
TUNES = """
    import hashlib, signal, sys, threading, time
    from warmup_plugin.runtime import sigterm as module
    from warmup_plugin.runtime.sigterm import Shutdown

    def say(text):
        print(text, flush=True)

    def rescue():
        say("rescued")
        if "rescue hangs" in case:
            time.sleep(60)
        if "rescue fails" in case:
            raise OSError("planted")

    def task():
        say("at it")
        if "never ends" in case:
            while True:
                time.sleep(0.01)
        if "in C" in case:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # gives the interpreter lock away
        end = time.monotonic() + 30
        while not shutdown.is_requested and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        say("task ended")

    case, module.LEAVE_S = sys.argv[1], float(sys.argv[2])
    if "handler" in case:
        def handler(number, frame):
            say("handler")
            sys.exit(3)
        signal.signal(signal.SIGTERM, handler)
    if "ignored" in case:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "wakes others" in case:
        import socket
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
    with Shutdown(rescue) as shutdown:
        task()
    if "wakes others" in case:
        say(ours.recv(16) == bytes([signal.SIGTERM]))
        say(signal.set_wakeup_fd(-1) == theirs.fileno())
    say("went on")
"""


def tune(
    child: Callable[..., Child], case: str, signals: int = 1, leave_s: float = LEAVE_S
) -> tuple[int, list[str], float]:
    """Send SIGTERM in the middle of a task; return status, what was said, seconds until the end."""
    process = child(TUNES, case, leave_s)
    assert process.line() == "at it"
    began = time.monotonic()
    for _ in range(signals):
        process.send(signal.SIGTERM)
        time.sleep(0.05)
    lines = []
    while line := process.line():
        lines.append(line)
    status, _ = process.end()
    return status, lines, time.monotonic() - began


def test_the_task_ends_and_the_signal_goes_where_it_would_have_gone(
    child: Callable[..., Child],
) -> None:
    """Rescued once, then ended by the signal."""
    status, lines, seconds = tune(child, "")
    assert lines == ["task ended", "rescued"]
    assert status == -signal.SIGTERM
    assert seconds < 2.0


def test_a_second_signal_changes_nothing(child: Callable[..., Child]) -> None:
    """Impatience does not cost the results."""
    assert tune(child, "", signals=3)[:2] == (-signal.SIGTERM, ["task ended", "rescued"])


def test_the_handler_before_gets_the_signal(child: Callable[..., Child]) -> None:
    """After the results are kept."""
    assert tune(child, "handler")[:2] == (3, ["task ended", "rescued", "handler"])


def test_a_process_leaves_within_five_seconds() -> None:
    """Whatever the task and the disk do."""
    assert LEAVE_S + _KEEP_S < 5.0


@pytest.mark.parametrize(("case", "leave_s"), [("never ends", LEAVE_S), ("in C", SOON_S)])
def test_a_task_that_does_not_end_is_left(
    child: Callable[..., Child], case: str, leave_s: float
) -> None:
    """In time, with what is known kept: also where no Python runs any more."""
    status, lines, seconds = tune(child, case, leave_s=leave_s)
    assert lines == ["rescued"]
    assert status == 128 + signal.SIGTERM
    assert leave_s - 0.1 < seconds < leave_s + SLACK_S


@pytest.mark.parametrize("case", ["rescue hangs", "never ends, rescue hangs"])
def test_a_disk_that_hangs_is_left_too(child: Callable[..., Child], case: str) -> None:
    """Whoever is at it, the process leaves within its bound."""
    status, lines, seconds = tune(child, case, leave_s=SOON_S)
    assert lines[-1] == "rescued"
    assert lines.count("rescued") == 1
    assert status == 128 + signal.SIGTERM
    assert seconds < SOON_S + _KEEP_S + SLACK_S


def test_what_cannot_be_kept_does_not_keep_the_process(child: Callable[..., Child]) -> None:
    """An error of the rescue is logged."""
    assert tune(child, "rescue fails")[:2] == (-signal.SIGTERM, ["task ended", "rescued"])


def test_who_ignores_the_signal_goes_on_ignoring_it(child: Callable[..., Child]) -> None:
    """Nothing is taken over then, and the task is not cut short."""
    process = child(TUNES, "ignored", SOON_S)
    assert process.line() == "at it"
    process.send(signal.SIGTERM)
    time.sleep(0.5)
    assert process.process.poll() is None
    process.send(signal.SIGKILL)
    process.end()


def test_an_event_loop_s_wake_up_is_passed_on(child: Callable[..., Child]) -> None:
    """And given back afterwards."""
    status, lines, _ = tune(child, "handler, wakes others")
    assert lines == ["task ended", "rescued", "handler"]
    assert status == 3


def test_nothing_is_left_without_a_signal() -> None:
    """No handler, no wake-up, no thread, no socket."""

    def held() -> tuple[object, int, int]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return signal.getsignal(signal.SIGTERM), wakeup, len([*Path("/proc/self/fd").iterdir()])

    before, called = held(), []
    for _ in range(3):
        with Shutdown(lambda: called.append(1)) as shutdown:
            assert signal.getsignal(signal.SIGTERM) == shutdown._on_signal
    end = time.monotonic() + 5.0
    while time.monotonic() < end and "warmup-sigterm" in {t.name for t in threading.enumerate()}:
        time.sleep(0.01)
    assert held() == before
    assert "warmup-sigterm" not in {thread.name for thread in threading.enumerate()}
    assert not called


def test_another_thread_than_the_main_one_owns_no_signal() -> None:
    """There nothing is taken over."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with Shutdown(lambda: None) as shutdown:
            seen.extend([shutdown.is_requested, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5.0)
    assert seen == [False, before]
    assert signal.getsignal(signal.SIGTERM) == before
