# SPDX-License-Identifier: Apache-2.0
"""Where the command line looks and writes without options: where a start on this machine does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.shelves import GONE, files_below, identity, put, receipt
from warmup_plugin.cache.paths import resolve
from warmup_plugin.cli import engines, places
from warmup_plugin.engines import gate
from warmup_plugin.engines.sglang import compat as sglang
from warmup_plugin.engines.vllm import compat as vllm
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
OWN = "WARMUP_PLUGIN_CACHE_ROOT"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of this test's own, in which engines have their default roots."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    return tmp_path / "home"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which engines are installed here; their packages' metadata is what is asked."""

    def say(*packages: str) -> None:
        monkeypatch.setattr(
            places, "installed_version", lambda name: "1" if name in packages else None
        )

    return say


WHERE = {
    "vLLM's variable": ({"VLLM_CACHE_ROOT": "{}/v"}, "v"),
    "SGLang's variable": ({"SGLANG_CACHE_DIR": "{}/s"}, "s"),
    "vLLM's default": ({}, "home/.cache/vllm"),
    "vLLM's default under XDG": ({"XDG_CACHE_HOME": "{}/x"}, "x/vllm"),
    "SGLang's default": ({}, "home/.cache/sglang"),
    "ours": ({OWN: "{}/w"}, "w"),
    "the user cache": ({}, "home/.cache/warmup_plugin"),
    "the user cache under XDG": ({"XDG_CACHE_HOME": "{}/x"}, "x/warmup_plugin"),
}


@pytest.mark.parametrize(("environ", "root"), WHERE.values(), ids=WHERE)
def test_every_verb_finds_what_a_start_has_written(
    cli: Cli, home: Path, tmp_path: Path, environ: Mapping[str, str], root: str
) -> None:
    """No option is needed, wherever an engine or a runner of one's own keeps its tables."""
    assert home.parent == tmp_path
    directory = put(tmp_path / root)
    path = receipt(directory, process=GONE)
    env = {name: value.format(tmp_path) for name, value in environ.items()}
    listed = cli("ls", "--json", **env).document
    assert [row["directory"] for row in listed["tables"]] == [str(directory)]
    assert cli("verify", **env).code == 0
    assert cli("explain", "--last", "--json", **env).document["receipt"] == str(path)
    assert cli("report", "--json", **env).document["receipt"] == str(path)
    assert cli("stats", "--json", **env).document["starts"] == 1
    assert cli("where", "--arch", "sm100", "--identity", directory.name[:6], **env).out.startswith(
        str(directory)
    )
    found = cli("doctor", "--quick", "--json", **env).document["findings"]
    looked_at = [row["words"] for row in found if row["what"] == "directory"]
    assert any(words.startswith(str(tmp_path / root)) for words in looked_at), looked_at
    assert cli("pack", "-o", tmp_path / "t.tar", **env).code == 0
    assert cli("rm", directory.name[:6], **env).code == 0
    assert not directory.exists()


def test_ls_says_where_it_has_looked_and_why(cli: Cli, home: Path, tmp_path: Path) -> None:
    """All places where nothing is kept, else those that somebody has chosen or that hold some."""
    nothing = cli("ls", VLLM_CACHE_ROOT=str(tmp_path / "v"), width=300).out
    for place, source in (
        (tmp_path / "v", "VLLM_CACHE_ROOT"), (home / ".cache/sglang", "SGLang's default"),
        (home / ".cache/warmup_plugin", "user cache directory (~/.cache)"),
    ):  # fmt: skip
        assert f"{place}  ({source})\n" in nothing
    put(home / ".cache" / "sglang")
    some = cli("ls", VLLM_CACHE_ROOT=str(tmp_path / "v"), width=300).out
    assert f"{tmp_path / 'v'}  (VLLM_CACHE_ROOT): nothing yet\n" in some
    assert f"{home / '.cache/sglang'}  (SGLang's default)\n" in some
    assert "warmup_plugin" not in some
    assert "warmup_plugin" in cli("ls", "-v", width=300).out
    assert "sglang" not in cli("ls", "-q", width=300).out


class Machine(NamedTuple):
    """Variables, engines installed, roots that hold tables; where the next start looks."""

    environ: Mapping[str, str] = {}
    engines: tuple[str, ...] = ()
    there: tuple[str, ...] = ()
    target: str | None = None


TARGETS = {
    "nothing is set": Machine(target="home/.cache/warmup_plugin"),
    "vLLM is installed": Machine(engines=("vllm",), target="home/.cache/vllm"),
    "vLLM has written": Machine(there=("home/.cache/vllm",), target="home/.cache/vllm"),
    "its variable": Machine({"VLLM_CACHE_ROOT": "{}/v"}, ("vllm",), target="v"),
    "ours before a default": Machine(
        {OWN: "{}/w"}, ("vllm", "sglang"), ("home/.cache/vllm",), target="w"
    ),
    "the override before all": Machine(
        {OVERRIDE: "{}/o", "VLLM_CACHE_ROOT": "{}/v", OWN: "{}/w"}, ("vllm",), target="o"
    ),
    "two engines": Machine(engines=("vllm", "sglang")),
    "two that have written": Machine(there=("home/.cache/vllm", "home/.cache/sglang")),
    "an engine's variable and ours": Machine({"VLLM_CACHE_ROOT": "{}/v", OWN: "{}/w"}),
}


@pytest.mark.parametrize("machine", TARGETS.values(), ids=TARGETS)
@pytest.mark.usefixtures("home")
def test_it_writes_where_the_next_start_looks_or_asks(
    cli: Cli, tmp_path: Path, installed: Callable[..., None], machine: Machine
) -> None:
    """The question has every choice as an option to copy, and nothing is written then."""
    put(tmp_path / "made")
    cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "made")
    for root in machine.there:
        put(tmp_path / root, identity(tp=8))
    installed(*machine.engines)
    env = {name: value.format(tmp_path) for name, value in machine.environ.items()}
    before = files_below(tmp_path)
    ran = cli("unpack", tmp_path / "t.tar", "--json", **env)
    if machine.target is None:
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.count("--root /") == 2
        assert files_below(tmp_path) == before
        return
    (row,) = ran.document["identities"]
    assert Path(row["directory"]).is_relative_to(tmp_path / machine.target)


@pytest.mark.parametrize("adapter", [vllm, sglang], ids=["vllm", "sglang"])
@pytest.mark.parametrize("has_variable", [False, True])
@pytest.mark.parametrize("has_ours", [False, True])
def test_our_root_means_the_same_in_an_engine_and_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: object,
    has_variable: bool, has_ours: bool,  # noqa: FBT001  # the four cases
) -> None:  # fmt: skip
    """Before the engine's default, behind its variable: what an adapter passes is what we find."""
    assert isinstance(adapter, type(vllm))
    variable = adapter.ROOT_VARIABLE
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    environ = {"HOME": str(tmp_path)}
    if has_variable:
        monkeypatch.setenv(variable, "/engine")
        environ[variable] = "/engine"
    settings = Settings(cache_root=Path("/ours") if has_ours else None)
    said = Path("/engine") if has_variable else adapter.default_root(environ)
    given = gate.engine_root(variable, lambda: said, settings)
    start = resolve(
        settings, "0" * 64, version="1", arch="cpu", engine_root=given, environ=environ
    ).root
    package = adapter.__name__.split(".")[-2]
    assert places.of_engine(package, settings, environ).path == start
    expected = {(True, True): "/engine", (True, False): "/engine", (False, True): "/ours"}
    assert str(start) == expected.get((has_variable, has_ours), str(adapter.default_root(environ)))


def test_where_our_root_does_nothing_is_said(cli: Cli, tmp_path: Path) -> None:
    """By `doctor` and by `config`."""
    env = {"VLLM_CACHE_ROOT": str(tmp_path / "v"), OWN: str(tmp_path / "w")}
    words = f"{OWN} has no effect in vLLM: VLLM_CACHE_ROOT is set"
    assert words in cli("config", **env).err
    found = cli("doctor", "--quick", "--json", **env).document["findings"]
    assert any(row["words"].startswith(words) and row["fix"] for row in found)


def test_import_of_an_engines_tables_is_for_that_engine(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    """They go where its next start looks, though another place is as likely for others."""
    theirs = home / ".cache" / "sglang" / "flashinfer" / "autotune" / "rank_0.json"
    theirs.parent.mkdir(parents=True)
    stamp = {"flashinfer_version": "0.7.2.post1", "gpu": "unknown"}
    entry = {"_metadata": stamp, "('op', 'R', ((1,),), ())": ["R", 1]}
    theirs.write_text(json.dumps(entry))
    (row,) = cli("import", "sglang", "--arch", "cpu", "--json", VLLM_CACHE_ROOT=str(tmp_path)
                 ).document["tables"]  # fmt: skip
    assert Path(row["path"]).is_relative_to(home / ".cache" / "sglang" / "flashinfer_autotune")


def test_prune_goes_by_all_roots(cli: Cli, home: Path, tmp_path: Path) -> None:
    """As `ls` lists them."""
    old = put(home / ".cache" / "vllm", version="0.6.13")
    older = put(tmp_path / "w", identity(tp=4), version="0.6.13")
    env = {OWN: str(tmp_path / "w"), "VLLM_CACHE_ROOT": str(home / ".cache" / "vllm")}
    ran = cli("prune", "--version", "0.6.13", "--json", **env)
    assert {row["directory"] for row in ran.document["chosen"]} == {str(old), str(older)}
    assert not old.exists()
    assert not older.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["ls", "--engine-root", ""], ["ls", "--root="], ["verify", ""], ["unpack", ""],
        ["where", "--identity", ""], ["unpack", "t.tar", "--digest", ""], ["doctor", "--root", ""],
    ],
)  # fmt: skip
def test_an_empty_value_is_wrong_usage(cli: Cli, argv: list[str]) -> None:
    """`--engine-root "$VLLM_CACHE_ROOT"` with that unset must not mean the current directory."""
    ran = cli(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert "must not be empty" in ran.err


LOADED = [
    (engines.vllm_loads, None, True), (engines.vllm_loads, "warmup_plugin", True),
    (engines.vllm_loads, "a,warmup_plugin", True), (engines.vllm_loads, "a, warmup_plugin", False),
    (engines.vllm_loads, "", False), (engines.vllm_loads, "a", False),
    (engines.sglang_loads, None, True), (engines.sglang_loads, "", True),
    (engines.sglang_loads, "a, warmup_plugin", True), (engines.sglang_loads, "a", False),
    (engines.sglang_loads, ",", False),
]  # fmt: skip


@pytest.mark.parametrize(("loads", "chosen", "expected"), LOADED)
def test_each_engine_reads_its_list_its_own_way(
    loads: Callable[[str | None, str], bool], chosen: str | None,
    expected: bool,  # noqa: FBT001  # the answer
) -> None:  # fmt: skip
    """As their loaders do: vLLM takes no blank away, SGLang does; nothing set means all there."""
    assert loads(chosen, "warmup_plugin") is expected
