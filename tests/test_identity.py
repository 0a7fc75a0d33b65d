# SPDX-License-Identifier: Apache-2.0
"""Identity: equal wherever the factors are, different in each of them, the same for ever."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.errors import IdentityError
from warmup_plugin.identity import ABSENT, FACTOR_NAMES, Difference, Identity, diff

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vision": {"layers": 24, "_name_or_path": "/models/vision", "eps": 1e-06},
    "_name_or_path": "/models/llama",
    "transformers_version": "4.60.0",
}
FACTORS: dict[str, Any] = {
    "model": CONFIG,
    "role": "target",
    "dtype": "bfloat16",
    "quantization": {"method": "fp8", "block": [128, 128]},
    "kv_cache_dtype": "fp8_e4m3",
    "backends": {"moe": "flashinfer_cutlass", "attention": "flashinfer", "gemm": "auto"},
    "tp": 4,
    "pp": 2,
    "dp": 1,
    "ep": 4,
    "cp": 1,
    "buckets": [1, 2, 4, 8192],
    "round_up": False,
    "skip_ops": ["flashinfer::fp4_gemm", "trtllm::fused_moe::gemm1"],
    "measurement": {"l2": "cold", "replays": 10},
    "race_default": True,
    "stamp": {"flashinfer_version": "0.7.2.post1", "cudnn_version": "91400"},
    "gpu": {"name": "NVIDIA H200", "sms": 132, "capability": [9, 0]},
    "switches": {"FLASHINFER_AUTOTUNE_TIMER": "cuda_event"},
    "extra": {"über": "größe"},
}
OTHER: dict[str, Any] = {
    "model": {**CONFIG, "hidden_size": 8192},
    "role": "draft",
    "dtype": "float16",
    "quantization": None,
    "kv_cache_dtype": None,
    "backends": {**FACTORS["backends"], "all_to_all": "deepep"},
    "tp": 8,
    "pp": 1,
    "dp": 2,
    "ep": 1,
    "cp": 2,
    "buckets": [1, 2, 4, 16384],
    "round_up": True,
    "skip_ops": [],
    "measurement": {"l2": "hot", "replays": 10},
    "race_default": False,
    "stamp": {**FACTORS["stamp"], "cudnn_version": "91500"},
    "gpu": {**FACTORS["gpu"], "sms": 78},
    "switches": {},
    "extra": {"über": "grösse"},
}
#: Tables in the field lie under this; it changes only with a new layout.
GOLDEN = "d2e6507fde9dade52198a84a8af785dbfccfdff422d3a27dae6e96051e46beca"


def rotated(value: Any, turns: int) -> Any:
    """The same JSON with every object's members in another order."""
    if isinstance(value, dict):
        items = [(key, rotated(below, turns)) for key, below in value.items()]
        first = turns % max(len(items), 1)
        return dict(items[first:] + items[:first])
    return [rotated(below, turns) for below in value] if isinstance(value, list) else value


def test_golden_digest() -> None:
    """The byte form is fixed: another digest orphans every table in the field."""
    identity = Identity.of(**FACTORS)
    assert hashlib.sha256(identity.canonical()).hexdigest() == identity.digest == GOLDEN


def test_canonical_form() -> None:
    """Sorted, without spaces, ASCII, and JSON that anybody reads back."""
    canonical = Identity.of(**FACTORS).canonical()
    assert canonical.isascii()
    assert b" " not in canonical.replace(b"NVIDIA H200", b"")
    plain = json.loads(canonical)
    assert list(plain) == sorted(FACTOR_NAMES)
    assert json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() == canonical


def test_order_of_members_does_not_matter() -> None:
    """Engines build their configs in any order."""
    digests = {Identity.of(**rotated(FACTORS, turns)).digest for turns in range(len(FACTORS))}
    assert digests == {GOLDEN}


@pytest.mark.multiprocess
@pytest.mark.parametrize("hash_seed", ["0", "1", "4242", "random"])
def test_same_in_every_process(hash_seed: str, tmp_path: Path) -> None:
    """Hash seed, working directory and locale of a process leave no trace."""
    script = (
        "import json, sys\n"
        "from warmup_plugin.identity import Identity\n"
        "factors = json.load(sys.stdin)\n"
        "factors['skip_ops'] = set(factors['skip_ops'])\n"
        "print(Identity.of(**factors).digest)"
    )
    environ = {"PYTHONHASHSEED": hash_seed, "LC_ALL": "C", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(FACTORS),
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == GOLDEN


@pytest.mark.parametrize("name", FACTOR_NAMES)
def test_each_factor_counts(name: str) -> None:
    """Another value is another identity, and the difference names the factor alone."""
    identity = Identity.of(**FACTORS)
    other = Identity.of(**{**FACTORS, name: OTHER[name]})
    assert other.digest != identity.digest
    assert other == identity.with_factors(**{name: OTHER[name]})
    assert {found.path.partition(".")[0] for found in diff(identity, other)} == {name}


def test_factor_names_are_frozen() -> None:
    """The list is part of the byte form: every identity has exactly these."""
    assert tuple(FACTORS) == tuple(OTHER) == FACTOR_NAMES
    assert set(Identity.of(model="m", dtype="bfloat16").factors) == set(FACTOR_NAMES)


@pytest.mark.parametrize(
    "config",
    [
        {**CONFIG, "_name_or_path": "/elsewhere", "transformers_version": "5.0.0"},
        {**CONFIG, "name_or_path": "hub/llama"},
        {**CONFIG, "vision": {"layers": 24, "eps": 1e-06}},
    ],
    ids=["moved", "named", "sub-config moved"],
)
def test_where_a_model_lies_does_not_count(config: dict[str, Any]) -> None:
    """Paths and the version that saved the config are not the model."""
    assert Identity.of(**{**FACTORS, "model": config}).digest == GOLDEN


def test_a_model_may_be_a_label() -> None:
    """A label is kept in clear, and is never taken for a config."""
    identity = Identity.of(model="llama", dtype="bfloat16")
    assert identity.factors["model"] == {"label": "llama"}
    other = Identity.of(model={"llama": 1}, dtype="bfloat16")
    assert set(other.factors["model"]) == {"config_sha256"}


@pytest.mark.parametrize("form", [list, tuple, set, frozenset, lambda ops: iter(ops * 2)])
def test_skip_ops_are_a_set(form: Any) -> None:
    """Their order and repetition do not count."""
    ops = list(reversed(FACTORS["skip_ops"]))
    assert Identity.of(**{**FACTORS, "skip_ops": form(ops)}).digest == GOLDEN


def test_buckets_are_a_set() -> None:
    """Nor do those of buckets; no buckets is something else than none given."""
    assert Identity.of(**{**FACTORS, "buckets": (8192, 1, 4, 2, 1)}).digest == GOLDEN
    none_given = Identity.of(**{**FACTORS, "buckets": None})
    assert Identity.of(**{**FACTORS, "buckets": []}) != none_given


def test_order_of_other_lists_counts() -> None:
    """A list is ordered unless its factor says otherwise."""
    first = Identity.of(**{**FACTORS, "extra": {"a": [1, 2]}})
    assert first != first.with_factors(extra={"a": [2, 1]})


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), ("1", 1), (None, "null"), ([], {})]
)
def test_types_count(one: object, other: object) -> None:
    """Values that Python calls equal, or prints alike, are different factors."""
    first = Identity.of(model="m", dtype="d", extra={"x": one})
    second = first.with_factors(extra={"x": other})
    assert first.digest != second.digest
    assert first != second
    assert diff(first, second) == [Difference("extra.x", one, other)]


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    HIGH = 1


class Word(str):
    __slots__ = ()


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

#: A leaf one level too deep.
DEEP: Any = 1
for _ in range(32):
    DEEP = {"y": DEEP}


@pytest.mark.parametrize(
    ("factors", "name", "rule"),
    [
        ({"flavour": 1}, "flavour", "one of the factors model, "),
        ({"role": "teacher"}, "role", "one of target, draft"),
        ({"role": ["target"]}, "role", "one of target, draft"),
        ({"tp": 0}, "tp", "a whole number, 1 or more"),
        ({"pp": True}, "pp", "a whole number, 1 or more"),
        ({"dp": "2"}, "dp", "a whole number, 1 or more"),
        ({"ep": 1.0}, "ep", "a whole number, 1 or more"),
        ({"cp": None}, "cp", "a whole number, 1 or more"),
        ({"round_up": 1}, "round_up", "true or false"),
        ({"race_default": "no"}, "race_default", "true or false"),
        ({"buckets": 4}, "buckets", "a list of whole numbers, or null"),
        ({"buckets": "124"}, "buckets", "a list of whole numbers, or null"),
        ({"buckets": [1, 2.5]}, "buckets", "a whole number, 1 or more"),
        ({"skip_ops": "fp4_gemm"}, "skip_ops", "a list of op names"),
        ({"skip_ops": [1]}, "skip_ops", "a list of op names"),
        ({"model": 7}, "model", "a label or the model's config as a mapping"),
        ({"model": {"dtype": Colour.RED}}, "model.dtype", "a string, number, "),
        ({"dtype": object}, "dtype", "a string, number, boolean, null, list or mapping"),
        ({"extra": {"x": float("nan")}}, "extra.x", "a finite number"),
        ({"extra": {"x": [0, float("-inf")]}}, "extra.x[1]", "a finite number"),
        ({"extra": {"x": {1: "y"}}}, "extra.x.1", "a string, as every key"),
        ({"extra": {"x": {1, 2}}}, "extra.x", "a string, number, "),
        ({"extra": {"x": b"bytes"}}, "extra.x", "a string, number, "),
        ({"extra": {"x": Colour.RED}}, "extra.x", "a string, number, "),
        ({"extra": {"x": Level.HIGH}}, "extra.x", "a string, number, "),
        ({"extra": {"x": Word("w")}}, "extra.x", "a string, number, "),
        ({"gpu": {"name": Path("/dev")}}, "gpu.name", "a string, number, "),
        ({"extra": {"x": ENDLESS}}, "extra.x" + "[0]" * 32, "nested at most 32 deep"),
        ({"extra": {"x": DEEP}}, "extra.x" + ".y" * 32, "nested at most 32 deep"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_what_has_no_canonical_form(factors: dict[str, Any], name: str, rule: str) -> None:
    """Refused by name, value and rule, at any depth; the error still pickles."""
    with pytest.raises(IdentityError) as caught:
        Identity.of(**FACTORS).with_factors(**factors)
    assert caught.value.name == name
    assert caught.value.rule.startswith(rule)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_later_changes_of_the_arguments_do_not_reach_it() -> None:
    """The factors are a copy: digest and `identity.json` stay in step."""
    switches = {"a": [1]}
    identity = Identity.of(model="m", dtype="d", switches=switches)
    digest = identity.digest
    switches["a"].append(2)
    assert identity.factors["switches"] == {"a": [1]}
    assert Identity(identity.factors).digest == digest


def test_diff_names_both_sides() -> None:
    """Dotted paths in order, down to the first difference; a missing side says so."""
    one = Identity.of(**FACTORS)
    other = one.with_factors(
        tp=8, gpu={"name": "NVIDIA H200", "capability": [9, 0]}, backends={"moe": "trtllm"}
    )
    assert diff(one, other) == [
        Difference("backends.attention", "flashinfer", ABSENT),
        Difference("backends.gemm", "auto", ABSENT),
        Difference("backends.moe", "flashinfer_cutlass", "trtllm"),
        Difference("gpu.sms", 132, ABSENT),
        Difference("tp", 4, 8),
    ]
    assert diff(one, one) == []


def test_equal_identities_are_one_key() -> None:
    """They can stand in sets and dicts."""
    assert len({Identity.of(**FACTORS), Identity.of(**rotated(FACTORS, 1))}) == 1
    assert Identity.of(**FACTORS) != "something else"
