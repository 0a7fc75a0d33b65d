# SPDX-License-Identifier: Apache-2.0
"""The line for people and the file for a probe, on a clock of the test's."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from warmup_plugin.progress import LOG_S, Progress, counted


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
    progress.heard(3, {"step": "tune", "task": counted("op::b @ 8", 1)})
    progress.heard(2, {"step": "share", "task": ""})
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
    assert (found["done"], found["total"], found["left_s"]) == (2, 6, 20.0)
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
