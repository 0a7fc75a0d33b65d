# SPDX-License-Identifier: Apache-2.0
"""Where files lie: the order of the sources, the names, what makes no path."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from warmup_plugin.cache.paths import (
    IDENTITY_NAME,
    Component,
    Placement,
    PlacementError,
    manifest_name,
    parse_table_name,
    resolve,
    table_name,
)
from warmup_plugin.identity import Identity
from warmup_plugin.settings import Settings

DIGEST = "ab" * 32
BELOW = f"flashinfer_autotune/0.7.2.post1/sm90/{DIGEST}"


class Source(NamedTuple):
    """One way to say where tables go, and where they go then."""

    name: str
    settings: dict[str, Any]
    arguments: dict[str, Any]
    environ: dict[str, str]
    directory: str
    word: str


# In order of precedence.
SOURCES = [
    Source("argument", {}, {"argument": Path("/arg")}, {}, f"/arg/{BELOW}", "argument"),
    Source(
        "override",
        {"override_dir": Path("/over")},
        {},
        {},
        f"/over/{DIGEST}",
        "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
    ),
    Source("engine", {}, {"engine_root": Path("/engine")}, {}, f"/engine/{BELOW}", "engine root"),
    Source(
        "setting",
        {"cache_root": Path("/root")},
        {},
        {},
        f"/root/{BELOW}",
        "WARMUP_PLUGIN_CACHE_ROOT",
    ),
    Source(
        "xdg",
        {},
        {},
        {"XDG_CACHE_HOME": "/xdg"},
        f"/xdg/warmup_plugin/{BELOW}",
        "user cache directory ($XDG_CACHE_HOME)",
    ),
    Source(
        "home",
        {},
        {},
        {"HOME": "/home/u"},
        f"/home/u/.cache/warmup_plugin/{BELOW}",
        "user cache directory (~/.cache)",
    ),
]
SUBSETS = [
    subset
    for number in range(1, len(SOURCES) + 1)
    for subset in itertools.combinations(SOURCES, number)
]


def place(*sources: Source, digest: str = DIGEST, **facts: str) -> Placement:
    settings: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    environ: dict[str, str] = {}
    for source in sources:
        settings |= source.settings
        arguments |= source.arguments
        environ |= source.environ
    arguments |= {"version": "0.7.2.post1", "arch": "sm90"} | facts
    return resolve(Settings.from_env({}, **settings), digest, environ=environ, **arguments)


@pytest.mark.parametrize(
    "subset", SUBSETS, ids=lambda subset: "+".join(source.name for source in subset)
)
def test_the_first_source_that_is_set_wins(subset: tuple[Source, ...]) -> None:
    """Every combination of sources, all of them true at once."""
    placement = place(*subset)
    assert placement.directory == Path(subset[0].directory)
    assert placement.components[0].source == subset[0].word


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_components_make_up_the_path(source: Source) -> None:
    """What `where` prints is all there is to the path."""
    placement = place(source)
    parts = [component.value for component in placement.components]
    assert Path(*parts) == placement.directory
    names = [component.name for component in placement.components]
    if source.name == "override":
        assert names == ["override", "identity"]
    else:
        assert names == ["root", "layout", "version", "arch", "identity"]


def test_the_files_of_a_rank() -> None:
    """The mission's form of the path, and the manifest beside it."""
    placement = place(SOURCES[0])
    assert placement.table(0, 1, 2) == Path(f"/arg/{BELOW}/rank_tp0_pp1_dp2.json")
    assert placement.manifest(0, 1, 2) == Path(f"/arg/{BELOW}/rank_tp0_pp1_dp2.manifest.json")
    assert Component("arch", "sm90", "compute capability of the device") in placement.components


def test_the_override_does_not_change_the_identity() -> None:
    """Placement is never a factor: the last part of the path is the same with and without."""
    identity = Identity.of(model="m", dtype="bfloat16")
    names = {
        place(*sources, digest=identity.digest).directory.name
        for sources in ([SOURCES[1]], [SOURCES[2]], SOURCES)
    }
    assert names == {identity.digest}


@pytest.mark.parametrize("name", ["relative", ""])
def test_a_relative_xdg_directory_is_ignored(name: str) -> None:
    """As its specification has it."""
    xdg = SOURCES[4]._replace(environ={"XDG_CACHE_HOME": name})
    assert place(xdg, SOURCES[5]).directory == Path(SOURCES[5].directory)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}], ids=str)
def test_no_home_directory(environ: dict[str, str]) -> None:
    """There is nowhere to go: the error says what to set."""
    with pytest.raises(PlacementError, match="no home directory: set WARMUP_PLUGIN_CACHE_ROOT"):
        place(SOURCES[5]._replace(environ=environ))


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("version", ""),
        ("version", "../0.7"),
        ("version", "v0.7"),
        ("version", "0.7/2"),
        ("version", "0.7\n"),
        ("arch", "sm"),
        ("arch", "SM90"),
        ("arch", "sm90/.."),
        ("arch", "cuda"),
        ("arch", "sm90\n"),
        ("digest", DIGEST[:-1]),
        ("digest", DIGEST.upper()),
        ("digest", "/" * 64),
        ("digest", DIGEST + "\n"),
    ],
)
def test_a_bad_part_makes_no_path(fact: str, value: str) -> None:
    """The error names the part, its value and the rule; nothing escapes the root."""
    with pytest.raises(PlacementError) as caught:
        place(SOURCES[0], **{fact: value})
    assert caught.value.name == {"digest": "identity"}.get(fact, fact)
    assert caught.value.value == value
    assert caught.value.rule in str(caught.value)


@pytest.mark.parametrize("version", ["0.6.11.post2", "0.7.2.post1", "0.7.0+cu128", "0.8.0rc1.dev2"])
@pytest.mark.parametrize("arch", ["sm90", "sm100", "sm121", "cpu"])
def test_versions_and_architectures(version: str, arch: str) -> None:
    """What FlashInfer and devices call themselves is taken as it is."""
    placement = place(SOURCES[0], version=version, arch=arch)
    assert placement.directory == Path(f"/arg/flashinfer_autotune/{version}/{arch}/{DIGEST}")


@pytest.mark.parametrize("keyword", ["argument", "engine_root"])
def test_a_relative_root_is_refused(keyword: str) -> None:
    """Ranks that start in different directories would not find each other's tables."""
    source = SOURCES[0]._replace(arguments={keyword: Path("here")})
    with pytest.raises(PlacementError, match="'here': must be an absolute path"):
        place(source)


@pytest.mark.parametrize("rank", [(0, 0, 0), (3, 1, 0), (15, 7, 127)], ids=str)
def test_table_names_read_back(rank: tuple[int, int, int]) -> None:
    """Writing and reading a name are one pair; a manifest is no table."""
    assert parse_table_name(table_name(*rank)) == rank
    assert parse_table_name(manifest_name(*rank)) is None


@pytest.mark.parametrize(
    "name",
    [
        IDENTITY_NAME,
        "rank_tp00_pp0_dp0.json",
        "rank_tp-1_pp0_dp0.json",
        "rank_tp0_pp0.json",
        "xrank_tp0_pp0_dp0.json",
        "rank_tp0_pp0_dp0.json.1a2b3c4d",
        "rank_tp0_pp0_dp0.json\n",
        "rank_tp0_pp0_dp0_json",
        ".rank_tp0_pp0_dp0.json.host.1.tmp",
        "rank_tp٣_pp0_dp0.json",
    ],
)
def test_other_names_are_no_tables(name: str) -> None:
    """One spelling for each rank, and nothing else is read."""
    assert parse_table_name(name) is None
