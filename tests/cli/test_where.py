# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin where`: the same path as a warm-up's, each part with its source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.cli import environment
from warmup_plugin.cli.demo_run import TwoStarts

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

IDENTITY = "3fa9" + "0" * 60
OTHER = "3fb0" + "1" * 60
HERE = ("--version", "0.7.2", "--arch", "sm100")
BELOW = "flashinfer_autotune/0.7.2/sm100"
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"


def sources(document: Any) -> dict[str, str]:
    return {part["name"]: part["source"] for part in document["components"]}


@pytest.mark.parametrize(
    ("options", "environ", "directory", "source"),
    [
        pytest.param(["--root", "/r"], {OVERRIDE: "/o"}, f"/r/{BELOW}", "--root", id="argument"),
        pytest.param(["--engine-root", "/e"], {OVERRIDE: "/o"}, "/o", OVERRIDE, id="override"),
        pytest.param(
            ["--engine-root", "/e"],
            {"WARMUP_PLUGIN_CACHE_ROOT": "/w"},
            f"/e/{BELOW}",
            "--engine-root",
            id="engine",
        ),
        pytest.param(
            [],
            {"WARMUP_PLUGIN_CACHE_ROOT": "/w", "XDG_CACHE_HOME": "/x"},
            f"/w/{BELOW}",
            "WARMUP_PLUGIN_CACHE_ROOT",
            id="setting",
        ),
        pytest.param(
            [],
            {"XDG_CACHE_HOME": "/x"},
            f"/x/warmup_plugin/{BELOW}",
            "user cache directory ($XDG_CACHE_HOME)",
            id="xdg",
        ),
        pytest.param(
            [],
            {"XDG_CACHE_HOME": None, "HOME": "/h"},
            f"/h/.cache/warmup_plugin/{BELOW}",
            "user cache directory (~/.cache)",
            id="home",
        ),
    ],
)
def test_the_first_source_that_is_set_wins(
    cli: Cli, options: list[str], environ: dict[str, str | None], directory: str, source: str
) -> None:
    """The order of `paths.resolve`, in the words of the command line; with and without identity."""
    above = cli("where", *HERE, *options, "--json", **environ).document
    assert above["directory"] == directory
    assert (above["identity"], above["exists"], above["identities"]) == (None, False, [])
    assert next(iter(sources(above).values())) == source
    exact = cli("where", *HERE, *options, "--identity", IDENTITY, "--json", **environ).document
    assert exact["directory"] == f"{directory}/{IDENTITY}"
    assert exact["components"][:-1] == above["components"]
    assert sources(exact)["identity"] == "sha256 of the config factors"


def test_version_and_arch_have_their_sources(cli: Cli) -> None:
    """Given, they are told so; else they are this machine's."""
    given = sources(cli("where", "--root", "/r", *HERE, "--json").document)
    assert (given["version"], given["arch"]) == ("--version", "--arch")
    found = cli("where", "--root", "/r", "--json").document
    assert sources(found)["version"] == "flashinfer-python installed here"
    assert sources(found)["arch"].startswith(("torch ", "nvidia-smi"))


def test_a_relative_root_is_meant_from_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a setting, which several processes share, an option has one current directory."""
    monkeypatch.chdir(tmp_path)
    found = cli("where", "--root", "cache", *HERE, "--json").document
    assert found["directory"] == f"{tmp_path}/cache/{BELOW}"


# -- what is kept there ---------------------------------------------------------------------------


def test_the_identities_are_listed(two_starts: TwoStarts, cli: Cli) -> None:
    """With what they stand for, and what there is of them."""
    ran = cli("where", "--root", two_starts.root)
    directory = two_starts.table.path.parent
    assert ran.code == 0
    assert ran.out.splitlines()[0] == str(directory.parent)
    (row,) = (line for line in ran.out.splitlines() if directory.name[:12] in line)
    assert "62  complete" in row
    assert "float32, TP2 x PP2" in row
    (found,) = cli("where", "--root", two_starts.root, "--json").document["identities"]
    assert found["identity"] == directory.name
    assert found["tables"] == [str(two_starts.table.path)]
    assert (found["entries"], found["state"]) == (62, "complete")


@pytest.mark.parametrize("asked", ["whole", "prefix", "factors"])
def test_one_identity(two_starts: TwoStarts, cli: Cli, asked: str) -> None:
    """By its digits, by the first of them, by its factors."""
    directory = two_starts.table.path.parent
    options = {
        "whole": ["--identity", directory.name],
        "prefix": ["--identity", directory.name[:5].upper()],
        "factors": ["--factors", str(directory / "identity.json")],
    }[asked]
    ran = cli("where", "--root", two_starts.root, *options, width=80)
    assert ran.out.splitlines()[0] == str(directory)
    assert "float32, TP2 x PP2: complete" in ran.out
    assert "rank_tp0_pp0_dp0.json  62 entries" in ran.out


def test_a_prefix_must_be_of_one_identity(cli: Cli, tmp_path: Path) -> None:
    """None or several is an answer too: no."""
    for name in (IDENTITY, OTHER):
        (tmp_path / BELOW / name).mkdir(parents=True)
    assert cli("where", "--root", tmp_path, *HERE, "--identity", "3fb").code == 0
    several = cli("where", "--root", tmp_path, *HERE, "--identity", "3f")
    assert several.code == 1
    assert f"{IDENTITY[:12]}, {OTHER[:12]}" in several.err
    none = cli("where", "--root", tmp_path, *HERE, "--identity", "ab")
    assert (none.code, none.out) == (1, "")
    assert "no identity" in none.err


@pytest.mark.parametrize(
    ("make", "state"),
    [
        pytest.param(lambda _table: None, "complete", id="as it is"),
        pytest.param(lambda table: table.write_text("[]"), "has faults", id="bad table"),
        pytest.param(
            lambda table: table.with_suffix(".manifest.json").unlink(), "no manifest", id="bare"
        ),
        pytest.param(lambda table: table.unlink(), "empty", id="no table"),
    ],
)
def test_the_state_in_a_word(
    table_path: Path, cli: Cli, make: Callable[[Path], object], state: str
) -> None:
    """Files that are bad, bare or gone are listed, never an error."""
    shelf = table_path.parent / "override"
    directory = shelf / IDENTITY
    shelf.mkdir()
    directory.mkdir()
    for file in table_path.parent.glob("*.json"):
        file.rename(directory / file.name)
    make(directory / table_path.name)
    ran = cli("where", "--json", **{OVERRIDE: str(shelf)})
    assert ran.code == 0
    assert [found["state"] for found in ran.document["identities"]] == [state]


def test_it_changes_nothing(two_starts: TwoStarts, cli: Cli) -> None:
    """Not even where a file is bad: that is the library's to set aside."""

    def marks() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in two_starts.root.rglob("*")}

    before = marks()
    assert cli("where", "--root", two_starts.root).code == 0
    assert cli("show", two_starts.table.path).code == 0
    assert marks() == before


# -- without FlashInfer, without torch ------------------------------------------------------------


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(environment, "installed_version", versions.get)


def test_without_flashinfer_the_version_must_be_given(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the override is in force, whose path does not hold it."""
    installed(monkeypatch)
    ran = cli("where", "--root", "/r", "--arch", "cpu")
    assert ran.code == 1
    assert ran.err == "warmup-plugin: FlashInfer is not installed here: say which with --version\n"
    assert cli("where", "--root", "/r", *HERE).code == 0
    assert cli("where", **{OVERRIDE: "/o"}).code == 0


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put an `nvidia-smi` first in PATH that answers with these lines."""

    def put(*lines: str, code: int = 0) -> None:
        script = tmp_path / "nvidia-smi"
        answer = "".join(f"echo '{line}'\n" for line in lines)
        script.write_text(f"#!/bin/sh\n{answer}exit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.parametrize(
    ("lines", "environ", "arch", "source"),
    [
        pytest.param(["9.0"], {}, "sm90", "nvidia-smi", id="one"),
        pytest.param(["10.0", "10.0"], {}, "sm100", "nvidia-smi", id="equal"),
        pytest.param(
            ["9.0", "12.0"],
            {"CUDA_VISIBLE_DEVICES": "1"},
            "sm120",
            "nvidia-smi, GPU 1 of different ones",
            id="the visible one",
        ),
        pytest.param(["No devices were found"], {}, "cpu", "nvidia-smi finds no GPU", id="none"),
        pytest.param(
            ["9.0"],
            {"CUDA_VISIBLE_DEVICES": ""},
            "cpu",
            "CUDA_VISIBLE_DEVICES hides every GPU",
            id="hidden",
        ),
    ],
)
def test_the_architecture(
    *,
    monkeypatch: pytest.MonkeyPatch,
    gpus: Callable[..., None],
    lines: list[str],
    environ: dict[str, str],
    arch: str,
    source: str,
) -> None:
    """As torch would name the device, without torch."""
    installed(monkeypatch)
    gpus(*lines)
    found = environment.architecture(environ)
    assert (found.value, found.source) == (arch, source)


def test_a_build_of_torch_without_cuda_means_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[..., None]
) -> None:
    """Whatever the machine has: the library asks torch."""
    gpus("9.0")
    installed(monkeypatch, torch="2.13.0+cpu")
    assert environment.architecture({}).value == "cpu"
    installed(monkeypatch, torch="2.13.0")
    assert environment.architecture({}).value == "sm90"


def test_a_driver_that_fails_means_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[..., None]
) -> None:
    """No driver is no GPU."""
    installed(monkeypatch)
    gpus("NVIDIA-SMI has failed", code=9)
    assert environment.architecture({}).value == "cpu"
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment.architecture({}).value == "cpu"


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param(["--identity", "xyz"], 2, "must be 1 to 64 hex digits", id="no hex"),
        pytest.param(["--identity", "0" * 65], 2, "must be 1 to 64 hex digits", id="too long"),
        pytest.param(["--version", "../.."], 2, "must be a PEP 440 version", id="version"),
        pytest.param(["--arch", "hopper"], 2, "must be sm<digits> or cpu", id="arch"),
        pytest.param(["--identity", "1", "--factors", "f"], 2, "not allowed with", id="both"),
        pytest.param(["--factors", "/no/such/file"], 1, "no such file", id="no factors"),
    ],
)
def test_bad_options(cli: Cli, options: list[str], code: int, words: str) -> None:
    """Wrong usage is 2; a file that is not there is 1."""
    ran = cli("where", "--root", "/r", *HERE, *options)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        pytest.param({"modle": "x"}, "modle is", id="unknown"),
        pytest.param({"model": "m", "tp": 0}, "tp is 0: must be a whole number", id="size"),
        pytest.param([], "Expected `object`, got `array`", id="list"),
    ],
)
def test_bad_factors(cli: Cli, tmp_path: Path, factors: object, words: str) -> None:
    """The rule that the identity breaks."""
    file = tmp_path / "factors.json"
    file.write_text(json.dumps(factors))
    ran = cli("where", "--root", "/r", *HERE, "--factors", file)
    assert (ran.code, ran.out) == (1, "")
    assert words in ran.err


def test_no_home_directory(cli: Cli) -> None:
    """There is no path, and the way out is named."""
    ran = cli("where", *HERE, XDG_CACHE_HOME=None, HOME=None)
    assert ran.code == 1
    assert "set WARMUP_PLUGIN_CACHE_ROOT" in ran.err
