# SPDX-License-Identifier: Apache-2.0
"""The tutorial, word by word: every command of the page, in its order, on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.pages import commands

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

pytestmark = pytest.mark.multiprocess

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
#: What sets the machine up; the tests stand on an installed wheel already.
SET_UP = ("make demo", "source .venv/bin/activate", "pip install 'warmup-plugin[report]'")
PLACES = ("/tmp/tutorial", "/tmp/elsewhere")  # noqa: S108  # as the page writes them


def test_the_tutorial_teaches_what_it_says(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command succeeds; the digits are real, and the lesson of section 4 can be had."""
    pytest.importorskip("plotly", reason="the tutorial installs it for its page")
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    said: dict[str, str] = {}
    for command in commands(page):
        if command in SET_UP:
            continue
        words = command
        for place in PLACES:
            words = words.replace(place, str(tmp_path / Path(place).name))
        name, _, value = words.removeprefix("export ").partition("=")
        if words.startswith("export "):
            monkeypatch.setenv(name, value)
            continue
        argv = shlex.split(words)
        environ = dict(word.split("=", 1) for word in argv[: argv.index("warmup-plugin")])
        with monkeypatch.context():
            ran = cli(*argv[len(environ) + 1 :], **environ)
        for name in environ:
            monkeypatch.delenv(name)
        assert ran.code == 0, f"{command}\n{ran.err}{ran.out}"
        said[command] = ran.out
    assert "It was warm" in said["warmup-plugin explain --last"]
    shown = page.partition("each in words:\n\n```text\n")[2].partition("```")[0]
    assert shown
    assert shown in said["warmup-plugin explain --cold"]
    assert shown in said["warmup-plugin explain ed16 b059"]
    assert said["warmup-plugin verify"].endswith("\n  1 of 1 table holds\n")
    assert "complete" in said["warmup-plugin show ed16"]
    assert "2 (50%)" in said["warmup-plugin stats"]
    assert (tmp_path / "start.html").stat().st_size > 100_000
    assert sum("demo" in command for command in said) == 3
