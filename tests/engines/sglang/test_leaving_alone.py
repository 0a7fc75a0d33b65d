# SPDX-License-Identifier: Apache-2.0
"""When SGLang is left alone, wholly; and how we know that we are in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_starts import installed

from warmup_plugin.engines import readiness
from warmup_plugin.settings import Settings

engine = pytest.mark.engine
multiprocess = pytest.mark.multiprocess


@engine
@multiprocess
@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"WARMUP_PLUGIN_MODE": "off"}, id="off"),
        pytest.param({"WARMUP_PLUGIN_MODE": "of"}, id="malformed mode"),
        pytest.param({"WARMUP_PLUGIN_SILENCE_S": "-1"}, id="malformed number"),
    ],
)
def test_every_function_of_sglang_is_its_own(job: Callable[..., Any], env: dict[str, str]) -> None:
    start = job(tp=2).start(env=env)

    assert [rank["is_patched"] for rank in start.ranks] == [False, False]
    assert [rank["reports"] for rank in start.ranks] == [[], []]
    assert all(timed > 0 for timed in start.timed)
    said = [line for rank in start.ranks for line in rank["lines"] if "WARMUP_PLUGIN" in line]
    assert bool(said) == (env.get("WARMUP_PLUGIN_MODE") != "off")
    assert all("is left alone" in line for line in said)


@engine
@multiprocess
def test_an_untested_version_is_left_alone_with_a_warning(job: Callable[..., Any]) -> None:
    (rank,) = job().start(script="as_version").ranks

    assert not rank["is_patched"]
    assert any("0.99.0 is not a tested version" in line for line in rank["lines"])


@engine
@multiprocess
def test_a_rank_without_the_plugin_makes_all_ranks_go_sglangs_way(job: Callable[..., Any]) -> None:
    found = job(tp=2)

    mixed = found.start(env={"MEET_S": "2"}, per_rank=lambda rank: {"plugin": rank == 0})

    assert [rank["is_patched"] for rank in mixed.ranks] == [True, False]
    assert [rank["reports"] for rank in mixed.ranks] == [[None], []]
    assert mixed.disputed == set()
    (line,) = [line for line in mixed.ranks[0]["lines"] if "as without this package" in line]
    assert "rank 1 did not come within 2 s" in line
    assert found.own_files()


@engine
@multiprocess
def test_another_plugins_hook_on_the_same_function(job: Callable[..., Any]) -> None:
    (rank,) = job().start(script="with_another_plugin").ranks

    assert rank["reports"] == [None]
    assert any("another plugin has put a hook on" in line for line in rank["lines"])


@engine
@multiprocess
def test_a_hook_that_failed_is_told_at_the_first_warm_up(job: Callable[..., Any]) -> None:
    (rank,) = job().start(script="without_a_hook").ranks

    assert not rank["is_patched"]
    assert rank["timed"] > 0
    assert any("has warmed up as without this package: its hook" in line for line in rank["lines"])


@engine
@multiprocess
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"is_loaded_early": True}, id="plugins loaded before the warm-up is imported"),
        pytest.param({"script": "by_hand", "plugin": False}, id="called by hand, as Ray needs"),
    ],
)
def test_other_ways_in(job: Callable[..., Any], options: dict[str, Any]) -> None:
    found = job(tp=2)

    cold, warm = found.start(**options), found.start(**options)

    assert [rank["is_patched"] for rank in cold.ranks] == [True, True]
    assert [len(rank["reports"]) for rank in cold.ranks] == [1, 1]
    assert warm.timed == [0, 0]
    assert len(cold.lines) == 1
    assert f"[{installed('sglang')}, 2 rank(s)]" in cold.lines[0]


@engine
@multiprocess
def test_a_start_that_must_be_complete(job: Callable[..., Any]) -> None:
    """It ends where a task is in no table, and where this package cannot act."""
    found, must = job(tp=2), {"WARMUP_PLUGIN_MODE": "require-complete"}

    empty = found.start(env=must, may_fail=True)
    found.start()
    complete = found.start(env=must)
    unable = found.start(env={**must, "MEET_S": "1"}, may_fail=True, fault="own_cublas")

    assert sorted(empty.errors) == sorted(unable.errors) == [0, 1]
    assert complete.timed == [0, 0]
    assert "cublas_version" in unable.errors[0]


@engine
@multiprocess
def test_private_names_are_where_they_were(job: Callable[..., Any]) -> None:
    (found,) = job().start(script="private_names").ranks

    assert found == []


def test_a_meeting_that_another_rank_passes_by_is_called_off() -> None:
    """Neither waits for the other, and both hear the same if they come to it after all."""
    import torch.distributed as dist

    store, found = vars(dist)["HashStore"](), dict[str, str]()

    def meet(rank: int, session: str) -> None:
        coordinator = readiness.Readiness(store, session, rank, 2, Settings.from_env({}), of="by")
        _, found[f"{rank} {session}"] = coordinator.meet("")

    began = time.monotonic()
    threads = [
        threading.Thread(target=meet, args=(rank, session))
        for rank, session in ((0, "prefill"), (1, "draft"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    meet(0, "draft")

    assert time.monotonic() - began < 10
    assert "is at" in found["0 prefill"]
    assert found["0 draft"] == found["1 draft"]
