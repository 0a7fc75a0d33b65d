# SPDX-License-Identifier: Apache-2.0
"""The ten questions of the docs: each command is run, and what it prints is what the page says.

Compared without white space and with digits, digests and times made equal, since those differ from
run to run. With ``WARMUP_WRITE_DOCS=1`` the page is written anew from what the commands print.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.pages import normal
from warmup_plugin.engines.embedded import EngineConfig, launch

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

pytestmark = pytest.mark.multiprocess

PAGE = Path(__file__).parents[2] / "docs" / "questions.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```", re.DOTALL)
#: What stands on the page for directories of the test's own, the longest first.
PLACES = ("/models/cache", "/models/other")
WIDTH = 100


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A root in which an engine has started with 100 tokens, then with 300; as on the page."""
    places = {"/models/cache": tmp_path / "cache", "/models/other": tmp_path / "other"}
    for tokens in (100, 300):
        config = EngineConfig(tp=2, pp=2, tokens=tokens)
        launch(config, root=places["/models/cache"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMUP_PLUGIN_CACHE_ROOT", str(places["/models/cache"]))
    return places


def answer(cli: Cli, command: str, places: dict[str, Path]) -> str:
    """Run a command of the page and return what it prints, with the page's places."""
    for place, real in places.items():
        command = command.replace(place, str(real))
    words = shlex.split(command)
    environ = dict(word.split("=", 1) for word in words[: words.index("warmup-plugin")])
    ran = cli(*words[len(environ) + 1 :], width=WIDTH, **environ)
    assert (ran.code, ran.err) == (0, ""), f"{command}\n{ran.err}{ran.out}"
    for name in environ:
        os.environ.pop(name)
    text = ran.out
    for place, real in places.items():
        text = text.replace(str(real), place)
    return text


def lines_of(text: str) -> set[str]:
    """Return the waits, of which some may be too short to be told."""
    return set(re.findall(r"at(survey\d+|share|ready|certify|open)", re.sub(r"\s+", "", text)))


def test_the_page_says_what_the_commands_print(cli: Cli, machine: dict[str, Path]) -> None:
    """All ten, in the order of the page."""
    page = PAGE.read_text()
    told = [match for match in BLOCK.finditer(page) if "export" not in match["command"]]
    assert len(told) == 10
    written = page
    for match in told:
        found = answer(cli, match["command"], machine)
        block = f"```console\n$ {match['command']}\n{found}```"
        written = written.replace(match.group(), block)
        if os.environ.get("WARMUP_WRITE_DOCS"):
            continue
        if "waits" in match["command"]:
            assert "waited" in found
            assert lines_of(match["output"]), "the page has waits"
            continue
        assert normal(found) == normal(match["output"]), match["command"]
    if os.environ.get("WARMUP_WRITE_DOCS"):
        PAGE.write_text(written)


def test_each_question_has_one_command() -> None:
    """Ten headings, each with one block, and every command begins with this package's."""
    sections = PAGE.read_text().split("\n## ")[1:]
    assert [int(section.split(".")[0]) for section in sections] == list(range(1, 11))
    for section in sections:
        (match,) = BLOCK.finditer(section)
        assert re.match(r"(\w+=\w+ )?warmup-plugin \w+", match["command"])
        assert match["output"].strip(), f"no output: {match['command']}"
