# SPDX-License-Identifier: Apache-2.0
"""The command line's surface: adding a verb or an option fails here first, so it is a decision."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import warmup_plugin
from warmup_plugin.cli.parser import make_parser

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]

COMMON = {"--debug", "--help", "-h", "--quiet", "-q", "--verbose", "-v"}
PLACE = {"--root", "--engine-root", "--json"}
SURFACE = {
    "demo": {
        "--tp", "--pp", "--dp", "--ep", "--tokens", "--strategy", "--root", "--keep", "--design",
        "--json",
    },
    "doctor": {"--quick", "--ranks", *PLACE},
    "config": {"--set", *PLACE},
    "where": {"--identity", "--factors", "--version", "--arch", *PLACE},
    "ls": PLACE,
    "show": {"file", "--tasks", *PLACE},
    "status": {"--watch", *PLACE},
    "explain": {"a", "b", "--last", "--cold", *PLACE},
    "report": {"receipt", "--cold", "--only", "--html", *PLACE},
    "stats": PLACE,
    "diff": {"a", "b", "--all", *PLACE},
    "verify": {"what", *PLACE},
    "tune": {
        "command", "-o", "--output", "--ready", "--ranks", "--limit", "--ray", "--gpus", "--place",
        "--wait", "--retries", "--json",
    },
    "pack": {
        "identity", "-o", "--output", "--oci", "--skip-faulty", "--version", "--arch", *PLACE,
    },
    "unpack": {"file", "--digest", "--replace", "--dry-run", *PLACE},
    "push": {
        "reference", "identity", "--limit", "--plain-http", "--skip-faulty", "--version", "--arch",
        *PLACE,
    },
    "pull": {"reference", "--limit", "--plain-http", "--replace", "--dry-run", *PLACE},
    "fleet": {"action", "identity", "--url", "--key", "--version", "--arch", *PLACE},
    "import": {"source", "--version", "--arch", "--dry-run", *PLACE},
    "prune": {
        "--older-than", "--max-size", "--version", "--other-versions", "--set-aside", "--dry-run",
        *PLACE,
    },
    "rm": {"identity", "--dry-run", *PLACE},
    "retry": {"directory", "--list", *PLACE},
    "completion": {"shell"},
}  # fmt: skip


def verbs() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action.choices
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(choices)


def words_of(parser: argparse.ArgumentParser) -> set[str]:
    actions = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]
    return {word for action in actions for word in action.option_strings or [action.dest]}


def test_verbs_and_options() -> None:
    """Exactly these."""
    assert {name: words_of(parser) - COMMON for name, parser in verbs().items()} == SURFACE
    assert all(words_of(parser) >= COMMON for parser in verbs().values())
    assert words_of(make_parser()) == COMMON | {"--version"}


@pytest.mark.parametrize("verb", ["", *SURFACE])
def test_help(cli: Cli, verb: str) -> None:
    """Every option explained, and examples that the parser takes, no line over 80 columns."""
    ran = cli(*verb.split(), "--help", width=80)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    examples = re.findall(r"^  (warmup-plugin .*?)(?:  +\S.*)?$", ran.out, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        argv = example.split(" | ")[0].split()[1:]
        if "--help" not in argv:
            make_parser().parse_args(argv)


def test_every_option_has_words() -> None:
    """None is left to its name alone."""
    for parser in verbs().values():
        assert [a.dest for a in parser._actions if a.option_strings and not a.help] == []


def test_version(cli: Cli) -> None:
    """The package's."""
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"warmup-plugin {warmup_plugin.__version__}\n")


def test_no_verb(cli: Cli) -> None:
    """The help, on standard error, as wrong usage."""
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert "demo" in ran.err


def test_abbreviated_options_are_none(cli: Cli) -> None:
    """What a script abbreviates today could mean another option tomorrow."""
    assert cli("where", "--engine", "/e").code == 2


NO_TORCH = """
import contextlib, io, json, sys
from warmup_plugin.cli import main

found = {}
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(argv)
    heavy = {name.partition(".")[0] for name in sys.modules} & {"flashinfer", "numpy", "torch"}
    found[argv[0]] = [code, sorted(heavy)]
print(json.dumps(found))
"""


@pytest.mark.multiprocess
def test_no_verb_imports_torch(two_starts: TwoStarts, tmp_path: Path) -> None:
    """Not even the demo: its ranks do, in processes of their own."""
    place = ["--root", str(two_starts.root)]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "copy.json").write_bytes(two_starts.table.path.read_bytes())
    commands = [
        ["--help"],
        ["where", "--root", str(two_starts.root)],
        ["show", str(two_starts.table.path)],
        ["ls", *place],
        ["explain", "--last", *place],
        ["report", *place],
        ["verify", *place],
        ["pack", "-o", str(tmp_path / "t.tar"), *place],
        ["unpack", str(tmp_path / "t.tar"), "--root", str(tmp_path / "there")],
        ["import", str(tmp_path / "there" / "copy.json"), *place, "--dry-run"],
        ["prune", "--older-than", "1d", "--dry-run", *place],
        ["doctor", *place],
        ["demo", "--tp", "2", "--root", str(tmp_path)],
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, json.dumps(commands)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout) == {argv[0]: [0, []] for argv in commands}
