# SPDX-License-Identifier: Apache-2.0
"""Why a start tuned: every config factor changed alone is named alone; receipts are judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.shelves import STAMP, identity, put, receipt, tuned
from warmup_plugin.cli.factor_text import WORDS, reasons
from warmup_plugin.identity import FACTOR_NAMES

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

#: Each factor alone, changed: the path that must be named.
CHANGED: list[tuple[str, Any, str]] = [
    ("model", "another", "model.label"),
    ("role", "draft", "role"),
    ("dtype", "float16", "dtype"),
    ("quantization", "nvfp4", "quantization"),
    ("kv_cache_dtype", "fp8", "kv_cache_dtype"),
    ("backends", {"moe": "trtllm"}, "backends.moe"),
    ("tp", 4, "tp"),
    ("pp", 2, "pp"),
    ("dp", 2, "dp"),
    ("ep", 2, "ep"),
    ("cp", 2, "cp"),
    ("buckets", [64, 128], "buckets"),
    ("round_up", True, "round_up"),
    ("skip_ops", ["op"], "skip_ops"),
    ("measurement", {"l2": "cold"}, "measurement"),
    ("race_default", True, "race_default"),
    ("stamp", {**STAMP, "flashinfer_version": "0.7.3"}, "stamp.flashinfer_version"),
    ("gpu", {"sm_count": 148}, "gpu.sm_count"),
    ("switches", {"MOE_AUTOTUNE": "1"}, "switches.MOE_AUTOTUNE"),
    ("extra", {"max_num_batched_tokens": 16384}, "extra.max_num_batched_tokens"),
]


def test_every_factor_is_changed_here() -> None:
    """A new factor needs a row above, and words."""
    assert [name for name, _, _ in CHANGED] == list(FACTOR_NAMES)
    assert {path.split(".")[0] for path in WORDS} == set(FACTOR_NAMES)


@pytest.mark.parametrize(("name", "value", "path"), CHANGED, ids=[row[0] for row in CHANGED])
def test_one_factor_is_named_alone(
    cli: Cli, tmp_path: Path, name: str, value: Any, path: str
) -> None:
    """By two directories, and by the last start's receipt, in words."""
    old, new = identity(), identity(**{name: value})
    a, b = put(tmp_path, old), put(tmp_path, new)
    found = cli("explain", a, b, "--root", tmp_path, "--json").document
    assert [row["factor"] for row in found["factors"]] == [path]
    assert found["factors"][0]["words"] not in ("", "not known to this version")

    receipt(b, factors=new.factors, tasks={"seen": 3, "tuned": 3}, tactics_timed=30)
    told = cli("explain", "--last", "--root", tmp_path, "--json").document
    assert (told["cause"], [row["factor"] for row in told["factors"]]) == ("factor", [path])
    said = cli("explain", "--last", "--root", tmp_path, width=400).out
    assert "one factor differs" in said
    assert path in said


def test_the_nearest_identity_is_the_one_compared_with(cli: Cli, tmp_path: Path) -> None:
    """Not the newest, not the first."""
    put(tmp_path, identity(dtype="float16", tp=8))
    near = put(tmp_path, identity(tp=4))
    put(tmp_path, identity(tp=8, pp=2, role="draft"))
    mine = put(tmp_path, identity())
    receipt(mine, factors=identity().factors, tasks={"seen": 3, "tuned": 3})
    told = cli("explain", "--last", "--root", tmp_path, "--json").document
    assert (told["nearest"], [r["factor"] for r in told["factors"]]) == (str(near), ["tp"])


def test_the_same_identity(cli: Cli, tmp_path: Path) -> None:
    a = put(tmp_path)
    assert "The same identity" in cli("explain", a, a / "identity.json", "--root", tmp_path).out


@pytest.mark.parametrize(
    ("changed", "cause", "words"),
    [
        ({}, "warm", "It was warm: 3 tasks"),
        ({"agreement": "none", "reason": "strategy per_rank"}, "not shared", "strategy per_rank"),
        (
            {"tasks": {"seen": 3, "tuned": 3}, "read": [{"path": "/t.json", "entries": 0,
             "reason": "Input data was truncated"}]},
            "file", "/t.json could not be used: Input data was truncated",
        ),
        (
            {"tasks": {"seen": 3, "from_cache": 2, "tuned": 1},
             "winners": [tuned(op="op::new")],
             "read": [{"path": "/t", "entries": 2, "reason": ""}]},
            "incomplete", "1 task was new: op::new",
        ),
        (
            {"adopted_from": {"/other.json": 3}, "read": [{"path": "/t", "entries": 2,
             "reason": ""}]},
            "adopted", "It tuned nothing: it took over 3 tasks from /other.json.",
        ),
        ({"tasks": {"seen": 3, "tuned": 3}}, "first", "it was a first start"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_causes(cli: Cli, tmp_path: Path, changed: dict[str, Any], cause: str, words: str) -> None:
    """Each kind of start in its own words."""
    directory = put(tmp_path)
    path = receipt(directory, **{"factors": identity().factors, **changed})
    told = cli("explain", path, "--root", tmp_path, "--json").document
    assert told["cause"] == cause
    assert words in told["words"]


def test_what_cannot_be_explained(cli: Cli, tmp_path: Path) -> None:
    """No receipt, nothing named, something that is not there."""
    assert cli("explain", "--last", "--root", tmp_path).code == 1
    assert cli("explain", "--root", tmp_path).code == 2
    assert cli("explain", "ffff", "eeee", "--root", tmp_path).code == 1
    bad = tmp_path / "identity.json"
    bad.write_text(json.dumps({"model": "m", "colour": "red"}))
    ran = cli("explain", bad, bad, "--root", tmp_path)
    assert (ran.code, "colour" in ran.err) == (1, True)


@pytest.mark.parametrize(
    ("value", "words"),
    [("fp8", "bfloat16, fp8,"), ([None, None], "bfloat16, TP"), (["fp8", "fp8"], "bfloat16, fp8,")],
)
def test_an_identity_in_words(cli: Cli, tmp_path: Path, value: Any, words: str) -> None:
    """A quantization that is none, or stands there twice as SGLang's does, is told once."""
    put(tmp_path, identity(quantization=value))
    assert words in cli("ls", "--root", tmp_path, width=300).out


def test_words_go_by_the_longest_path() -> None:
    """A field of the stamp has words of its own, an unknown one those of the stamp."""
    known = reasons(identity(), identity(stamp={**STAMP, "cuda_version": "13.1"}))
    other = reasons(identity(), identity(stamp={**STAMP, "new_field": "1"}))
    assert known[0].words == WORDS["stamp.cuda_version"]
    assert other[0].words == WORDS["stamp"]
