# SPDX-License-Identifier: Apache-2.0
"""When vLLM is left alone, wholly: off, another version, a malformed setting, a rank without us."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from warmup_plugin.engines import gate

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"WARMUP_PLUGIN_MODE": "off"}, id="off"),
        pytest.param({"WARMUP_PLUGIN_MODE": "of"}, id="malformed mode"),
        pytest.param({"WARMUP_PLUGIN_SILENCE_S": "-1"}, id="malformed number"),
    ],
)
def test_every_function_of_vllm_is_its_own(job: Callable[..., Any], env: dict[str, str]) -> None:
    start = job(tp=2).start(env=env)

    assert [rank["is_patched"] for rank in start.ranks] == [False, False]
    assert [rank["report"] for rank in start.ranks] == [None, None]
    assert all(timed > 0 for timed in start.timed)
    said = [line for rank in start.ranks for line in rank["lines"] if "WARMUP_PLUGIN" in line]
    assert bool(said) == (env.get("WARMUP_PLUGIN_MODE") != "off")
    assert all("is left alone" in line for line in said)


def test_an_untested_version_is_left_alone_with_a_warning(job: Callable[..., Any]) -> None:
    start = job().start(script="as_version")

    (rank,) = start.ranks
    assert not rank["is_patched"]
    assert any("0.99.0 is not a tested version" in line for line in rank["lines"])


def test_a_rank_without_the_plugin_makes_all_ranks_go_vllms_way(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    without = {"plugin": False}
    env = {"MEET_S": "2"}

    mixed = engine.start(env=env, per_rank=lambda rank: without if rank else {})

    assert [rank["is_patched"] for rank in mixed.ranks] == [True, False]
    assert [rank["report"] for rank in mixed.ranks] == [None, None]
    assert mixed.disputed == set()
    (line,) = [line for line in mixed.ranks[0]["lines"] if "as without this package" in line]
    assert "rank 1 did not come within 2 s" in line
    assert engine.own_files()


def test_the_second_way_in_is_the_worker_extension(job: Callable[..., Any]) -> None:
    start = job().start(script="by_extension", plugin=False)

    assert start.ranks[0]["is_patched"]
    assert start.ranks[0]["report"]["agreement"] == "certified"


def test_private_names_are_where_they_were(job: Callable[..., Any]) -> None:
    (found,) = job().start(script="private_names").ranks

    assert found == []


def _module(folder: Path, text: str) -> str:
    name = "warmup_plugin_test_target"
    sys.modules.pop(name, None)
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return tmp_path


def test_a_module_is_entered_when_it_is_imported_and_once(folder: Path) -> None:
    name, seen = _module(folder, "value = 1\n"), list[ModuleType]()
    gate.after_import(name, seen.append)
    gate.after_import(name, seen.append)
    assert not seen

    module = importlib.import_module(name)

    assert seen == [module]
    assert module.__spec__ is not None
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_a_fault_of_ours_never_fails_the_import(folder: Path) -> None:
    def fault(_module: ModuleType) -> None:
        raise RuntimeError("ours")

    name = _module(folder, "value = 1\n")
    gate.after_import(name, fault)

    assert importlib.import_module(name).value == 1


def test_a_failed_import_is_the_modules_own_and_may_be_tried_again(folder: Path) -> None:
    name, seen = _module(folder, "raise ImportError('own')\n"), list[ModuleType]()
    gate.after_import(name, seen.append)

    with pytest.raises(ImportError, match="own"):
        importlib.import_module(name)

    assert not seen
