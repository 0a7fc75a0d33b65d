# SPDX-License-Identifier: Apache-2.0
"""Manifests: what a warm start reads of them, what later versions add, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from warmup_plugin.cache.manifest import (
    SCHEMA,
    Manifest,
    TaskRecord,
    parse_manifest,
    render_manifest,
)
from warmup_plugin.runtime.safe_json import Miss

LIMIT = 1 << 20
TASKS = {
    "t2": TaskRecord(
        op="trtllm::fused_moe::gemm1",
        keys=(("a0", "b0"), ("a1", "b1")),
        outcome="tuned",
        ms=0.25,
        default_ms=0.5,
        rank=3,
        host="node-1",
        at=1763600000.5,
    ),
    "t1": TaskRecord(op="fp4_gemm", keys=(("größe",),), outcome="default", reason="out of memory"),
    "t3": TaskRecord(op="fp4_gemm", keys=(("c",),), outcome="default"),
    "t4": TaskRecord(op="fp4_gemm", keys=(("d",),), outcome="adopted"),
}
MANIFEST = Manifest(
    identity="ab" * 32,
    tasks=TASKS,
    table_sha256="cd" * 32,
    generation=7,
    complete=True,
    engine="vllm",
    engine_version="0.33.0",
    inventory="ef" * 32,
    loose=("k9",),
)


def parsed(data: bytes) -> Manifest:
    manifest = parse_manifest(data, limit=LIMIT)
    assert isinstance(manifest, Manifest), manifest
    return manifest


def changed(**fields: Any) -> bytes:
    """The document with some fields replaced, those set to `...` removed."""
    plain = json.loads(render_manifest(MANIFEST)) | fields
    return json.dumps({name: value for name, value in plain.items() if value is not ...}).encode()


def test_reads_back_what_it_writes() -> None:
    """Header and tasks; the ids without a winner are known from the header."""
    manifest = parsed(render_manifest(MANIFEST))
    assert manifest.known_defaults == ("t1", "t3")
    assert manifest == MANIFEST
    assert dict(manifest.tasks) == TASKS
    assert manifest.tasks_miss is None


def test_equal_manifests_give_equal_bytes() -> None:
    """Tasks in any order; and what was read is written as it stood."""
    other = replace(MANIFEST, tasks=dict(reversed(TASKS.items())))
    data = render_manifest(MANIFEST)
    assert render_manifest(other) == render_manifest(parsed(data)) == data
    assert data.isascii()


def test_layout() -> None:
    """The header first, one line per field and per task; nothing is said that is not known."""
    lines = render_manifest(MANIFEST).decode().splitlines()
    assert lines[1] == f'"schema": {SCHEMA},'
    assert lines.index('"tasks": {') == len(lines) - 7
    assert lines[-4] == '"t3": {"op":"fp4_gemm","keys":[["c"]],"outcome":"default"},'


@pytest.mark.parametrize(
    "tasks",
    [7, [], {"t": None}, {"t": {}}, {"t": {"op": "x", "keys": [["k"]], "outcome": "won"}}],
    ids=["number", "list", "null", "no fields", "no such outcome"],
)
def test_bad_tasks_under_a_good_header(tasks: object) -> None:
    """The header serves a warm start; whoever needs the tasks finds none, and the reason."""
    manifest = parsed(changed(tasks=tasks))
    assert (manifest.generation, manifest.known_defaults) == (7, ("t1", "t3"))
    assert dict(manifest.tasks) == {}
    assert manifest.tasks_miss is not None
    assert manifest.tasks_miss.kind == "unreadable"


def test_the_header_does_not_decode_tasks() -> None:
    """Nor does writing it back: ten thousand tasks cost the warm start nothing."""
    manifest = parsed(changed(tasks={"t": "bad"}))
    again = replace(manifest, generation=8)
    assert b'{"t": "bad"}' in render_manifest(again)
    assert again.known_defaults == ("t1", "t3")
    assert manifest.tasks._records is None  # type: ignore[attr-defined]
    assert manifest.tasks is again.tasks


def test_a_later_version_keeps_its_fields() -> None:
    """At the top and in a task, through reading, changing and writing."""
    tasks = json.loads(render_manifest(MANIFEST))["tasks"]
    tasks["t2"]["noise"] = {"runs": [1, 2]}
    manifest = parsed(changed(signature="abc", tasks=tasks))
    assert manifest.extra == {"signature": "abc"}
    assert manifest.tasks["t2"].extra == {"noise": {"runs": [1, 2]}}
    assert manifest.tasks["t1"] == TASKS["t1"]
    rewritten = render_manifest(replace(manifest, tasks=dict(manifest.tasks), generation=9))
    plain = json.loads(rewritten)
    assert plain["signature"] == "abc"
    assert plain["tasks"] == tasks
    assert parsed(rewritten) == replace(manifest, generation=9)


BAD = {
    "empty": (b"", "truncated"),
    "truncated": (render_manifest(MANIFEST)[:-30], "truncated"),
    "list": (b"[]", "object"),
    "null": (b"null", "object"),
    "not UTF-8": (render_manifest(MANIFEST).replace(b"vllm", b"\xff\xfe\xfd\xfc"), "utf-8"),
    "no schema": (changed(schema=...), "schema"),
    "schema a string": (changed(schema="1"), "schema"),
    "schema negative": (changed(schema=-1), "schema"),
    "no table_sha256": (changed(table_sha256=...), "table_sha256"),
    "no identity": (changed(identity=...), "identity"),
    "identity null": (changed(identity=None), "identity"),
    "generation negative": (changed(generation=-1), "generation"),
    "generation a float": (changed(generation=1.5), "generation"),
    "complete a number": (changed(complete=1), "complete"),
    "engine a list": (changed(engine=[]), "engine"),
    "known_defaults of numbers": (changed(known_defaults=[1]), "known_defaults"),
    "loose a string": (changed(loose="k"), "loose"),
    "100 000 lists": (b"[" * 100_000, "object"),
    "100 000 lists as tasks": (b'{"tasks":' + b"[" * 100_000, "nested"),
    "100 000 objects": (b'{"a":' * 100_000, "nested"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD.keys())
def test_unreadable(data: bytes, words: str) -> None:
    """A miss that names the field."""
    miss = parse_manifest(data, limit=LIMIT)
    assert isinstance(miss, Miss)
    assert miss.kind == "unreadable"
    assert words in miss.reason


def test_no_damage_raises() -> None:
    """Cut short, or with any one byte replaced, it is a manifest or a miss, its tasks too."""
    data = render_manifest(MANIFEST)
    for cut in range(0, len(data) - 1, 3):
        assert isinstance(parse_manifest(data[:cut], limit=LIMIT), Miss)
        for byte in (b"\x00", b"\xff", b'"', b"[", b"}", b"\\"):
            manifest = parse_manifest(data[:cut] + byte + data[cut + 1 :], limit=LIMIT)
            assert isinstance(manifest, Miss) or len(manifest.tasks) <= len(TASKS)


def test_too_large() -> None:
    """As a table."""
    data = render_manifest(MANIFEST)
    miss = parse_manifest(data, limit=len(data) - 1)
    assert isinstance(miss, Miss)
    assert miss.kind == "too_large"


def test_schemas() -> None:
    """A reader takes its own schema and the one before; a newer file is left to newer readers."""
    assert parsed(changed(schema=SCHEMA - 1)).tasks.keys() < MANIFEST.tasks.keys()
    miss = parse_manifest(changed(schema=SCHEMA + 1), limit=LIMIT)
    assert isinstance(miss, Miss)
    assert miss.kind == "newer"
    assert f"schema {SCHEMA + 1}" in miss.reason


def test_a_default_of_schema_1_may_have_been_a_failure() -> None:
    """Out of memory, no compiler: those are tuned once more, the ones that cost processes not."""
    tasks = json.loads(render_manifest(MANIFEST))["tasks"]
    tasks["t3"] = {"op": "fp4_gemm", "keys": [["c"]], "outcome": "unstable"}
    tasks["t5"] = {"op": "fp4_gemm", "keys": [["e"]], "outcome": "default", "blocked": "570.1"}
    defaults, blocked = ["t1", "t3", "t5"], {"t5": "570.1"}
    old = parsed(changed(schema=1, tasks=tasks, known_defaults=defaults, blocked=blocked))
    assert set(old.tasks) == {"t2", "t4", "t5"}
    assert (old.known_defaults, old.blocked) == (("t5",), {"t5": "570.1"})
    assert not old.complete
    assert parsed(render_manifest(old)) == old

    sound = {name: task for name, task in tasks.items() if name in ("t2", "t4")}
    assert parsed(changed(schema=1, tasks=sound, known_defaults=[])).complete


CIRCUMSTANCES: dict[str, Any] = {"ms": 9.0, "default_ms": 9.5, "rank": 0, "host": "x", "at": 1.0}


def with_t2(**fields: Any) -> Manifest:
    record = json.loads(json.dumps({**CIRCUMSTANCES, **fields}))
    values = {name: getattr(TASKS["t2"], name) for name in ("op", "keys", "outcome", "reason")}
    return replace(MANIFEST, tasks={**TASKS, "t2": TaskRecord(**{**values, **record})})


@pytest.mark.parametrize("fields", [{}, {"ms": None}], ids=["other circumstances", "not timed"])
def test_the_same_answers(fields: dict[str, Any]) -> None:
    """When, where and how fast something was found does not make a new answer."""
    other = replace(with_t2(**fields), generation=99, table_sha256="")
    assert MANIFEST.answers_like(other)
    assert other.answers_like(MANIFEST)
    assert parsed(render_manifest(MANIFEST)).answers_like(other)


@pytest.mark.parametrize(
    "other",
    [
        with_t2(outcome="adopted"),
        with_t2(reason="because"),
        with_t2(extra={"x": 1}),
        replace(MANIFEST, tasks={"t2": TASKS["t2"]}),
        replace(MANIFEST, complete=False),
        replace(MANIFEST, engine_version="0.34.0"),
        replace(MANIFEST, inventory=""),
        replace(MANIFEST, loose=()),
        replace(MANIFEST, extra={"x": 1}),
    ],
    ids=["outcome", "reason", "extra", "fewer", "complete", "engine", "inventory", "loose", "top"],
)
def test_other_answers(other: Manifest) -> None:
    """Everything else does."""
    assert not MANIFEST.answers_like(other)
    assert not parsed(render_manifest(other)).answers_like(MANIFEST)


def test_replaced_tasks_give_their_own_defaults() -> None:
    """The header's list cannot go stale: it is made from the tasks."""
    manifest = replace(parsed(render_manifest(MANIFEST)), tasks={"x": TASKS["t1"]})
    assert manifest.known_defaults == ("x",)
    assert json.loads(render_manifest(manifest))["known_defaults"] == ["x"]
