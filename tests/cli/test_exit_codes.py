# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and that an error is a line: 0, 1, 2, 3, 130, 141."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from warmup_plugin.cli.commands import show
from warmup_plugin.errors import SessionError

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]

COMMAND = (sys.executable, "-m", "warmup_plugin.cli")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        pytest.param(["--help"], 0, id="help"),
        pytest.param(["where", "--root", "/r", "--version", "1", "--arch", "cpu"], 0, id="done"),
        pytest.param(["show", "/no/such/file"], 1, id="failed"),
        pytest.param([], 2, id="no verb"),
        pytest.param(["dmeo"], 2, id="no such verb"),
        pytest.param(["show"], 2, id="no file"),
        pytest.param(["where", "--nothing"], 2, id="no such option"),
    ],
)
def test_exit_code(cli: Cli, argv: list[str], code: int) -> None:
    """What went wrong is on standard error only."""
    ran = cli(*argv)
    assert ran.code == code
    assert bool(ran.err) == (code != 0)
    assert not (ran.out and code)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        pytest.param(KeyboardInterrupt(), 130, "interrupted", id="interrupted"),
        pytest.param(SessionError("the ranks differ"), 1, "the ranks differ", id="expected"),
        pytest.param(
            ZeroDivisionError("oh"),
            3,
            "unexpected ZeroDivisionError: oh; --debug shows where, please report it",
            id="unexpected",
        ),
    ],
)
def test_an_error_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    """And a traceback with --debug, before the verb or behind it."""

    def raise_it(*_args: object) -> None:
        raise error

    monkeypatch.setattr(show, "look_into", raise_it)
    ran = cli("show", __file__)
    assert (ran.code, ran.out, ran.err) == (code, "", f"warmup-plugin: {line}\n")
    for argv in (["--debug", "show", __file__], ["show", __file__, "--debug"]):
        ran = cli(*argv)
        assert ran.code == code
        assert "in raise_it" in ran.err


def test_a_malformed_setting_is_wrong_usage(cli: Cli) -> None:
    """By every verb that reads settings."""
    for argv in (["where"], ["show", "file"], ["demo"]):
        ran = cli(*argv, WARMUP_PLUGIN_TABLE_BYTES="many")
        assert ran.code == 2
        assert ran.err.startswith("warmup-plugin: WARMUP_PLUGIN_TABLE_BYTES is 'many': must be ")


def test_a_reader_that_goes_away(two_starts: TwoStarts) -> None:
    """`show ... | head`: no traceback, and not success."""
    command = [*COMMAND, "show", str(two_starts.table.path), "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.multiprocess
@pytest.mark.parametrize("when", ["survey", "load"])
def test_interrupting_the_demo(tmp_path: Path, when: str) -> None:
    """^C reaches the whole group, as from a terminal; one line, no process and no file is left."""
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while when == "survey" and lines[-1] and "forward" not in lines[-1]:
            lines.append(process.stderr.readline())
        if when == "load":
            time.sleep(0.5)  # the fork server is loading torch
        os.killpg(process.pid, signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 130, "".join([*lines, rest])
    assert out == ""
    assert rest.splitlines()[-1] == "warmup-plugin: interrupted"
    assert "Traceback" not in rest
    if when == "survey":  # a server that is still loading notices when it is done with it
        assert _all_gone(process.pid)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("pymp-")] == []


@pytest.mark.multiprocess
def test_the_tests_do_not_depend_on_who_starts_them() -> None:
    """`nohup make test &`, cron and some CI agents ignore SIGINT; children would inherit that."""
    one = f"{__file__}::test_interrupting_the_demo[load]"
    nested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(
        ["/bin/bash", "-c", """trap '' INT QUIT; exec "$@" </dev/null""", "-", *nested],
        capture_output=True, text=True, check=False, timeout=120,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def _all_gone(group: int) -> bool:
    """Return whether the process group dies out; the fork server follows its parent."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
