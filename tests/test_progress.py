# SPDX-License-Identifier: Apache-2.0
"""The line for people and the file for a probe, on a clock of the test's."""

from __future__ import annotations

import io
import json
import logging
import os
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.observability.progress import LOG_S, STUCK_S, Glance, Progress, counted
from warmup_plugin.runtime.compiling import is_compiling
from warmup_plugin.runtime.ticker import Ticking


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tuning(progress: Progress, clock: Clock) -> None:
    """Two ranks share six tasks; each has one behind it after ten seconds."""
    progress.step("plan")
    progress.plan(6)
    progress.step("tune")
    clock.now += 10.0
    progress.tuned(1.0, 2.0)
    progress.tuned(1.0, 8.0)
    progress.tuned(None, 3.0)
    progress.heard(3, "tune", counted("op::b @ 8", 1))
    progress.heard(2, "share", "")
    progress.task("op::a @ 64", 1)


def test_one_line_for_the_whole_job(clock: Clock) -> None:
    """Op and bucket, tasks of all ranks, time left at their pace, the mean gain."""
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    tuning(progress, clock)
    assert progress.line() == (
        "warmup-plugin: tuning: op::a @ 64; 2 of 6 tasks, about 20 s left, "
        "4.00 x the default's speed so far"
    )


def test_it_moves_on_a_terminal_and_goes_away(clock: Clock) -> None:
    """One line, rewritten; nothing is left of it; nothing is shown before there are tasks."""
    terminal = Terminal()
    progress = Progress(0, stream=terminal, clock=clock)
    progress.step("survey")
    assert terminal.getvalue() == ""
    tuning(progress, clock)
    clock.now += 1.0
    progress.task("op::a @ 128", 2)
    said = terminal.getvalue()
    assert "\n" not in said
    assert said.split("\r\x1b[2K")[-1].startswith("warmup-plugin: tuning: op::a @ 128; 3 of 6")
    progress.end("ready")
    assert terminal.getvalue().endswith("\r\x1b[2K")


def drawn(terminal: Terminal, clock: Clock, **options: Any) -> str:
    """Tune where somebody watches; return the last line that was drawn."""
    progress = Progress(0, stream=terminal, clock=clock, **options)
    tuning(progress, clock)
    clock.now += 1.0
    progress.task("op::a @ 128", 2)
    return terminal.getvalue().split("\r\x1b[2K")[-1]


def test_it_stays_one_line_on_a_narrow_terminal(clock: Clock) -> None:
    """A line that wraps cannot be wiped: three of them would stay above the result."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 40))
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", buffering=0) as seen:
        progress = Progress(0, stream=stream, clock=clock)
        tuning(progress, clock)
        clock.now += 1.0
        progress.task("op::a @ 128", 2)
        said = ""
        while "@ 128" not in said:
            said += seen.read(4096).decode()
        said = said.split("\r\x1b[2K")[-1]
    assert said == "warmup-plugin: tuning: op::a @ 128; ..."
    assert len(said) == 39
    assert len(drawn(Terminal(), clock)) == 79  # which does not know how wide it is


def test_no_line_moves_where_it_cannot_or_where_the_runner_draws(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines that move fight for one place."""
    assert drawn(Terminal(), clock) != ""
    assert drawn(Terminal(), clock, draws=False) == ""
    monkeypatch.setenv("TERM", "dumb")
    assert drawn(Terminal(), clock) == ""


def test_a_log_gets_a_line_per_half_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Not one per task; other ranks' logs get none."""
    caplog.set_level(logging.INFO, "warmup_plugin")
    progress, other = (Progress(rank, stream=io.StringIO(), clock=clock) for rank in (0, 1))
    for each in (progress, other):
        tuning(each, clock)
    caplog.clear()
    for second in range(65):
        clock.now += 1.0
        progress.task(f"op::a @ {second}", 1)
        other.task(f"op::b @ {second}", 1)
    assert len(caplog.messages) == int(75 / LOG_S)
    assert all(text.startswith("warmup-plugin: tuning: op::a") for text in caplog.messages)


def test_the_file_is_whole_and_says_how_it_ended(clock: Clock, tmp_path: Path) -> None:
    """At every step at once, within a step once a second; no other file stays."""
    path = tmp_path / "progress.json"
    progress = Progress(1, path=path, stream=io.StringIO(), clock=clock)
    progress.step("open")
    assert json.loads(path.read_bytes())["step"] == "open"
    tuning(progress, clock)
    found = json.loads(path.read_bytes())
    assert found["state"] == "warming"
    assert (found["done"], found["total"], found["left_s"]) == (1, 6, 50.0)
    progress.task("op::a @ 128", 2)
    assert json.loads(path.read_bytes()) == found
    progress.end("failed", "SessionError: no")
    found = json.loads(path.read_bytes())
    assert (found["state"], found["reason"], found["left_s"]) == (
        "failed",
        "SessionError: no",
        None,
    )
    assert [each.name for each in tmp_path.iterdir()] == ["progress.json"]


def test_nobody_waits_for_it(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that is not there is one warning; a closed terminal none."""
    terminal = Terminal()
    progress = Progress(0, path=tmp_path / "no" / "file", stream=terminal, clock=clock)
    terminal.close()
    tuning(progress, clock)
    clock.now += 5.0
    progress.task("op::a @ 128", 2)
    progress.end("ready")
    assert [r.levelname for r in caplog.records] == ["WARNING"]


# -- a clock of its own --------------------------------------------------------------------------


class Tactics:
    """How far the one task in hand is; the test moves it on."""

    def __init__(self) -> None:
        self.now = Glance()

    def __call__(self) -> Glance:
        return self.now


@pytest.fixture
def tactics() -> Tactics:
    return Tactics()


def one_long_task(progress: Progress, tactics: Tactics) -> None:
    """One rank, one task, no heartbeat of others."""
    progress.plan(1)
    progress.step("tune")
    progress.task("op::a @ 64", 0, tactics, 1800.0)


def test_one_long_task_is_told_of(
    clock: Clock, tactics: Tactics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing but the clock calls: a line each half minute, a file that changes."""
    caplog.set_level(logging.INFO, "warmup_plugin")
    path = tmp_path / "progress.json"
    progress = Progress(0, path=path, stream=io.StringIO(), clock=clock)
    one_long_task(progress, tactics)
    found = []
    for number in range(1, 15):
        clock.now += 5.0
        tactics.now = Glance(number, 16, 0.5)
        progress.tick()
        found.append(json.loads(path.read_bytes()))
    assert [each["tactic"] for each in found] == list(range(1, 15))
    assert {(each["doing"], each["of"], each["best_ms"]) for each in found} == {("tuning", 16, 0.5)}
    assert [each["in_task_s"] for each in found] == [5.0 * n for n in range(1, 15)]
    assert found[-1]["limit_s"] == 1800.0
    assert found[8]["left_s"] == pytest.approx(45 / 8 * 8, abs=0.1)
    words = (
        "warmup-plugin: tuning: op::a @ 64, tactic {} of 16, best 0.5 ms; 0 of 1 tasks, about {}"
    )
    assert caplog.messages == [
        words.format(6, "1 min 6 s left"),
        words.format(12, "27 s left"),
    ]


def test_the_time_left_counts_down(clock: Clock, tactics: Tactics) -> None:
    """While a tactic takes as long as those before it; it grows with one that takes longer."""
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    one_long_task(progress, tactics)
    tactics.now = Glance(1, 3)
    clock.now += 20.0
    found = []
    for number in (2, 2, 2, 2, 3, 3):
        tactics.now = Glance(number, 3, 0.5)
        progress.tick()
        found.append(progress.document()["left_s"])
        clock.now += 10.0
    assert found == [40.0, 30.0, 20.0, 25.0, 30.0, 20.0]
    clock.now += 20.0
    assert progress.document()["left_s"] is None
    assert progress.line() == (
        "warmup-plugin: tuning: op::a @ 64, tactic 3 of 3, best 0.5 ms; 0 of 1 tasks"
    )


def test_the_file_is_the_first_ranks_of_a_node(clock: Clock, tmp_path: Path) -> None:
    """Which the ranks know when they have met: one begins to write, another ends."""
    path = tmp_path / "progress.json"
    first = Progress(1, stream=io.StringIO(), clock=clock)
    second = Progress(2, path=path, stream=io.StringIO(), clock=clock)
    second.step("open")
    first.files(path)
    second.files(None)
    try:
        assert first.listens
        assert not second.listens
        for each in (first, second):
            each.step("read")
        assert json.loads(path.read_bytes())["rank"] == 1
    finally:
        first.hush()


def test_what_does_not_move_is_stuck_and_the_limit_is_named(clock: Clock, tactics: Tactics) -> None:
    """A tactic that ends counts as a move; so does the next task."""
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    one_long_task(progress, tactics)
    tactics.now = Glance(3, 16)
    progress.tick()
    clock.now += STUCK_S - 1
    progress.tick()
    assert progress.document()["doing"] == "tuning"
    clock.now += 14
    progress.tick()
    assert progress.document()["doing"] == "stuck"
    assert progress.line() == (
        "warmup-plugin: stuck: op::a @ 64, tactic 3 of 16, nothing has moved for 1 min 13 s, given "
        "up 30 min 0 s after it began (WARMUP_PLUGIN_TASK_LIMIT_S); 0 of 1 tasks"
    )
    tactics.now = Glance(4, 16)
    progress.tick()
    assert progress.document()["doing"] == "tuning"


def test_who_is_waited_for_is_told(clock: Clock) -> None:
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    progress.step("share")
    progress.waits([3])
    assert (progress.document()["doing"], progress.document()["waits_for"]) == ("waiting", [3])
    assert progress.line() == "warmup-plugin: step share, waiting for rank 3"
    progress.waits([])
    assert (progress.document()["doing"], progress.document()["waits_for"]) == ("working", [])


def in_a_file_called(name: str) -> Any:
    """Return a function that waits for an event, as if its code stood in this file."""
    code = "def wait(is_there, is_over):\n    is_there.set()\n    is_over.wait(20)\n"
    space: dict[str, Any] = {}
    exec(compile(code, name, "exec"), space)  # noqa: S102  # a stack with this file name in it
    return space["wait"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/env/site-packages/flashinfer/jit/core.py", True),
        ("/env/site-packages/torch/utils/cpp_extension.py", True),
        ("/env/site-packages/cutlass/base_dsl/dsl.py", True),
        ("/env/site-packages/triton/compiler/compiler.py", True),
        ("/env/site-packages/flashinfer/gemm/gemm_base.py", False),
        ("/home/jitter/model.py", False),
    ],
)
def test_a_compiler_on_the_stack_is_compiling(
    name: str,
    expected: bool,  # noqa: FBT001  # a case of the table
    clock: Clock,
    tactics: Tactics,
) -> None:
    """Seen from another thread; it is not stuck, however long it takes."""
    is_there, is_over, made = threading.Event(), threading.Event(), list[Progress]()

    def work() -> None:
        made.append(Progress(0, stream=io.StringIO(), clock=clock))
        one_long_task(made[0], tactics)
        in_a_file_called(name)(is_there, is_over)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert is_there.wait(20)
        assert is_compiling(thread.ident or 0) is expected
        clock.now += STUCK_S + 1
        assert made[0].document()["doing"] == ("compiling" if expected else "stuck")
        assert made[0].line().startswith(f"warmup-plugin: {made[0].document()['doing']}: op::a")
    finally:
        is_over.set()
        thread.join()


def test_it_ticks_until_it_ends() -> None:
    """And not a tick later; it can be ended without having begun, and twice."""
    ticked = threading.Event()
    ticking = Ticking(ticked.set, 0.001)
    ticking.begin()
    ticking.begin()
    assert ticked.wait(20)
    ticking.end()
    ticking.end()
    assert "warmup-progress" not in [thread.name for thread in threading.enumerate()]
    ticked.clear()
    ticking.begin()
    Ticking(ticked.set, 0.001).end()
    assert not ticked.is_set()


def test_without_a_thread_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    ticking = Ticking(lambda: None, 0.001)
    ticking.begin()
    ticking.end()
    assert caplog.messages == [
        "warmup-plugin: progress is reported at steps and tasks only: can't start new thread"
    ]


def test_impossible_times_are_no_gain(clock: Clock) -> None:
    """A clock that goes wrong gives negative ones; no logarithm is taken of them."""
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    for ms, default_ms in ((-5.0, 1.0), (1.0, -5.0), (0.0, 1.0), (1.0, 0.0)):
        progress.tuned(ms, default_ms)
    assert progress.document()["over_default"] is None
