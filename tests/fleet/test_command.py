# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin fleet`: push, status and pull, by hand; what each says, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.tables import IDENTITY, WHOSE, write
from warmup_plugin.cli import main

Environment = Callable[..., dict[str, str]]
HEX = IDENTITY.digest[:12]


def home(root: Path) -> Path:
    """Return where the tables of the small identity lie below a root."""
    return root / "flashinfer_autotune" / WHOSE.version / WHOSE.arch / WHOSE.identity


def test_there_and_back(
    fleet: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one machine pushes another sees, takes, and has."""
    fleet()
    a, b = tmp_path / "a", tmp_path / "b"
    write(home(a), ["x", "y"])

    def run(*words: str) -> Any:
        status = main(["fleet", *words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, empty = run("status", "--root", str(a))
    assert (status, empty["identities"]) == (0, [])
    status, pushed = run("push", "--root", str(a))
    assert (status, [row["state"] for row in pushed["identities"]]) == (0, ["published"])
    _, again = run("push", HEX, "--root", str(a))
    assert [row["state"] for row in again["identities"]] == ["unchanged"]

    _, listed = run("status", "--root", str(b))
    (row,) = listed["identities"]
    assert (row["identity"], row["here"], row["pointer"]["entries"]) == (WHOSE.identity, False, 2)
    status, pulled = run("pull", HEX, "--root", str(b))
    assert (status, [row["state"] for row in pulled["identities"]]) == (0, ["new"])
    _, listed = run("status", "--root", str(b))
    assert listed["identities"][0]["here"] is True
    assert main(["verify", "--root", str(b)]) == 0
    capsys.readouterr()

    assert main(["fleet", "status", "--root", str(b)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:5] == [HEX, WHOSE.version, WHOSE.arch, "2", "complete"]
    assert line.split()[-1] == "yes"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["fleet", "status"], 2, "no fleet is named"),
        (["fleet", "status", "--url", "bucket"], 2, "WARMUP_PLUGIN_FLEET is 'bucket'"),
        (["fleet", "status", "--url", "s3://b"], 1, "no credentials for s3://"),
        (["fleet", "status", "--url", "file:///nobody/has/this"], 1, "/nobody/has/this"),
        (["fleet", "pull", "abc", "--url", "file://{shared}"], 1, "begins with abc"),
        (["fleet", "push", "--url", "file://{shared}", "--root", "{shared}"], 1, "no table"),
        (["fleet", "take"], 2, "invalid choice"),
    ],
)
def test_what_it_cannot_do(
    words: list[str], status: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the thing, and the exit code of all verbs."""
    assert main([word.format(shared=tmp_path) for word in words]) == status
    assert says in capsys.readouterr().err


def test_a_faulty_table_is_not_pushed(
    fleet: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be refused by every host that gets it."""
    fleet()
    write(home(tmp_path), ["x"])
    table = home(tmp_path) / "rank_tp0_pp0_dp0.json"
    table.write_bytes(table.read_bytes().replace(b"Runner", b"Runnex"))
    assert main(["fleet", "push", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "left out" in said
    assert "no table to push that holds" in said
    assert main(["fleet", "status", "--root", str(tmp_path)]) == 0
    assert "has no table" in capsys.readouterr().out
