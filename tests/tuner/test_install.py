# SPDX-License-Identifier: Apache-2.0
"""The tuner serves the session's table and what others had in it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

RECORDS = {"plan": {"tiles": [1, 2]}}


def ops_of(entries: dict[str, Any]) -> set[str]:
    return {key.split("'")[1] if "'" in key else key for key in entries}


# -- what others hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["leader", "per_rank"])
def test_others_entries_survive_and_never_stand_over_ours(
    children: Children, strategy: str
) -> None:
    """Loaded or tuned, of other ops or of batches we do not have; ours win where both have one."""
    env = {"WARMUP_PLUGIN_STRATEGY": strategy}
    for start in ("cold", "warm"):
        found = children.one("on_install:with_others", env=env)
        ours = {
            key
            for key in found["after"]
            if "'toy', 'Toy', ((4096" not in key and "'toy', 'Toy'" in key
        }
        assert len(ours) == 4
        before, after = found["before"], found["after"]
        kept = before.keys() - ours
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
        assert after.keys() == kept | ours
        assert found["served"][1] not in (-1, 77), start
        assert found["tuned before"][1] != -1
        assert found["memory"] == (4 if strategy == "per_rank" else 0)
        if strategy == "leader":
            assert children.entries.keys() == ours


def test_what_others_hold_is_known_without_a_file(children: Children) -> None:
    """Entry for entry what FlashInfer would save, which it can only do to a directory."""
    saved, ours = children.one("on_install:holds")
    assert ours == saved
    assert {"loaded", "tuned", "cold", "graph", "bare"} <= ops_of(ours)
    assert any(len(entry) == 2 for entry in ours.values())


def test_after_a_failed_forward_the_tuner_holds_what_it_held(children: Children) -> None:
    found = children.one("on_install:with_others", fails=True)
    assert found["after"] == found["before"]
    assert children.entries == {}


def test_others_winners_under_a_measurement_policy_survive(children: Children) -> None:
    """They stand in a part of FlashInfer's memory that no table holds."""
    tuned, served = children.one("on_install:under_a_policy")
    assert served == tuned
    assert served[1] != -1


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("strategy", ["leader", "per_rank"])
def test_published_records_survive_with_their_generation(
    children: Children, tmp_path: Path, when: str, strategy: str, *, is_new: bool
) -> None:
    """FlashInfer saves them afterwards as if no session had been: cold, and warm."""
    file = tmp_path / "product.json"
    for start in ("cold", "warm"):
        if not is_new:
            file.unlink(missing_ok=True)
            children.one("on_install:make_records", file=str(file))
            generation = json.loads(file.read_text())["_generation"]
        else:
            file.unlink(missing_ok=True)
            generation = None
        env = {"WARMUP_PLUGIN_STRATEGY": strategy}
        found = children.one("on_install:records", file=str(file), when=when, env=env)
        assert found["records"] == RECORDS, start
        assert found["dirty"] == ["product"], start
        assert found["generation"] == generation
        assert found["saved"] == {"product": RECORDS}
        assert found["ours"][1] != -1


def test_loaded_records_survive(children: Children, tmp_path: Path) -> None:
    for _start in ("cold", "warm"):
        found = children.one("on_install:records", file=str(tmp_path / "none"), when="loaded")
        assert (found["records"], found["dirty"]) == (RECORDS, [])


def test_records_in_a_table_are_not_spread(children: Children) -> None:
    """FlashInfer alone may save a GPU's records into our file: they are that process's own."""
    children.one("on_install:take_records")
    document = json.loads(children.table_path.read_text())
    document["_records"] = {"product": {"uuid": "of another GPU"}}
    children.table_path.write_text(json.dumps(document))
    for report, records in children.ranks("on_install:take_records", tp=2):
        assert records == {}
        assert report.tactics_timed == 0
        assert report.tasks["adopted"] == 4


# -- measurement policies ------------------------------------------------------------------------


def test_a_policy_travels_and_an_entry_is_known_under_its_own_only(children: Children) -> None:
    """The third element goes from the tuner into the table, and back into the tuner."""
    cold, _, tuned = children.one("on_install:policies", replays=1)
    assert cold.tasks["tuned"] == 12
    policy = {
        op: {tuple(children.entries[k][2]) for k in children.keys(op)}
        for op in ("cold", "graph", "plain")
    }
    assert policy == {
        "cold": {("cuda_graph_profile_replays", None, "l2_cache_policy", "cold")},
        "graph": {("cuda_graph_profile_replays", 1, "l2_cache_policy", "hot")},
        "plain": {("cuda_graph_profile_replays", None, "l2_cache_policy", "hot")},
    }

    warm, counts, served = children.one("on_install:policies", replays=1)
    assert (warm.tactics_timed, counts["profile_single_kernel"]) == (0, 0)
    assert served == tuned

    other, _, _ = children.one("on_install:policies", replays=5)
    assert {op: found["tuned"] for op, found in other.ops.items()} == {
        "cold": 0,
        "graph": 4,
        "plain": 0,
    }
    assert {children.entries[key][2][1] for key in children.keys("graph")} == {5}
    again, _, _ = children.one("on_install:policies", replays=5)
    assert again.tactics_timed == 0


def test_an_entry_without_a_policy_counts_as_measured_hot(children: Children) -> None:
    """A file from before policies: the op with a cold L2 is tuned again, the others are known."""
    children.one("on_install:policies", replays=1)
    document = json.loads(children.table_path.read_text())
    stripped = {k: v[:2] if k.startswith("(") else v for k, v in document.items()}
    children.table_path.write_text(json.dumps(stripped))
    report, _, _ = children.one("on_install:policies", replays=1)
    assert {op: found["tuned"] for op, found in report.ops.items()} == {
        "cold": 4,
        "graph": 0,
        "plain": 0,
    }


def test_old_files_entries_answer_runners_without_extras_only(children: Children) -> None:
    """Three-field keys tell no options apart, and say nothing of a cold L2."""
    children.one("on_install:old_keys")
    path = children.table_path
    document = json.loads(path.read_text())
    old = {"_metadata": document["_metadata"]}
    for op in ("bare", "cold bare", "mixed"):
        for batch in (1, 4, 16, 64):
            old[str((op, "Toy", ((batch, 8), (8, 8))))] = ["Toy", 1]
    for runner in ("Toy", "Other"):  # two answers for one task are none
        old[str(("pair", runner, ((4, 8), (8, 8))))] = [runner, 1]
    old[str(("pair", "Other", ((16, 8), (8, 8))))] = ["Other", 1]
    path.with_suffix(".manifest.json").unlink()
    path.write_text(json.dumps(old))

    report, held = children.one("on_install:old_keys")
    counts = {op: (found.get("adopted", 0), found["tuned"]) for op, found in report.ops.items()}
    assert counts == {"bare": (4, 0), "cold bare": (0, 4), "mixed": (0, 4), "pair": (1, 3)}
    assert all(held[key][1] == 1 for key in held if key.startswith("('bare'"))
    assert held[str(("pair", "Other", ((16, 8), (8, 8)), ()))][:2] == ["Other", 1]
    warm, again = children.one("on_install:old_keys")
    assert warm.tactics_timed == 0
    assert again == held


# -- during a session ----------------------------------------------------------------------------


def test_what_somebody_replaces_is_loaded_again(children: Children) -> None:
    """Emptied, replaced by as many entries, added to; a pass-through op keeps what it loads."""
    found = children.one("on_install:restores")
    assert found["untouched"] == (False, True)
    for way in ("emptied", "replaced", "added to"):
        assert found[way] == (True, True, False, True), way
    assert found["extended by a listed op"] == (True, True, True, True)


def test_a_pass_through_ops_entries_serve_throughout(children: Children) -> None:
    """Its loaded entries during the survey, and with what it tunes there afterwards; not stored."""
    for _start in ("cold", "warm"):
        report, during, served, held = children.one("on_install:keeps_listed_ops")
        assert during == [("Toy", 3)] == [served]
        assert ops_of(held) == {"listed", "toy"}
        assert ops_of(children.entries) == {"toy"}
        assert report.agreement == "certified"
    assert report.tasks["from_cache"] == 4


def test_what_flashinfer_cannot_take_is_refused(children: Children) -> None:
    *said, held = children.one("on_install:refuses")
    assert [text.split(":")[0] for text in said] == ["InstallError"] * 4
    assert "its stamp is another environment's" in said[3]
    assert held == "{}"
