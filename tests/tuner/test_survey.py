# SPDX-License-Identifier: Apache-2.0
"""What the survey records, what it leaves alone, and what is never shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

AGREE = {"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}
ALL_BUCKETS = (1, 4, 16, 64)


def ops_of(entries: dict[str, Any]) -> set[str]:
    return {key.split("'")[1] for key in entries}


def labels(*ops: str) -> set[str]:
    return {f"{op} @ {bucket}" for op in ops for bucket in ALL_BUCKETS}


# -- one file key, two configurations ------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2])
def test_runners_that_differ_in_a_flag_or_a_name_share_nothing(children: Children, tp: int) -> None:
    """The planted pair is named in the report, tuned by each process for itself, never stored."""
    for _start in ("cold", "next"):
        for report, held in children.ranks("on_survey:planted_pair", tp=tp):
            assert set(report.unshared) == labels("flag", "name")
            assert "differ in swizzled" in report.unshared["flag @ 16"]
            assert "differ in activation" in report.unshared["name @ 16"]
            assert ops_of(held) == {"flag", "name", "clean"}
            assert report.agreement == "certified"
        assert ops_of(children.entries) == {"clean"}
        assert {task["op"] for task in children.tasks} == {"clean"}


@pytest.mark.parametrize("tp", [1, 2])
def test_with_required_agreement_such_a_pair_serves_defaults(children: Children, tp: int) -> None:
    """No rank tunes for itself what it cannot share."""
    for report, held in children.ranks("on_survey:planted_pair", env=AGREE, tp=tp):
        assert ops_of(held) == {"clean"}
        assert set(report.unshared) == labels("flag", "name")
        assert report.agreement == "certified"


def test_what_was_stored_before_the_pair_appeared_is_dropped(children: Children) -> None:
    """One configuration alone was tuned and stored; with the other beside it the entry goes."""
    children.one("on_survey:one_flag")
    assert ops_of(children.entries) == {"flag", "clean"}
    # The next start knew the answer when it met the call, and kept nothing to tune it with.
    for tuned in ({"name", "clean"}, {"flag", "name", "clean"}):
        report, held = children.one("on_survey:planted_pair")
        assert labels("flag") <= set(report.unshared)
        assert ops_of(held) == tuned
        assert ops_of(children.entries) == {"clean"}
        ((outcome, reason),) = children.outcomes("flag")
        assert (outcome, "one file key" in reason) == ("default", True)


def test_one_op_with_two_runner_lists_shares_nothing(children: Children) -> None:
    """The key of a class belongs to both lists, whose winners differ."""
    report = children.one("on_survey:two_lists")
    assert set(report.unshared) == labels("lists")
    assert "two runner lists" in report.unshared["lists @ 4"]
    assert children.entries == {}


def test_two_runner_lists_on_two_ranks_share_nothing(children: Children) -> None:
    """Neither rank sees the collision; the plan does, and the report says what differs by it."""
    for _start in ("cold", "next"):
        for report in children.ranks("on_survey:lists_of_two_ranks", tp=2):
            assert report.agreement == "partial", report.reason
            assert set(report.differing) == {"lists @ 4", "lists @ 16", "lists @ 64"}
            assert report.tasks["unshared"] == 4
        assert ops_of(children.entries) == {"clean"}


def test_with_required_agreement_such_lists_serve_defaults(children: Children) -> None:
    """No rank tunes its own list."""
    for report in children.ranks("on_survey:lists_of_two_ranks", env=AGREE, tp=2):
        assert (report.agreement, report.differing) == ("certified", ())
        assert report.tasks["unshared"] == 4


@pytest.mark.parametrize("batches", [(100, 100), (16, 100), (100, 16)], ids=str)
def test_runners_that_differ_in_a_number_are_compared_by_candidates(
    children: Children, batches: tuple[int, int]
) -> None:
    """Other candidates under one key are found at tuning; equal ones are shared as one task.

    The wider batch becomes the template of the replay; the narrower one is compared all the same.
    """
    report = children.one("on_survey:rivals", batches=batches)
    both = {bucket for bucket in ALL_BUCKETS if bucket <= min(batches)}
    assert ops_of(children.entries) - {"rivals"} == {"same", "by class"}
    assert set(report.unshared) == labels("rivals")
    assert "different candidates" in report.unshared["rivals @ 16"]
    assert children.keys("rivals") == []
    assert len(both) >= 3


# -- no winner, or none that can be stored -------------------------------------------------------


def test_the_batch_in_a_key_is_known_of_a_single_row_too(children: Children) -> None:
    """Its buckets end at the batch at hand, so that it is tuned at one size alone."""
    for start in ("cold", "warm"):
        report = children.one("on_survey:single_row")
        assert report.unshared == {}
        assert report.ops["raw"]["seen"] == 4
        assert (report.tactics_timed == 0) == (start == "warm")


@pytest.mark.parametrize("batches", [(100,), (16,), (100, 16, 7)], ids=str)
def test_a_key_with_the_raw_batch_is_stored_as_flashinfer_stores_it(
    children: Children, batches: tuple[int, ...]
) -> None:
    """Under the bucket's batch, at which serving finds it; no start times it again."""
    cold, held, served = children.one("on_survey:unstable", batches=batches)
    keys = {
        f"('raw', 'RawBatch', (({bucket}, 8), (8, 8)), ('toy', {bucket}))" for bucket in ALL_BUCKETS
    }
    assert set(children.keys("raw")) == {key for key in held if "raw" in key} == keys
    assert cold.ops["raw"] == {"seen": 4, "from_cache": 0, "tuned": 4}
    assert {batch for batch, tactic in served.items() if tactic != -1} == {*ALL_BUCKETS}

    warm, _, again = children.one("on_survey:unstable", batches=batches)
    assert (warm.tactics_timed, warm.inputs_synthesised) == (0, 0)
    assert warm.ops["raw"] == {"seen": 4, "from_cache": 4, "tuned": 0}
    assert again == served
    assert warm.certificate == cold.certificate


WINNERLESS = {
    "fails": "all tactics failed, the first with ValueError: planted",
    "memory": "out of memory",
    "oom": "out of memory",
    "starved": "out of memory",
    "unlisted": "out of memory",
}


@pytest.mark.parametrize("op", WINNERLESS)
def test_what_was_in_the_way_is_told_and_tried_again(children: Children, op: str) -> None:
    """No memory, no compiler: nothing of it is a fact about the task, and the table is incomplete.

    The next start, in which nothing is in the way, has the winners.
    """
    cold = children.one("on_survey:winnerless", ops=[op])
    assert ops_of(children.entries) == {"toy"}
    assert children.outcomes(op) == set()
    assert cold.ops[op]["failed"] == 4
    (warning,) = [text for text in cold.warnings if "no winner" in text]
    assert warning.startswith(f"4 of 8 tasks have no winner, the first {op} @ ")
    assert WINNERLESS[op] in warning
    assert not children.is_complete
    again = children.one("on_survey:winnerless", ops=[op])
    assert again.ops[op] == cold.ops[op]
    sound = children.one("on_survey:winnerless", ops=[op], is_sound=True)
    assert sound.ops[op] == {"seen": 4, "from_cache": 0, "tuned": 4}
    assert children.is_complete
    warm = children.one("on_survey:winnerless", ops=[op], is_sound=True)
    assert (warm.tactics_timed, warm.tasks["from_cache"]) == (0, 8)


def test_an_op_that_offers_no_tactic_is_known_as_a_default(children: Children) -> None:
    """That is a fact about it: it is stored with its reason, and not asked again."""
    cold = children.one("on_survey:winnerless", ops=["nothing"])
    assert children.outcomes("nothing") == {("default", "no tactic was timed")}
    assert cold.ops["nothing"]["default"] == 4
    warm = children.one("on_survey:winnerless", ops=["nothing"])
    assert (warm.tactics_timed, warm.inputs_synthesised) == (0, 0)
    assert warm.tasks == {"seen": 8, "from_cache": 4, "tuned": 0, "default": 4}


def test_a_tactic_out_of_memory_costs_itself_only(children: Children) -> None:
    """The others race, as where FlashInfer has a process group; so they do if it is the default."""
    cold, served = children.one("on_survey:one_out_of_memory")
    assert served == {"one": 2, "default": 1}
    assert cold.tasks == {"seen": 2, "from_cache": 0, "tuned": 2}
    warm, served = children.one("on_survey:one_out_of_memory")
    assert (warm.tactics_timed, served) == (0, {"one": 2, "default": 1})


def test_a_blocked_tactic_is_not_taken_over(children: Children, tmp_path: Path) -> None:
    """The table beside this one has it; its user has blocked it since, and it is tuned anew."""
    _, before = children.one("on_survey:two_tactics")
    assert set(before.values()) == {0, 1}
    path = tmp_path / "blocklist.json"
    path.write_text(json.dumps({"invalid_tactics": {"toy::Toy": [0]}}))
    env = {"FLASHINFER_TACTICS_BLOCKLIST": str(path)}
    report, served = children.one("on_survey:two_tactics", env=env)
    assert set(served.values()) == {1}
    adopted = sum(tactic == 1 for tactic in before.values())
    assert report.tasks == {
        "seen": 4, "from_cache": 0, "tuned": 4 - adopted, "adopted": adopted,
    }  # fmt: skip
    assert report.agreement == "certified"


def test_a_tactic_that_no_table_can_hold_is_each_ranks_own(children: Children) -> None:
    """Served from memory as FlashInfer alone serves it, tuned at every start, and told."""
    for _start in ("cold", "next"):
        report, served = children.one("on_survey:odd_tactics")
        assert ops_of(children.entries) == {"toy"}
        assert set(report.unshared) == labels("odd") | labels("cudnn")
        assert report.unshared["cudnn @ 16"] == "an integer cuDNN tactic cannot be shared"
        assert served == {"odd": "object", "cudnn": 1}
        assert report.agreement == "certified"


# -- left alone ----------------------------------------------------------------------------------


def test_listed_ops_and_holders_of_a_process_group_are_passed_through(children: Children) -> None:
    """FlashInfer tunes them on all ranks together; they are served, not stored."""
    results = children.ranks("on_survey:passed_through", tp=2)
    for report, held, left in results:
        assert report.passed_through == {
            "listed": "planted",
            "runner": "Toy holds a process group",
            "keyword": "ProcessGroup holds a process group",
        }
        assert ops_of(held) == {"listed", "runner", "keyword", "toy"}
        assert left == []
    assert ops_of(children.entries) == {"toy"}
    assert results[0][1] == results[1][1]


def test_an_op_that_raises_on_its_default_on_every_rank_is_passed_through(
    children: Children,
) -> None:
    """The forward runs once more; what was recorded of the other ops stands."""
    for start in ("cold", "warm"):
        for report, runs, held, left in children.ranks(
            "on_survey:no_default", tp=2, raise_on=(0, 1)
        ):
            assert runs == 2
            assert list(report.passed_through) == ["picky"]
            assert "picky needs a tactic" in report.passed_through["picky"]
            assert ops_of(held) == {"first", "picky", "last"}
            assert left == []
            assert report.tasks["from_cache"] == (8 if start == "warm" else 0)
        assert ops_of(children.entries) == {"first", "last"}


@pytest.mark.parametrize("late", [0, 1])
def test_a_body_that_cannot_run_again_names_the_op_on_every_rank(
    children: Children, late: int
) -> None:
    """On one that hears of it when another has left, too: all have to run another session."""
    found = children.ranks("on_survey:no_default_in_a_body", tp=2, late=late)
    assert {name for name, _, _ in found} == {"ValueError"}
    assert [list(retry) for _, _, retry in found] == [["picky"]] * 2


def test_an_op_that_raises_on_one_rank_only_is_that_ranks_failure(children: Children) -> None:
    """Its own error there, a `ForwardError` naming it on the other; nothing is left or stored."""
    first, second = children.ranks("on_survey:no_default", tp=2, raise_on=(1,))
    assert first[:2] == (
        "ForwardError",
        "rank 1: the forward failed: ValueError: picky needs a tactic",
    )
    assert second[:2] == ("ValueError", "picky needs a tactic")
    assert first[2:] == second[2:] == (1, {})
    assert children.entries == {}


def test_a_forward_that_fails_whatever_is_answered_is_not_run_again_and_again(
    children: Children,
) -> None:
    """Once to find the op, once with the op passed through; then its own error."""
    assert children.one("on_survey:always_raises") == 2


def test_skipped_ops_are_neither_recorded_nor_served(children: Children) -> None:
    """A stored entry of an op on the skip list is not installed; without the list it serves."""
    _, tuned = children.one("on_survey:skipping", skip=False)
    assert all(tactic != -1 for _, tactic in tuned)
    before = children.entries
    report, served = children.one("on_survey:skipping", skip=True)
    assert report.skipped_ops == ("skipped",)
    assert set(report.ops) == {"kept"}
    assert served == [("Toy", -1), tuned[1]]
    assert children.entries == before
    assert children.one("on_survey:skipping", skip=False)[1] == tuned


@pytest.mark.parametrize("same_size", [False, True])
def test_a_forward_with_a_cache_of_its_own(
    children: Children, tmp_path: Path, *, same_size: bool
) -> None:
    """``autotune(cache=...)`` empties the tuner: ours is loaded again, theirs stays as it was.

    Also where theirs has as many entries as ours.
    """
    cache = tmp_path / "theirs.json"
    children.one("on_survey:make_cache", cache=str(cache), num_calls=3 if same_size else 1)
    theirs = cache.read_text()
    for start in ("cold", "warm"):
        report, held, messages = children.one("on_survey:own_cache", cache=str(cache))
        assert report.agreement == "certified"
        assert ops_of(held) == {"before", "inside", "after"}
        assert held == children.entries
        assert cache.read_text() == theirs
        if start == "warm":
            assert report.tactics_timed == 0
            assert report.tasks["from_cache"] == 12
            assert any("another table was loaded" in message for message in messages)


@pytest.mark.parametrize("ambient", [False, True])
def test_under_a_persistent_store_calls_are_the_engines(
    children: Children, tmp_path: Path, *, ambient: bool
) -> None:
    """The winners would be the store's own: passed through, and said so."""
    report, served = children.one(
        "on_survey:persistent_store", store=str(tmp_path / "store"), ambient=ambient
    )
    assert report.passed_through == {
        "toy": "a persistent autotune_v2 store is attached: the winners are its own"
    }
    assert report.tasks["seen"] == 0
    assert served[1] != -1
    assert children.entries == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_an_open_tuning_context_refuses_the_session_on_every_rank(
    children: Children, rank: int
) -> None:
    for result in children.ranks("on_survey:open_already", tp=2, rank=rank):
        assert result == (
            "RefusedError",
            f"rank {rank}: a FlashInfer tuning context is open already; close it first",
        )
    assert not list(children.root.rglob("rank_*"))


@pytest.mark.parametrize("tp", [1, 2])
def test_a_tactic_that_its_runner_does_not_offer_any_more_is_tuned_anew(
    children: Children, tp: int
) -> None:
    """Also from a table whose manifest vouches for it: said, tuned at once, stored."""
    children.ranks("on_survey:telling", tp=tp)
    for report, held in children.ranks("on_survey:telling", tp=tp):
        assert report.tactics_timed == 0
        assert len(held) == 4
    results = children.ranks("on_survey:telling", tp=tp, tactics=(7, 8))
    assert sum(report.ops["telling"].get("tuned", 0) for report, _ in results) == 4
    for report, held in results:
        assert report.agreement == "certified"
        assert set(held.values()) <= {7, 8}
        assert sum("does not offer tactic" in text for text in report.warnings) == 4
    for report, held in children.ranks("on_survey:telling", tp=tp, tactics=(7, 8)):
        assert (report.tactics_timed, set(held.values()) <= {7, 8}) == (0, True)


def test_a_tactic_that_one_rank_refuses_is_served_by_none(children: Children) -> None:
    """Tuned anew, it is the same one again: all serve the default, and agree."""
    children.ranks("on_survey:telling", tp=2)
    for report, held in children.ranks("on_survey:telling", tp=2, refuse_on=1):
        assert report.agreement == "certified", report.reason
        assert held == {}
        assert any("rank 1" in text and "offer" in text for text in report.warnings)


def test_what_is_refused_is_not_served_where_nothing_is_timed(children: Children) -> None:
    children.one("on_survey:telling")
    replaying = {"WARMUP_PLUGIN_MODE": "replay"}
    report, held = children.one("on_survey:telling", tactics=(7, 8), env=replaying)
    assert (report.agreement, report.tactics_timed, held) == ("certified", 0, {})
    assert report.ops["telling"]["default"] == 4


def test_lookups_that_fall_back_while_serving_are_counted(children: Children) -> None:
    """Each shape once, by op; nothing of ours is in the tuner for it."""
    before, after, left = children.one("on_survey:serving")
    assert before == {}
    assert after == {"toy": 2}
    assert left == []


def test_choose_one_stays_flashinfers_own_function(children: Children) -> None:
    """During the session and after it; the tuner object carries nothing of ours afterwards."""
    assert children.one("on_survey:untouched") == ([True, True, True], [])


def test_a_warm_forward_is_answered_with_the_winners(children: Children) -> None:
    """So that it builds what will serve; a cold one with FlashInfer's defaults."""
    cold, answers, served = children.one("on_survey:answered")
    assert cold.tasks["from_cache"] == 0
    assert {tactic for of_kind in answers.values() for _, tactic in of_kind} == {-1}
    warm, answers, again = children.one("on_survey:answered")
    assert warm.tasks["from_cache"] == warm.tasks["seen"]
    assert answers == again == served
    assert all(tactic != -1 for _, tactic in served["toy"])


def test_calls_outside_tuning_mode_are_not_recorded(children: Children) -> None:
    assert set(children.one("on_survey:outside_tuning").ops) == {"tuning"}


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["leader", "per_rank"])
def test_nothing_recorded_is_alive_afterwards(children: Children, strategy: str) -> None:
    """Copies, stand-ins, clones and closures go with the session, whoever keeps the winners."""
    env = {"WARMUP_PLUGIN_STRATEGY": strategy}
    report, noted, alive = children.one("on_survey:alive_after", env=env)
    assert report.tasks["seen"] == 8
    assert noted == [
        "call", "clone", "closure", "function", "inner runner", "keyword", "runner", "stand-in",
    ]  # fmt: skip
    assert alive == []


def test_an_op_that_makes_its_config_anew_is_copied_once(children: Children) -> None:
    """Sixty layers with a closure each take the bytes of one from the budget."""
    used, num_tasks = children.one("on_survey:many_layers")
    assert num_tasks == 4
    assert used == 400


def test_optional_inputs_may_be_dynamic(children: Children) -> None:
    """FlashInfer takes None where a spec names an input; so does the survey."""
    report = children.one("on_survey:optional_inputs")
    assert report.tasks["tuned"] == report.tasks["seen"] > 0
