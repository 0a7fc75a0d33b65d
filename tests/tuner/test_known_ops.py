# SPDX-License-Identifier: Apache-2.0
"""The tables of single ops say what FlashInfer's source says.

The places of rank numbers in the keys of releases 0.6.18 to 0.7.1 are checked in `tests/release`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import flashinfer
import pytest

from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner.known_ops import (
    KNOWN_OPS,
    KnownOps,
    distribution_aware,
    known_ops,
    own_numbers,
)
from warmup_plugin.tuner.task import name_fields

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

SOURCE = Path(flashinfer.__file__).parent
RANK_FIELDS = {*RankInfo.__struct_fields__}
MOE = ("trtllm::fused_moe::gemm1", "trtllm::fused_moe::gemm2")


@pytest.fixture(scope="module")
def tuned_ops() -> set[str]:
    """Every string in FlashInfer's files that call the tuner."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "choose_one(" in text or "CUSTOM_OP" in text:
            constants = (
                node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)
            )
            found |= {node.value for node in constants if isinstance(node.value, str)}
    return found


@pytest.mark.parametrize(
    "op", [*KNOWN_OPS.pass_through, *KNOWN_OPS.key_unstable, *KNOWN_OPS.twin_fields, *MOE]
)
def test_ops_are_flashinfers(op: str, tuned_ops: set[str]) -> None:
    """An op that FlashInfer has renamed would be treated as an ordinary one."""
    assert op in tuned_ops


@pytest.mark.parametrize("op", KNOWN_OPS.self_tuning)
def test_ops_that_tune_themselves_are_on_flashinfers_skip_list_only(
    op: str, tuned_ops: set[str]
) -> None:
    """They never ask the tuner to choose; they look themselves up among the skipped."""
    folder = SOURCE / "mla" / "_sparse_mla_sm120"
    assert any(f'"{op}"' in path.read_text() for path in folder.glob("*.py"))
    assert op not in tuned_ops


def extras_in_source(path: Path, owner: str) -> list[str]:
    """What a class returns as its cache key extras, one source text per field."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for function in node.body:
                if (
                    isinstance(function, ast.FunctionDef)
                    and function.name == "get_cache_key_extras"
                ):
                    (answer,) = (n for n in ast.walk(function) if isinstance(n, ast.Return))
                    assert isinstance(answer.value, ast.Tuple)
                    return [ast.unparse(field) for field in answer.value.elts]
    raise AssertionError(f"{path}: no {owner}.get_cache_key_extras")


def test_the_device_stands_where_the_tables_say() -> None:
    """SM120 grouped MoE: both ops share one runner base."""
    path = SOURCE / "grouped_mm" / "_sm120_moe_autotune.py"
    (owner,) = {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(getattr(item, "name", "") == "get_cache_key_extras" for item in node.body)
    }
    extras = extras_in_source(path, owner)
    for op in ("cute_sm120_fp8_groupwise_moe", "cute_sm120_mxfp8_groupwise_moe"):
        assert {extras[index]: name for index, name in KNOWN_OPS.twin_fields[op].items()} == {
            "device_index": "device_index"
        }


def test_the_main_releases_moe_keys_hold_no_rank() -> None:
    """Taken out on purpose in 0.7.2; a number there must not be taken for a rank."""
    extras = extras_in_source(SOURCE / "fused_moe" / "core.py", "MoERunner")
    assert not [field for field in extras if "rank" in field]
    assert known_ops(flashinfer.__version__) is KNOWN_OPS


@pytest.mark.parametrize("version", ["0.6.18", "0.6.18.post1", "0.7.0", "0.7.1"])
def test_moe_keys_of_releases_that_hold_ranks(version: str) -> None:
    ops = known_ops(version)
    for op in MOE:
        assert ops.twin_fields[op] == {5: "tp_rank", 7: "ep_rank"}
    assert ops.pass_through == KNOWN_OPS.pass_through


@pytest.mark.parametrize("version", ["0.6.12", "0.6.17", "0.7.2", "0.8.0", "unknown"])
def test_other_releases_have_the_plain_tables(version: str) -> None:
    """An allow-list: in a release nobody has looked at, numbers are numbers."""
    assert known_ops(version) is KNOWN_OPS


def test_twin_fields_name_facts_of_a_rank() -> None:
    tables = (KNOWN_OPS.twin_fields, known_ops("0.7.0").twin_fields)
    assert {
        name for table in tables for row in table.values() for name in row.values()
    } <= RANK_FIELDS


def test_plus_adds_and_replaces_rows() -> None:
    first = KnownOps(pass_through={"a": "1"}, twin_fields={"t": {0: "tp_rank"}})
    more = first.plus(
        pass_through={"a": "2", "b": "3"},
        key_unstable={"u": "4"},
        one_rank={"o": "6"},
        self_tuning={"s": "5"},
        twin_fields={"t": {1: "ep_rank"}},
    )
    assert more == KnownOps(
        {"a": "2", "b": "3"}, {"u": "4"}, {"o": "6"}, {"s": "5"}, {"t": {1: "ep_rank"}}
    )
    assert first == KnownOps(pass_through={"a": "1"}, twin_fields={"t": {0: "tp_rank"}})
    assert first.plus() == first


@pytest.mark.parametrize(
    ("value", "op", "is_passed"),
    [
        (None, "flashinfer::trtllm_bf16_moe", False),
        ("0", "flashinfer::trtllm_bf16_moe", False),
        (" off ", "flashinfer::trtllm_bf16_moe", False),
        ("1", "flashinfer::trtllm_bf16_moe", True),
        ("1", "fp4_gemm", False),
    ],
)
def test_distribution_aware_moe_is_passed_through_where_it_is_on(
    value: str | None, op: str, monkeypatch: pytest.MonkeyPatch, *, is_passed: bool
) -> None:
    """Read as FlashInfer reads it."""
    monkeypatch.delenv("FLASHINFER_DIST_AWARE_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("FLASHINFER_DIST_AWARE_AUTOTUNE", value)
    from flashinfer.fused_moe.da_config import is_trtllm_da_enabled

    assert bool(distribution_aware(op)) is is_passed
    assert is_trtllm_da_enabled() is (value == "1")


@pytest.mark.parametrize(
    ("field", "ranks", "is_twin"),
    [
        ("tp_rank", RankInfo(), False),
        ("ep_rank", RankInfo(tp_rank=0, tp_size=2, rank=0, world_size=2), False),
        ("tp_rank", RankInfo(tp_rank=0, tp_size=2, rank=0, world_size=2), True),
        ("tp_rank", RankInfo(tp_rank=1, tp_size=2, rank=1, world_size=2), True),
        ("device_index", RankInfo(device_index=0), True),
        ("device_index", RankInfo(device_index=1), True),
        ("expert_offset", RankInfo(expert_offset=4), True),
    ],
)
def test_a_number_is_a_ranks_own_where_there_are_others(
    field: str, ranks: RankInfo, *, is_twin: bool
) -> None:
    """Along an axis of one rank there are no twins, and 0 is many things' number."""
    ops = KnownOps(twin_fields={"op": {1: field}})
    extras = ("fp8", getattr(ranks, field))
    assert name_fields(extras, own_numbers(ops, "op", ranks)).is_twin is is_twin
    assert not name_fields(extras, own_numbers(ops, "another op", ranks)).is_twin


def test_only_listed_fields_make_twins() -> None:
    """A number that happens to be the rank's, in another place or op, is part of the key."""
    ranks = RankInfo(rank=1, world_size=2, ep_rank=1, ep_size=2, tp_rank=1, tp_size=2)
    ops = KnownOps(twin_fields={"op": {1: "ep_rank"}})
    extras = (1, 1, 1)
    assert name_fields(extras, own_numbers(ops, "op", ranks)).neutral == "(1, '<ep_rank>', 1)"
    assert name_fields(extras, own_numbers(ops, "another op", ranks)).neutral == "(1, 1, 1)"


@pytest.mark.multiprocess
@pytest.mark.parametrize(("tp", "field"), [(2, "tp_rank"), (2, "device_index"), (4, "tp_rank")])
def test_twins_are_tuned_once_and_stored_under_each_key(
    children: Children, tp: int, field: str
) -> None:
    """Keys that hold each rank's own number: one rank tunes. Another number makes no twin."""
    cold = children.ranks("on_survey:twins", tp=tp, field=field)
    assert sum(report.ops["twin"].get("tuned", 0) for report, _ in cold) == 4
    served = [answers for _, answers in cold]
    assert served == [served[0]] * tp
    assert all(tactic != -1 for _, tactic in served[0])
    for rank in range(tp):
        own = [key for key in children.keys("twin") if key.endswith(f"('toy', {rank}))")]
        assert len(own) == 4
    entries = {
        tuple(map(str, children.entries[key])) for key in children.keys("twin") if "((16, 8)" in key
    }
    assert len(entries) == 1
    # The same place with a number that is not the rank's: two tasks on every rank but one.
    assert len(children.keys("no twin")) == 4 * tp
    assert sum(report.ops["no twin"]["tuned"] for report, _ in cold) == 4 * tp

    for report, answers in children.ranks("on_survey:twins", tp=tp, field=field):
        assert report.tactics_timed == 0
        assert report.tasks["from_cache"] == report.tasks["seen"]
        assert answers == served[0]


@pytest.mark.multiprocess
def test_listed_ops_with_unstable_keys_are_each_ranks_own(children: Children) -> None:
    """They are tuned at every start and served from memory, as FlashInfer alone does it."""
    for _start in ("cold", "next"):
        report, tactic = children.one("on_survey:listed_unstable")
        assert report.ops["shaky"] == {"seen": 4, "from_cache": 0, "tuned": 0, "unshared": 4}
        assert set(report.unshared.values()) == {"planted"}
        assert children.keys("shaky") == []
        assert children.outcomes("shaky") == set()
        assert tactic != -1
    assert report.tactics_timed > 0
