# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin show`: every kind of file, good and bad; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.shelves import identity, put, receipt
from warmup_plugin.cli.demo_run import TwoStarts

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]


def manifest_of(table: Path) -> Path:
    return table.with_name(table.name.replace(".json", ".manifest.json"))


def change_manifest(table: Path, **fields: Any) -> None:
    path = manifest_of(table)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# -- good files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["table", "manifest"])
def test_a_table_with_its_manifest(cli: Cli, table_path: Path, which: str) -> None:
    """Asked for by either name: stamp, entries by op, tasks with times, identity, sha256."""
    file = table_path if which == "table" else manifest_of(table_path)
    ran = cli("show", file)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == str(table_path)
    assert lines[1].startswith("  table     62 entries of 5 ops, ")
    assert "stamp     flashinfer " in ran.out
    assert "manifest  sha256 valid, complete, generation 1, by embedded 1" in ran.out
    assert ": model 1df26141, float32, TP2 x PP2" in ran.out
    assert any(line.split()[:3] == ["embedded::gemm", "27", "27"] for line in lines)
    assert "5 of 62 tasks, the slowest; --tasks shows all" in ran.out


def test_all_tasks(cli: Cli, table_path: Path) -> None:
    """Each with its shapes, its time, who tuned it, and the winner."""
    text = cli("show", table_path, "--tasks", width=200).out
    rows = [line for line in text.splitlines() if "Runner " in line]
    assert len(rows) == 62
    gemm = next(row for row in rows if row.endswith("embedded::gemm 64x64 96x64 96"))
    ms, default_ms, rank, runner = gemm.split()[:4]
    assert float(ms) > 0
    assert float(default_ms) > 0
    assert rank in ("0", "1")
    assert runner in ("BlockedGemmRunner", "SplitKGemmRunner")
    assert "--tasks" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_it_fits_the_terminal(cli: Cli, table_path: Path, width: int) -> None:
    """No line but the path is longer; one page."""
    lines = cli("show", table_path, width=width).out.splitlines()
    assert max(len(line) for line in lines[1:]) <= width
    assert len(lines) < 32


def test_as_json(cli: Cli, table_path: Path) -> None:
    """One document, every task in it."""
    ran = cli("show", table_path, "--json")
    assert ran.code == 0
    found = ran.document
    assert (found["kind"], found["entries"], sum(found["ops"].values())) == ("table", 62, 62)
    assert found["manifest"]["sha256_valid"] is True
    assert found["manifest"]["table_sha256"] == found["sha256"]
    assert len(found["manifest"]["tasks"]) == 62
    assert {task["outcome"] for task in found["manifest"]["tasks"].values()} == {"tuned"}
    assert found["manifest"]["identity"] == found["identity"]["identity"]
    assert found["identity"]["factors"]["tp"] == 2


def test_a_report(cli: Cli, two_starts: TwoStarts) -> None:
    """What the last start did, in words and as JSON."""
    file = max((two_starts.table.path.parent / "reports").iterdir())
    text = cli("show", file).out
    assert "27 seen, 27 from cache" in text
    assert "0 tactics timed, 0 inputs synthesised" in text
    assert "left alone  embedded::all_reduce: its tactics are collective" in text
    found = cli("show", file, "--json").document
    assert (found["kind"], found["report"]["agreement"]) == ("report", "certified")


def test_a_report_counts_ops_left_to_themselves_apart(cli: Cli, tmp_path: Path) -> None:
    """A warm start whose engine's own op timed tactics: here, and where it is explained."""
    counts = {"tactics_timed": 6, "passed_through_tactics": 6}
    inputs = {"inputs_synthesised": 3, "passed_through_inputs": 3}
    file = receipt(put(tmp_path), factors=identity().factors, **counts, **inputs)
    text = " ".join(cli("show", file).out.split())
    apart = "0 tactics timed, 0 inputs synthesised; 6 tactics more by ops left to themselves"
    assert apart in text
    assert "3 tasks, none of them tuned, 0 tactics timed." in cli("explain", file).out


def test_an_identity(cli: Cli, two_starts: TwoStarts, tmp_path: Path) -> None:
    """Its digest and its factors; recognised under any name."""
    file = tmp_path / "factors.json"
    file.write_bytes((two_starts.table.path.parent / "identity.json").read_bytes())
    digest = two_starts.table.path.parent.name
    text = cli("show", file, width=80).out
    assert digest in text
    assert "dtype           float32" in text
    assert cli("show", file, "--json").document["identity"] == digest


def test_a_table_of_flashinfers_own(cli: Cli, table_path: Path) -> None:
    """Without manifest and identity: no fault, and it is said what that means."""
    manifest_of(table_path).unlink()
    (table_path.parent / "identity.json").unlink()
    ran = cli("show", table_path)
    assert ran.code == 0
    assert "manifest  none: entries answer exactly matching tasks only" in ran.out
    assert "identity  ? (identity.json: no such file)" in ran.out
    assert "embedded::gemm              27" in ran.out


def test_a_table_under_another_name(cli: Cli, table_path: Path) -> None:
    """A copy somebody sent: its content says what it is."""
    file = table_path.rename(table_path.with_name("sent"))
    ran = cli("show", file)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == str(file)
    assert "manifest  none: " in ran.out


def test_tasks_without_a_winner_come_first(cli: Cli, table_path: Path) -> None:
    """They are few and they are why somebody looks."""
    tasks = json.loads(manifest_of(table_path).read_text())["tasks"]
    first = next(iter(tasks.values()))
    first.update(
        outcome="default", reason="out of memory", ms=None, keys=[["('a', 'R', ((7, 8),))"]]
    )
    change_manifest(table_path, tasks=tasks, known_defaults=[next(iter(tasks))])
    lines = cli("show", table_path).out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.endswith("  task"))
    assert "7x8" in lines[head + 2]
    assert "none (default): out of memory" in lines[head + 2]


# -- bad files ------------------------------------------------------------------------------------

BAD_TABLES = {
    "empty": (b"", "Input data was truncated"),
    "truncated": (b'{"_metadata": {"gpu"', "Input data was truncated"),
    "list": (b"[]", "Expected `object`, got `array`"),
    "not UTF-8": (b'{"\xff": 1}', "'utf-8' codec can't decode"),
    "null entry": (b'{"_metadata": {"gpu": "x"}, "key": null}', "key: "),
    "no stamp": (b"{}", "no stamp: the environment it was tuned in is not known"),
    "wildcard": (b'{"_metadata": {"gpu": "*"}}', "made to be accepted anywhere"),
    "deep": (b'{"k": ["R", ' + b"[" * 5000 + b"]" * 5000 + b"]}", "nested more than"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table(cli: Cli, tmp_path: Path, content: bytes, reason: str) -> None:
    """Exit code 1, and the reason for which a start would not use it."""
    file = tmp_path / "rank_tp0_pp0_dp0.json"
    file.write_bytes(content)
    ran = cli("show", file, width=200)
    assert (ran.code, ran.err) == (1, "")
    assert "table     cannot be used: " in ran.out
    assert reason in ran.out
    miss = cli("show", file, "--json").document["miss"]
    assert reason in miss["reason"]


def test_a_table_that_is_too_large(cli: Cli, table_path: Path) -> None:
    """By the setting, as in a start; it is not read to its end."""
    ran = cli("show", table_path, WARMUP_PLUGIN_TABLE_BYTES="1000")
    assert ran.code == 1
    assert "more than the 1000 bytes allowed" in ran.out


def test_a_manifest_of_another_table(cli: Cli, table_path: Path) -> None:
    """The table is shown; the manifest vouches for other bytes."""
    table_path.write_bytes(table_path.read_bytes() + b" ")
    ran = cli("show", table_path)
    assert ran.code == 1
    assert "62 entries of 5 ops" in ran.out
    assert "manifest  cannot be used: it vouches for a table of sha256 " in ran.out
    assert cli("show", table_path, "--json").document["manifest"]["sha256_valid"] is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"schema": 99}, "schema 99", id="newer"),
        pytest.param({"generation": -1}, "generation", id="negative"),
        pytest.param({"tasks": {"a": 1}}, "its tasks: ", id="tasks"),
    ],
)
def test_a_bad_manifest(cli: Cli, table_path: Path, change: dict[str, Any], words: str) -> None:
    """Told beside the table, which is shown."""
    change_manifest(table_path, **change)
    ran = cli("show", table_path)
    assert ran.code == 1
    assert "manifest  cannot be used: " in ran.out
    assert words in ran.out
    assert cli("show", manifest_of(table_path), "--json").code == 1


def test_the_identity_of_another_table(cli: Cli, table_path: Path) -> None:
    """Two files that do not belong together."""
    change_manifest(table_path, identity="ab" * 32)
    assert "identity.json is " in cli("show", table_path).out


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        pytest.param("reports/r.json", b"{}", "report", id="empty report"),
        pytest.param("reports/r.json", b"{", "report", id="truncated report"),
        pytest.param(
            "r.json", b'{"plugin_version": 1, "tasks": 5}', "report", id="malformed report"
        ),
        pytest.param("identity.json", b'{"modle": 1}', "identity", id="identity"),
    ],
)
def test_other_bad_files(cli: Cli, tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    """Described, with exit code 1."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    ran = cli("show", file)
    assert (ran.code, ran.err) == (1, "")
    assert f"  {kind}  cannot be used  " in ran.out
    document = cli("show", file, "--json").document
    assert (document["kind"], set(document["miss"])) == (kind, {"reason", "kind"})


def test_a_missing_file(cli: Cli, tmp_path: Path) -> None:
    """One line, on standard error."""
    file = tmp_path / "none.json"
    for options in ([], ["--json"]):
        ran = cli("show", file, *options)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == f"warmup-plugin: {file}: no such file or directory\n"


def test_a_directory(cli: Cli, two_starts: TwoStarts, tmp_path: Path) -> None:
    """It stands for the table in it."""
    ran = cli("show", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"warmup-plugin: {tmp_path}: no table there\n"
    assert cli("show", two_starts.table.path.parent).out == cli("show", two_starts.table.path).out


def test_a_file_cannot_steer_the_terminal(cli: Cli, table_path: Path) -> None:
    """Tables travel between machines: what is not printable is spelled out."""
    table = json.loads(table_path.read_text())
    table["('\x1b]0;owned\x07', 'R', ((1, 2),), ())"] = ["R", 0]
    table_path.write_text(json.dumps(table))
    ran = cli("show", table_path)
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert "\\x1b]0;owned\\x07" in ran.out
