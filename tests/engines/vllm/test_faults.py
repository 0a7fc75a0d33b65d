# SPDX-License-Identifier: Apache-2.0
"""The faults that vLLM's own cache answers with a hang, a crash or silent disagreement; with us.

docs/vllm.md has the table of both sides. Each row must end within its bound, with all ranks
certified or all of them failed, and the start after it must be warm.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

Document = dict[str, Any]


def _edited(change: Callable[[Document], Document]) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(change(json.loads(data))).encode()


def _entries(document: Document, change: Callable[[str, Any], Any]) -> Document:
    return {k: v if k.startswith("_") else change(k, v) for k, v in document.items()}


def _first_null(document: Document) -> Document:
    first = next(key for key in document if not key.startswith("_"))
    return {**document, first: None}


def _half(document: Document) -> Document:
    keys = [key for key in document if not key.startswith("_")]
    return {key: v for key, v in document.items() if key not in keys[: len(keys) // 2]}


def _with_version(document: Document) -> Document:
    return {**document, "_metadata": {**document["_metadata"], "flashinfer_version": "0.6.0"}}


def _other_keys(document: Document) -> Document:
    return {key.replace("embedded", "other"): value for key, value in document.items()}


def _other_tactics(_key: str, entry: list[Any]) -> list[Any]:
    return [entry[0], (entry[1] + 1) % 3 if isinstance(entry[1], int) else entry[1], *entry[2:]]


def _tactic_99(_key: str, entry: list[Any]) -> list[Any]:
    return [entry[0], 99, *entry[2:]]


SPOILED = [
    pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
    pytest.param(lambda _data: b"[]", id="a list"),
    pytest.param(_edited(_first_null), id="one entry is null"),
    pytest.param(_edited(_with_version), id="another FlashInfer"),
    pytest.param(_edited(_other_keys), id="other keys"),
    pytest.param(_edited(lambda d: _entries(d, _other_tactics)), id="other tactics"),
    pytest.param(_edited(_half), id="half the shapes"),
    pytest.param(None, id="lost"),
]  # fmt: skip


def _spoil(path: Any, change: Callable[[bytes], bytes] | None) -> None:
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def _assert_sound(engine: Any) -> None:
    """This start and the next: certified, of one mind, and warm at last."""
    start = engine.start()
    assert start.disputed == set()
    certificate = start.certificate
    again = engine.start()
    assert again.timed == [0] * len(again.ranks)
    assert again.certificate == certificate
    assert again.disputed == set()


@pytest.mark.parametrize("whose", ["ours", "vLLM's"])
def test_a_tactic_that_there_is_not(job: Callable[..., Any], whose: str) -> None:
    engine = job(tp=2)
    engine.start(plugin=whose == "ours")
    found = engine.tables() or engine.root.glob("flashinfer_autotune_cache/**/*rank1.json")
    for path in found:
        _spoil(path, _edited(lambda d: _entries(d, _tactic_99)))

    start = engine.start()

    assert start.disputed == set()
    assert len(start.certificate) == 64
    _assert_sound(engine)  # what this start has thrown out is tuned by the next


@pytest.mark.parametrize("change", SPOILED)
def test_our_table_is_spoiled(
    job: Callable[..., Any], change: Callable[[bytes], bytes] | None
) -> None:
    engine = job(tp=2)
    engine.start()
    (table,) = engine.tables()
    _spoil(table, change)

    _assert_sound(engine)


@pytest.mark.parametrize("change", SPOILED)
def test_vllms_table_of_rank_1_is_spoiled(
    job: Callable[..., Any], change: Callable[[bytes], bytes] | None
) -> None:
    engine = job(tp=2)
    engine.start(plugin=False)
    (theirs,) = engine.root.glob("flashinfer_autotune_cache/**/*rank1.json")
    _spoil(theirs, change)
    before = engine.own_files()

    _assert_sound(engine)

    assert engine.own_files() == before


def test_a_file_stands_where_the_directory_should(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    (engine.root / "flashinfer_autotune").write_text("in the way")

    start = engine.start()

    assert start.disputed == set()
    assert len(start.certificate) == 64
    assert any(str(engine.root) in text for text in start.ranks[0]["report"]["warnings"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_forward_fails_on_one_rank(job: Callable[..., Any], rank: int) -> None:
    engine = job(tp=2)
    bound = {"WARMUP_PLUGIN_GRACE_S": "1", "WARMUP_PLUGIN_SILENCE_S": "5"}

    failed = engine.start(env=bound, fault=f"dummy_run+linger@{rank}", may_fail=True, limit_s=40.0)

    assert not failed.hung
    assert not failed.ranks
    assert "planted in dummy_run" in failed.errors[rank]
    _assert_sound(engine)


def test_two_replicas_start_cold_on_one_directory(job: Callable[..., Any]) -> None:
    engine = job(tp=2)
    starts: list[Any] = []
    threads = [threading.Thread(target=lambda: starts.append(engine.start())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(starts) == 2
    (certificate,) = {start.certificate for start in starts}
    assert sorted(start.timed[0] > 0 for start in starts) == [False, True]
    assert engine.start().certificate == certificate
