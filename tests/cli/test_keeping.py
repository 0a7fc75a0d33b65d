# SPDX-License-Identifier: Apache-2.0
"""The verbs about what is kept: ls, verify, prune, doctor, on tables made by hand."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.shelves import ARCH, GONE, STAMP, VERSION, age, files_below, identity, put, receipt
from warmup_plugin.cache.lease import hold
from warmup_plugin.cli import doctor_checks
from warmup_plugin.runtime.process_info import own_card

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

ELSEWHERE = {"pid": 7, "started": 7, "place": "another machine"}


# -- ls --------------------------------------------------------------------------------------------


def test_ls_has_a_line_for_each_identity_the_newest_last(cli: Cli, tmp_path: Path) -> None:
    """Of all versions, of the root and of the layers, in words and as JSON."""
    layer = tmp_path / "layer"
    put(layer, identity(tp=8))
    old = put(tmp_path / "root", identity(pp=2), version="0.7.0")
    age(old, 3)
    new = put(tmp_path / "root")
    ran = cli("ls", "--root", tmp_path / "root", WARMUP_PLUGIN_LAYERS=str(layer))
    *lines, total = ran.out.splitlines()
    assert total.split()[:2] == ["3", "identities,"]
    assert lines[3].split()[0] == old.name[:12]
    assert {line.split()[0] for line in lines[3:]} == {
        old.name[:12], new.name[:12], identity(tp=8).digest[:12]
    }  # fmt: skip
    assert any("layer" in line and "TP8" in line for line in lines[3:])
    document = cli("ls", "--root", tmp_path / "root", "--json").document
    rows = {row["identity"]: row for row in document["tables"]}
    assert rows[new.name] | {"changed": 0} == {
        "identity": new.name, "directory": str(new), "flashinfer": VERSION, "arch": ARCH,
        "layer": True, "tables": ["rank_tp0_pp0_dp0.json"], "entries": 3,
        "bytes": sum(p.stat().st_size for p in new.iterdir() if p.is_file()),
        "state": "complete", "engine": "vllm 0.33.0", "changed": 0, "about": "m, bfloat16, TP2",
    } | {"layer": False}  # fmt: skip


def test_ls_says_what_a_glance_tells(cli: Cli, tmp_path: Path) -> None:
    """No manifest, one of a later version, a broken one; a long header is read to its end."""
    manifest = "rank_tp0_pp0_dp0.manifest.json"
    states = {}
    for number, (name, text) in enumerate(
        {"no manifest": None, "newer": '{"schema": 99}', "has faults": "{", "empty": ""}.items()
    ):
        directory = put(tmp_path, identity(tp=number + 1))
        states[directory.name] = name
        if name == "empty":
            (directory / "rank_tp0_pp0_dp0.json").unlink()
        elif text is None:
            (directory / manifest).unlink()
        else:
            (directory / manifest).write_text(text)
    long = put(tmp_path, identity(tp=16))
    whole = json.loads((long / manifest).read_bytes())
    tasks = whole.pop("tasks")
    whole |= {"loose": [f"key {n}" for n in range(2000)], "tasks": tasks}
    (long / manifest).write_text(json.dumps(whole, indent=0))
    states[long.name] = "complete"
    found = cli("ls", "--root", tmp_path, "--json").document["tables"]
    assert {row["identity"]: row["state"] for row in found} == states


def test_ls_where_nothing_is(cli: Cli, tmp_path: Path) -> None:
    ran = cli("ls", "--root", tmp_path / "nowhere")
    assert (ran.code, "Nothing is kept there yet" in ran.out) == (0, True)


# -- verify ----------------------------------------------------------------------------------------


def test_verify_takes_what_the_store_writes(cli: Cli, tmp_path: Path) -> None:
    put(tmp_path)
    ran = cli("verify", "--root", tmp_path)
    assert (ran.code, "1 of 1 table holds" in ran.out) == (0, True)


@pytest.mark.parametrize("fault", ["cut", "edited", "no manifest", "no identity", "moved", "task"])
def test_verify_names_a_fault(cli: Cli, tmp_path: Path, fault: str) -> None:
    """Each changes one thing on disk; the other table still holds."""
    directory = put(tmp_path)
    put(tmp_path, identity(tp=4))
    table, manifest = (directory / f"rank_tp0_pp0_dp0{end}.json" for end in ("", ".manifest"))
    expected = "sha256"
    if fault == "cut":
        table.write_bytes(table.read_bytes()[:40])
        expected = "truncated"
    elif fault == "edited":
        table.write_bytes(table.read_bytes().replace(b"7", b"8", 1))
    elif fault == "no manifest":
        manifest.unlink()
        expected = "no such file"
    elif fault == "no identity":
        (directory / "identity.json").unlink()
        expected = "identity.json"
    elif fault == "moved":
        directory.rename(directory.with_name("0" * 64))
        expected = "not the directory"
    else:
        manifest.write_bytes(manifest.read_bytes().replace(b"((1, 64)", b"((3, 64)"))
        expected = "a task without its winner"
    ran = cli("verify", "--root", tmp_path, width=300)
    assert ran.code == 1
    assert expected in ran.out
    assert "1 of 2 tables holds" in ran.out


def test_verify_by_name(cli: Cli, tmp_path: Path) -> None:
    """A table, a directory, first digits."""
    directory = put(tmp_path)
    put(tmp_path, identity(tp=4))
    for what in (directory, directory / "rank_tp0_pp0_dp0.json", directory.name[:6]):
        found = cli("verify", what, "--root", tmp_path, "--json").document
        assert [Path(row["path"]).parent for row in found["tables"]] == [directory]
    assert cli("verify", "--root", tmp_path / "nowhere").code == 1


# -- prune -----------------------------------------------------------------------------------------


def prune(cli: Cli, root: Path, *options: str) -> set[str]:
    """Prune, and return what is left."""
    cli("prune", *options, "--root", root)
    return {path.name for path in (root / "flashinfer_autotune").glob("*/*/*")}


def test_prune_by_age_counts_from_the_last_use(cli: Cli, tmp_path: Path) -> None:
    """A receipt is a use; what is younger stays."""
    old, used, new = (put(tmp_path, identity(tp=tp)) for tp in (1, 2, 4))
    age(old, 40)
    age(used, 40)
    receipt(used, process=GONE)
    assert prune(cli, tmp_path, "--older-than", "30d") == {used.name, new.name}


def test_prune_by_size_takes_the_least_recently_used(cli: Cli, tmp_path: Path) -> None:
    directories = [put(tmp_path, identity(tp=tp)) for tp in (1, 2, 4)]
    for days, directory in enumerate(directories):
        age(directory, 3 - days)
    assert prune(cli, tmp_path, "--max-size", "3kB") == {d.name for d in directories[1:]}


def test_prune_by_version(cli: Cli, tmp_path: Path) -> None:
    old, new = put(tmp_path, version="0.6.13"), put(tmp_path, identity(tp=4))
    assert prune(cli, tmp_path, "--version", "0.6.13") == {new.name}
    assert not old.exists()


def test_prune_never_takes_what_is_in_use(cli: Cli, tmp_path: Path) -> None:
    """A lease held, a process that runs, one of another machine started lately: by every option."""
    tuned, served, seen_elsewhere, gone, long_ago = (
        put(tmp_path, identity(tp=tp), version="0.6.13") for tp in (1, 2, 4, 8, 16)
    )
    receipt(served, process=own_card().to_json(), at=time.time() - 40 * 86_400)
    receipt(seen_elsewhere, process=ELSEWHERE)
    receipt(gone, process=GONE)
    receipt(long_ago, process=ELSEWHERE, at=time.time() - 40 * 86_400)
    for directory in (tuned, served, seen_elsewhere, gone, long_ago):
        age(directory, 40)
    options = ("--version", "0.6.13", "--older-than", "1d", "--max-size", "1kB")
    with hold(tuned) as holder:
        assert not holder
        left = prune(cli, tmp_path, *options)
    assert left == {tuned.name, served.name, seen_elsewhere.name}
    said = cli("prune", *options, "--root", tmp_path, "--json").document
    in_use = {row["identity"]: row["in_use_by"] for row in said["chosen"] if row["in_use_by"]}
    assert in_use.keys() == {served.name, seen_elsewhere.name}
    assert str(os.getpid()) in in_use[served.name]


def test_prune_dry_run_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    age(put(tmp_path), 40)
    before = files_below(tmp_path)
    ran = cli("prune", "--older-than", "30d", "--set-aside", "--dry-run", "--root", tmp_path)
    assert "would go: 1 identity" in ran.out
    assert files_below(tmp_path) == before


def test_prune_clears_what_was_set_aside(cli: Cli, tmp_path: Path) -> None:
    directory = put(tmp_path)
    (directory / "foreign").mkdir()
    (directory / "foreign" / "rank_tp0_pp0_dp0.json.12345678").write_text("{")
    assert prune(cli, tmp_path, "--set-aside") == {directory.name}
    assert not (directory / "foreign").exists()


def test_prune_leaves_layers_alone_and_wants_to_be_told(cli: Cli, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    age(put(layer), 400)
    before = files_below(layer)
    cli("prune", "--older-than", "1d", "--root", tmp_path, WARMUP_PLUGIN_LAYERS=str(layer))
    assert files_below(layer) == before
    assert cli("prune", "--root", tmp_path).code == 2
    assert cli("prune", "--older-than", "soon", "--root", tmp_path).code == 2


def test_prune_follows_no_link(cli: Cli, tmp_path: Path) -> None:
    """A link in an identity's place stays, with what it leads to; the command says so."""
    theirs = put(tmp_path / "theirs", version="0.6.13")
    shelf = tmp_path / "ours" / "flashinfer_autotune" / "0.6.13" / "sm100"
    shelf.mkdir(parents=True)
    (shelf / theirs.name).symlink_to(theirs)
    ran = cli("prune", "--version", "0.6.13", "--set-aside", "--root", tmp_path / "ours")
    assert (ran.code, "a link; not followed" in ran.out) == (1, True)
    assert (theirs / "identity.json").exists()
    assert (shelf / theirs.name).is_symlink()


# -- doctor ----------------------------------------------------------------------------------------


def states(cli: Cli, *options: object, **environ: str | None) -> dict[str, tuple[str, str]]:
    ran = cli("doctor", "--quick", *options, "--json", **environ)
    found = ran.document["findings"]
    assert ran.code == (0 if ran.document["well"] else 1)
    assert all(row["fix"] for row in found if row["state"] == "bad")
    return {row["what"]: (row["state"], row["words"]) for row in found}


def test_doctor_finds_nothing_where_all_is_well(cli: Cli, tmp_path: Path) -> None:
    put(tmp_path)
    before = files_below(tmp_path)
    found = states(cli, "--root", tmp_path)
    assert {state for state, _ in found.values()} <= {"good", "note"}
    assert found["tables"] == ("good", "1 identity, 1 complete")
    assert files_below(tmp_path) == before


def test_doctor_names_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    """A file where the directory should be, a layer that is not there, faults in a table."""
    directory = put(tmp_path / "root")
    (directory / "rank_tp0_pp0_dp0.manifest.json").write_text("{")
    (directory / "foreign").mkdir()
    found = states(cli, "--root", tmp_path / "root", WARMUP_PLUGIN_LAYERS="/not/there")
    assert found["tables"][0] == "bad"
    assert found["set aside"][0] == "note"
    assert found["layer"][0] == "bad"
    (tmp_path / "file").write_text("")
    assert states(cli, "--root", tmp_path / "file")["directory"][0] == "bad"
    assert states(cli, WARMUP_PLUGIN_MODE="onn")["settings"][0] == "bad"
    assert states(cli, "--root", tmp_path, WARMUP_PLUGIN_MODE="off")["mode"][0] == "note"


@pytest.mark.multiprocess
def test_doctor_tries_flashinfer(cli: Cli, tmp_path: Path) -> None:
    """In a child: all that is used of it is there."""
    found = cli("doctor", "--root", tmp_path, "--json").document["findings"]
    (probe,) = (row for row in found if row["what"] == "probe")
    assert probe["state"] == "good", probe
    assert STAMP["flashinfer_version"] in probe["words"]


@pytest.mark.parametrize(
    ("version", "plugins", "points", "expected"),
    [
        ("0.33.0", None, True, {"engine": "good", "entry point": "good"}),
        ("0.33.0+cu130", "a,warmup_plugin", True, {"engine": "good", "entry point": "good"}),
        ("0.33.0.post1", None, True, {"engine": "note", "entry point": "good"}),
        ("0.34.0", None, True, {"engine": "bad", "entry point": "good"}),
        ("0.33.0", "another", True, {"engine": "good", "entry point": "bad"}),
        ("0.33.0", None, False, {"engine": "good", "entry point": "bad"}),
        (None, None, True, {"engine": "note"}),
    ],
)
def test_doctor_knows_whether_the_engine_finds_the_plugin(
    monkeypatch: pytest.MonkeyPatch, version: str | None, plugins: str | None,
    points: bool, expected: dict[str, str],  # noqa: FBT001  # whether the entry point is there
) -> None:  # fmt: skip
    """By version, entry point, and vLLM's own choice of plugins; as installed metadata says it."""
    point = importlib.metadata.EntryPoint("warmup_plugin", "w:register", "vllm.general_plugins")
    monkeypatch.setattr(doctor_checks, "installed_version", {"vllm": version}.get)
    monkeypatch.setattr(
        importlib.metadata, "entry_points",
        lambda group: [point] if points and group == point.group else [],
    )  # fmt: skip
    environ = {} if plugins is None else {"VLLM_PLUGINS": plugins}
    found = {row.what: row for row in doctor_checks.packages(environ) if row.what != "FlashInfer"}
    assert {what: row.state for what, row in found.items()} == expected
    assert all(row.fix for row in found.values() if row.state == "bad")


@pytest.mark.parametrize(
    ("untested", "state"),
    [(None, "bad"), ("", "bad"), ("off", "bad"), ("probe", "note")],
)
def test_doctor_names_the_setting_that_has_an_untested_engine_tried(
    monkeypatch: pytest.MonkeyPatch, untested: str | None, state: str
) -> None:
    monkeypatch.setattr(doctor_checks, "installed_version", {"vllm": "0.99.0"}.get)
    environ = {} if untested is None else {"WARMUP_PLUGIN_UNTESTED": untested}
    (found,) = [row for row in doctor_checks.packages(environ) if row.what == "engine"]
    assert found.state == state
    assert "0.99.0 is not a tested version" in found.words
    assert "WARMUP_PLUGIN_UNTESTED" in found.fix


@pytest.mark.parametrize(
    ("version", "plugins", "expected"),
    [
        ("0.5.23", None, {"engine": "good", "entry point": "good"}),
        ("0.5.23", "", {"engine": "good", "entry point": "good"}),  # nothing named is all, there
        ("0.5.23", "a, warmup_plugin", {"engine": "good", "entry point": "good"}),
        ("0.5.23", "a", {"engine": "good", "entry point": "bad"}),
        ("0.6.0", None, {"engine": "bad", "entry point": "good"}),
    ],
)
def test_doctor_knows_sglang(
    monkeypatch: pytest.MonkeyPatch, version: str, plugins: str | None, expected: dict[str, str]
) -> None:
    point = importlib.metadata.EntryPoint("warmup_plugin", "w:register", "sglang.srt.plugins")
    monkeypatch.setattr(doctor_checks, "installed_version", {"sglang": version}.get)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == point.group else []
    )
    environ = {} if plugins is None else {"SGLANG_PLUGINS": plugins}
    found = {
        row.what: row.state for row in doctor_checks.packages(environ) if row.what != "FlashInfer"
    }
    assert found == expected
