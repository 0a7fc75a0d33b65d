# SPDX-License-Identifier: Apache-2.0
"""The line in which a rank says what it is at, and what the command line shows of it."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr

import pytest

from warmup_plugin.cli.demo_progress import ticking
from warmup_plugin.engines.embedded.progress import Progress, parse, telling


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(("survey", "", 0, 0), id="step"),
        pytest.param(("tune", "embedded::gemm @ 64", 3, 27), id="task"),
        pytest.param(("tune", "op with 1/2 in it", 0, 1), id="odd task"),
    ],
)
def test_what_is_said_is_read(told: tuple[str, str, int, int]) -> None:
    """Step, task and numbers come back."""
    lines: list[str] = []
    telling(lines.append)(*told)
    assert [parse(line) for line in lines] == [Progress(*told)]


@pytest.mark.parametrize("line", ["", "hello", "tune x/y op", "tune 3 op"])
def test_other_lines_are_none(line: str) -> None:
    """Scripts say what they like."""
    assert parse(line) is None


def test_it_does_not_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines a second at most, and the first of each step."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines: list[str] = []
    tell = telling(lines.append)
    for done in range(1000):
        tell("tune", "op", done, 1000)
        now += 0.001
    tell("share", "", 0, 0)
    assert 9 <= len(lines) - 1 <= 11
    assert lines[-1] == "share 0/0 "


def test_one_line_per_step_where_nobody_watches() -> None:
    """Rank 0's steps, on standard error, without the terminal's codes."""
    err = io.StringIO()
    with redirect_stderr(err), ticking("cold") as tick:
        tick(1, "survey 0/0 ")
        tick(0, "survey 0/0 ")
        tick(0, "anything")
        tick(0, "tune 0/27 embedded::gemm @ 1")
        tick(0, "tune 5/27 embedded::gemm @ 2")
    assert err.getvalue().splitlines() == [
        "cold start: ranks load torch and FlashInfer",
        "cold start: the forward runs, calls are recorded",
        "cold start: the ranks tune 27 tasks",
    ]


def test_one_moving_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task in hand with its number; gone at the end."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    err = io.StringIO()
    with redirect_stderr(err), ticking("warm") as tick:
        tick(0, "tune 4/27 embedded::gemm @ 2")
    shown = err.getvalue()
    assert "warm start: the ranks tune 5 of 27" in shown
    assert "embedded::gemm @ 2" in shown
    assert shown.endswith("\x1b[2K")
