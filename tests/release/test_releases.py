# SPDX-License-Identifier: Apache-2.0
"""The embedded engine on every FlashInfer release: cold and warm, one rank and two.

Each release gets one process, with its folder first on the import path, that starts all ranks; the
tests look at what it has seen. 0.6.12, which ranks fall back on, runs with the plain tests.
"""

from __future__ import annotations

import ast
import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.release.running import run_on
from warmup_plugin.tuner.compat import REQUIRED
from warmup_plugin.tuner.known_ops import KNOWN_OPS, known_ops
from warmup_plugin.tuner.proven import PROVEN

pytestmark = pytest.mark.multiprocess

NAMES = [f"{where}.{name}" for where, name in REQUIRED]
#: Fields of a file key without extras and with them.
FIELDS = {
    "0.6.11.post2": (3, 4),
    "0.6.12": (3, 3),
    "0.6.13": (4, 4),
    **dict.fromkeys(
        (
            "0.6.16.post3", "0.6.17", "0.6.18", "0.6.18.post1", "0.7.0", "0.7.0.post1", "0.7.1",
            "0.7.2", "0.7.4",
        ),
        (4, 4),
    ),
}  # fmt: skip
WITH_RANKS_IN_MOE_KEYS = ("0.6.18", "0.6.18.post1", "0.7.0", "0.7.0.post1", "0.7.1")
MOE_GEMM = "trtllm::fused_moe::gemm1"


@functools.cache
def seen_on(release: Path) -> Any:
    """What `starts.py` sees on a release; run once."""
    with tempfile.TemporaryDirectory() as folder:
        return run_on(release, "starts.py", Path(folder))


@pytest.fixture
def seen(matrix_release: Path) -> Any:
    return seen_on(matrix_release)


@pytest.fixture
def fallback(fallback_release: Path) -> Any:
    return seen_on(fallback_release)


def check_capabilities(seen: Any, release: Path) -> None:
    without, with_extras = FIELDS[release.name]
    assert seen["capabilities"] == {
        "version": release.name,
        "missing": [],
        "keys_tell_options_apart": with_extras == 4,
        "fields_without_extras": without,
        "fields_with_extras": with_extras,
        "unproven": [],
    }
    assert seen["tried"] == seen["capabilities"], "the list of proven releases, or the release"
    assert PROVEN.get(seen["digest"]) == FIELDS[release.name], seen["digest"]


def moe_extras(release: Path) -> list[str]:
    """What the release's CUTLASS MoE runner puts into its key, one source text per field."""
    path = release / "flashinfer" / "fused_moe" / "core.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "get_cache_key_extras":
            answer = next(n.value for n in ast.walk(node) if isinstance(n, ast.Return))
            if isinstance(answer, ast.Tuple):
                return [ast.unparse(field) for field in answer.elts]
    return []


def check_without_files(seen: Any) -> None:
    """What it holds is what it would save, and it reads bytes that are in memory only."""
    found = seen["without files"]
    assert found["held"] == {key: entry[:2] for key, entry in seen["whole"].items()}
    assert found["loaded"] is True
    assert found["again"] == found["held"]


# -- releases whose tables are shared ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_required_names_are_there(seen: Any, name: str) -> None:
    assert seen["present"][name]


def test_what_a_release_can_do(seen: Any, matrix_release: Path) -> None:
    check_capabilities(seen, matrix_release)


def test_no_file_is_needed(seen: Any) -> None:
    check_without_files(seen)


@pytest.mark.parametrize("tp", ["tp1", "tp2"])
def test_tuned_once_then_warm(seen: Any, tp: str) -> None:
    """The warm start times nothing and makes no input, and serves the same on every rank."""
    cold, warm = seen[tp]["starts"]
    assert sum(rank["counts"]["profile_single_kernel"] for rank in cold) > 50
    served = [
        {call: answer for call, answer in rank["served"].items() if "all_reduce" not in call}
        for rank in (*cold, *warm)
    ]
    assert all(answers == served[0] for answers in served)
    defaults = [tactic for _, tactic in served[0].values() if tactic == -1]
    # With a margin some winners are not worth it; without one, as on one rank, none is refused.
    assert 0 < len(defaults) < len(served[0]) if tp == "tp2" else not defaults
    certificates = {rank["report"]["certificate"] for rank in (*cold, *warm)}
    assert {rank["report"]["agreement"] for rank in (*cold, *warm)} == {"certified"}
    assert len(certificates) == 1
    for rank in warm:
        assert rank["counts"]["profile_single_kernel"] == rank["report"]["tactics_timed"] == 0
        assert rank["counts"]["prepare_input_tensors"] == 0
        assert rank["report"]["tasks"]["from_cache"] == rank["report"]["tasks"]["seen"] > 20


def test_replayed_bucket_by_bucket_as_the_whole_call(seen: Any) -> None:
    """The same keys and winners as FlashInfer's own tuning of the forward.

    0.7.0 keeps measurement policies in memory and writes none; our entries have them. What 0.7.4
    writes after them, how it came to choose, is in our manifest.
    """
    whole = {key: entry[:3] for key, entry in seen["whole"].items()}
    ours = {key: entry[: len(whole[key])] for key, entry in seen["tp1"]["entries"].items()}
    assert ours == whole
    assert len(ours) > 20


def test_nothing_recorded_is_alive_afterwards(seen: Any) -> None:
    for rank in seen["slow second rank"]:
        assert rank["agreement"] == "certified"
        assert rank["recorded"] > 10
        assert rank["alive"] == []


def test_ranks_in_moe_keys_stand_where_the_tables_say(matrix_release: Path) -> None:
    """A number of another meaning there would make twins of what are none."""
    extras = moe_extras(matrix_release)
    fields = known_ops(matrix_release.name).twin_fields.get(MOE_GEMM, {})
    assert {index: extras[index].removeprefix("self.") for index in fields} == fields
    named = {index for index, text in enumerate(extras) if text in ("self.tp_rank", "self.ep_rank")}
    assert named == set(fields)
    assert bool(fields) == (matrix_release.name in WITH_RANKS_IN_MOE_KEYS)
    assert known_ops(matrix_release.name).pass_through == KNOWN_OPS.pass_through


# -- the release whose keys cannot tell options apart --------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_required_names_are_there_to_fall_back(fallback: Any, name: str) -> None:
    assert fallback["present"][name]


def test_keys_that_cannot_tell_options_apart_are_found_out(
    fallback: Any, fallback_release: Path
) -> None:
    check_capabilities(fallback, fallback_release)


def test_no_file_is_needed_to_fall_back(fallback: Any) -> None:
    check_without_files(fallback)


@pytest.mark.parametrize("tp", ["tp1", "tp2"])
def test_falling_back_every_rank_tunes_for_itself_at_every_start(fallback: Any, tp: str) -> None:
    """By replay, storing nothing; the reason is in the report and among its warnings."""
    assert fallback[tp]["files"] == []
    for ranks in fallback[tp]["starts"]:
        for rank in ranks:
            report = rank["report"]
            assert report["agreement"] == "none"
            assert "cannot tell runner options apart" in report["reason"]
            assert any("per_rank" in warning for warning in report["warnings"])
            assert report["path"] == ""
            assert report["tasks"]["tuned"] == report["tasks"]["seen"] > 20
            assert report["tactics_timed"] == rank["counts"]["profile_single_kernel"] > 50
            own = {c: a for c, a in rank["served"].items() if "all_reduce" not in c}
            assert all(tactic != -1 for _, tactic in own.values())


def test_falling_back_ranks_meet_after_tuning(fallback: Any) -> None:
    """No rank goes on to serve while another still measures."""
    ranks = fallback["slow second rank"]
    assert {rank["agreement"] for rank in ranks} == {"none"}
    assert min(rank["done"] for rank in ranks) >= max(rank["tuned_until"] for rank in ranks)
    assert ranks[1]["tuned_until"] - ranks[0]["tuned_until"] > 0.1


def test_falling_back_nothing_recorded_is_alive_afterwards(fallback: Any) -> None:
    """Although the winners stay in the tuner's memory."""
    for rank in fallback["slow second rank"]:
        assert rank["recorded"] > 10
        assert rank["alive"] == []


def test_with_required_agreement_all_ranks_serve_defaults(fallback: Any) -> None:
    assert fallback["agree"]["files"] == []
    for rank in fallback["agree"]["ranks"]:
        report = rank["report"]
        assert (report["agreement"], report["tactics_timed"]) == ("defaults", 0)
        own = {c: a for c, a in rank["served"].items() if "all_reduce" not in c}
        assert all(tactic == -1 for _, tactic in own.values())
