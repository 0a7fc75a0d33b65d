# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide together: the rules of each meeting, one table each."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec.structs import replace

from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES
from warmup_plugin.coordination.decisions import LoadDecision, OpenDecision, ReadyDecision
from warmup_plugin.coordination.rounds import Vote, VoteError
from warmup_plugin.coordination.versions import BUILD
from warmup_plugin.coordination.votes import (
    AgreeVote,
    CertifyVote,
    Heading,
    LoadVote,
    OpenVote,
    RankRow,
    ReadyVote,
    SurveyVote,
)
from warmup_plugin.identity import Identity
from warmup_plugin.steps.decisions import (
    decide_agree,
    decide_certify,
    decide_load,
    decide_only_survey,
    decide_ready,
    decide_survey,
)
from warmup_plugin.steps.open_decision import decide_open, taken_from

Fields = dict[str, Any]
V = TypeVar("V", bound=Vote)


def ranks(*votes: V) -> dict[int, V]:
    return dict(enumerate(votes))


# -- opening -------------------------------------------------------------------------------------


def factors(**more: Any) -> dict[str, Any]:
    stamp = {"flashinfer_version": "0.7.2", "cudnn_version": "9", **more.pop("stamp", {})}
    return dict(Identity.of(model="m", dtype="bf16", stamp=stamp, **more).factors)


def hello(rank: int = 0, size: int = 1, node: str = "n0", **more: Any) -> OpenVote:
    fields = {
        "plugin": BUILD,
        "host": f"host of {node}",
        "ranks": {"rank": rank, "world_size": size, "node": node},
        "tuning": False,
        "version": "0.7.2",
        "lack": "",
        "keys_tell_options_apart": True,
        "factors": factors(),
        "require_agreement": False,
        "mode": "on",
        "strategy": "leader",
        "on_hit": "survey",
        "budget_s": None,
        "margin": 0.03,
        "race": False,
        "session": "s",
        "alike": True,
        "takes": [],
        "must_share": False,
        "may_keep_step": False,
        **more,
    }
    return msgspec.convert(fields, OpenVote)


def opened(*changes: Fields) -> OpenDecision:
    size = len(changes)
    record = decide_open({rank: hello(rank, size, **more) for rank, more in enumerate(changes)})
    assert msgspec.json.decode(msgspec.json.encode(record), type=OpenDecision) == record
    return record


ANOTHER_GPU = {"factors": factors(gpu={"name": "another"})}
ANOTHER_CUDNN = {"factors": factors(stamp={"cudnn_version": "8"})}
OLD_KEYS = {"keys_tell_options_apart": False, "version": "0.6.12"}
MOVED = {"lack": "FlashInfer 0.9.0 has no tuner._file_configs", "version": "0.9.0"}
A_LIST = {"factors": factors(switches={"FLASHINFER_TACTICS_BLOCKLIST": "1" * 64})}
STEP = {"may_keep_step": True}
AGREE = {"require_agreement": True}
TAKES = {"takes": ["cublas_version"]}

OPENING: dict[str, tuple[tuple[Fields, ...], str, str]] = {
    "alike": (({}, {}), "share", ""),
    "strategy per_rank": (
        ({"strategy": "per_rank"}, {"strategy": "per_rank"}), "per_rank", "strategy per_rank",
    ),
    "keys that cannot tell options apart": (
        ({}, OLD_KEYS), "per_rank",
        "rank 1: the file keys of FlashInfer 0.6.12 cannot tell runner options apart",
    ),
    "the same, agreement required": ((OLD_KEYS, AGREE), "defaults", "rank 0: the file keys"),
    "another GPU": (({}, ANOTHER_GPU), "per_rank", "rank 1: gpu.name is 'another', not"),
    "another cuDNN": (
        ({}, {}, ANOTHER_CUDNN), "per_rank",
        "rank 2: stamp.cudnn_version is '8', not '9' as on rank 0",
    ),
    "another GPU, agreement required": (({}, {**ANOTHER_GPU, **AGREE}), "defaults", "rank 1: gpu"),
    "another cuDNN, of a rank that takes the rest": (
        ({"factors": factors(stamp={"cublas_version": "13"})}, {**ANOTHER_CUDNN, **TAKES}),
        "per_rank", "rank 1: stamp.cudnn_version is '8', not '9' as on rank 0",
    ),
    "another GPU, of a rank that must share": (
        ({}, {**ANOTHER_GPU, "must_share": True}), "refuse", "rank 1: gpu.name is 'another', not",
    ),
    "another cuDNN, of ranks that may keep step": (
        (STEP, {**ANOTHER_CUDNN, **STEP}), "refuse", "rank 1: stamp.cudnn_version is '8'",
    ),
    "another GPU of its kind, of ranks that may keep step": (
        (STEP, {**ANOTHER_GPU, **STEP}), "refuse", "rank 1: gpu.name is 'another', not",
    ),
    "another way to time, of ranks that may keep step": (
        (STEP, {"factors": factors(switches={"FLASHINFER_AUTOTUNE_TIMER": "cupti"}), **STEP}),
        "refuse", "switches.FLASHINFER_AUTOTUNE_TIMER",
    ),
    "another kind of GPU, of ranks that may keep step": (
        (STEP, {"factors": factors(gpu={"capability": "9.0"}), **STEP}), "per_rank",
        "rank 1: gpu.capability is '9.0', not",
    ),
    "a list of tactics, of ranks that may keep step": (
        (STEP, {**A_LIST, **STEP}), "per_rank", "rank 1: switches.FLASHINFER_TACTICS_BLOCKLIST",
    ),
    "another cuDNN beside it": (
        (STEP, {**A_LIST, **STEP}, {**ANOTHER_CUDNN, **STEP}), "per_rank",
        "rank 1: switches.FLASHINFER_TACTICS_BLOCKLIST",
    ),
    "a list of tactics, of ranks that may keep step, agreement required": (
        (STEP, {**A_LIST, **STEP, **AGREE}), "defaults",
        "rank 1: switches.FLASHINFER_TACTICS_BLOCKLIST",
    ),
    "a list of tactics, of a rank that must share": (
        ({}, {**A_LIST, "must_share": True}), "refuse",
        "rank 1: switches.FLASHINFER_TACTICS_BLOCKLIST",
    ),
    "strategy per_rank, of ranks that may keep step": (
        ({**STEP, "strategy": "per_rank"}, STEP), "per_rank", "strategy per_rank",
    ),
    "strategy per_rank, of ranks that must share": (
        ({"strategy": "per_rank", "must_share": True},), "per_rank", "strategy per_rank",
    ),
    "another switch": (
        ({}, {"factors": factors(switches={"MOE_AUTOTUNE": "1"})}), "per_rank",
        "switches.MOE_AUTOTUNE",
    ),
    "a moved name, of the rank that lacks it": (
        ({}, MOVED), "unguarded", "FlashInfer 0.9.0 has no tuner._file_configs",
    ),
    "a moved name comes before keys": ((OLD_KEYS, MOVED), "unguarded", "FlashInfer 0.9.0"),
    "an open context": (
        ({}, {"tuning": True}), "refuse", "rank 1: a FlashInfer tuning context is open already",
    ),
    "an open context comes first": ((MOVED, {"tuning": True}), "refuse", "rank 1: a FlashInfer"),
    "other coordinates": (
        ({}, {"ranks": {"rank": 5, "world_size": 2, "node": "n0"}}), "refuse",
        "rank 1 of 2 says that it is rank 5 of 2",
    ),
    "another size": (
        ({"ranks": {"rank": 0, "world_size": 9, "node": "n0"}},), "refuse",
        "rank 0 of 1 says that it is rank 0 of 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "go", "reason"), OPENING.values(), ids=OPENING)
def test_how_far_ranks_share(changes: tuple[Fields, ...], go: str, reason: str) -> None:
    """And why not further, for log and report."""
    record = opened(*changes)
    assert record.go == go
    assert reason in record.reason if reason else record.reason == ""


def test_what_a_rank_takes_of_the_stamp_is_rank_0s() -> None:
    """In the identity of all, and as what rank 0 itself has found, known or not."""
    stamp = {"cublas_version": "unknown", "cutlass_dsl_version": "4.2"}
    takes = {"takes": ["cublas_version", "cutlass_dsl_version"]}
    told = {"factors": factors(stamp={"cublas_version": "13"})}
    record = opened({"factors": factors(stamp=stamp)}, takes, {}, {**told, "alike": False})
    assert record.go == "share"
    assert record.looked_up == stamp
    assert record.factors["stamp"]["cutlass_dsl_version"] == "4.2"
    assert record.factors["stamp"]["cublas_version"] == "13", "known to rank 3"


def test_equal_packages_at_another_path_are_no_other_environment() -> None:
    """A rank whose FlashInfer has another fingerprint of them shares; the identity has neither."""
    here, there = ({FINGERPRINT: at, PACKAGES: "same"} for at in ("here", "there"))
    other = {FINGERPRINT: "there", PACKAGES: "other"}
    takes = {"takes": [FINGERPRINT]}
    record = opened(
        {"factors": factors(stamp=here)}, takes, {"factors": factors(stamp=there), "alike": False}
    )
    assert (record.go, record.warnings) == ("share", [])
    assert record.factors["stamp"] == {
        "flashinfer_version": "0.7.2", "cudnn_version": "9", FINGERPRINT: "same",
    }  # fmt: skip
    assert record.looked_up == here
    assert taken_from(record.looked_up, takes["takes"]) == here
    assert taken_from(record.looked_up, []) == {}
    record = opened({"factors": factors(stamp=here)}, {"factors": factors(stamp=other)})
    assert record.go == "per_rank"
    assert f"stamp.{FINGERPRINT} is 'other', not 'same'" in record.reason


def test_ranks_that_see_alike_divide_the_look() -> None:
    """Rank 0 may take what another has found; one that sees otherwise has nothing for them."""
    words: tuple[Fields, ...] = (
        {"factors": factors(stamp={"cublas_version": "13"}), "takes": ["cutlass_dsl_version"]},
        {"factors": factors(stamp={"cutlass_dsl_version": "4.1", "cublas_version": "13"}),
         "alike": False},
        {"factors": factors(stamp={"cutlass_dsl_version": "4.2"}), "takes": ["cublas_version"]},
    )  # fmt: skip
    record = opened(*words)
    assert record.looked_up == {"cublas_version": "13", "cutlass_dsl_version": "4.2"}
    assert record.reason == ("rank 1: stamp.cutlass_dsl_version is '4.1', not '4.2' as on rank 0")


@pytest.mark.parametrize("unknown", ["unknown", "None", None])
def test_a_stamp_field_unknown_on_one_side_is_no_difference(unknown: str | None) -> None:
    """The value that somebody knows stands in everybody's identity."""
    here = factors()
    here["stamp"] = {**here["stamp"], "cudnn_version": unknown}
    for other in (0, 1):
        changes: list[Fields] = [{"factors": here}, {}]
        record = opened(*(changes if other else reversed(changes)))
        assert record.go == "share"
        assert record.factors["stamp"]["cudnn_version"] == "9"
    alone = opened({"factors": here})
    assert alone.factors["stamp"]["cudnn_version"] == "unknown"


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"colour": "red"}, "colour is \"'red'\": must be one of the factors model, role,"),
        ({"tp": "two"}, "tp is 'two': must be a whole number, 1 or more"),
        ({"stamp": {"flashinfer_version": ["0.7.2"]}, "tp": 0}, "tp is 0: must be a whole number"),
    ],
    ids=["unknown", "another type", "out of range"],
)
def test_factors_that_are_none_are_named_with_their_rank(changed: Fields, rule: str) -> None:
    """The rank lives and may be of another build: all ranks hear which one, and what is wrong."""
    with pytest.raises(VoteError) as caught:
        opened({}, {"factors": {**factors(), **changed}})
    assert caught.value.rank == 1
    assert f"its vote at step open has factors of which {rule}" in caught.value.reason


def test_two_ranks_that_know_different_things_differ() -> None:
    """Also where rank 0 knows nothing."""
    blank = factors()
    blank["stamp"] = {**blank["stamp"], "cudnn_version": "unknown"}
    record = opened({"factors": blank}, {}, ANOTHER_CUDNN)
    assert (record.go, "rank 2: stamp.cudnn_version" in record.reason) == ("per_rank", True)


def test_rank_0s_settings_are_used_and_the_others_told() -> None:
    """Engine factors that differ are told too; file keys are exact, so ranks share all the same."""
    record = opened(
        {"mode": "read-only", "on_hit": "skip"},
        {"mode": "on", "on_hit": "skip", "factors": factors(extra={"tokens": 5})},
    )
    assert [record.mode, record.strategy, record.on_hit] == [
        "read-only",
        "leader",
        "skip",
    ]
    assert record.go == "share"
    assert len(record.warnings) == 2
    assert "rank 1 has mode=on, rank 0's read-only is used" in record.warnings
    assert "extra" in record.warnings[1]


def test_the_first_rank_of_each_node_writes() -> None:
    places = [{"ranks": {"rank": r, "world_size": 5, "node": n}} for r, n in enumerate("abbab")]
    record = opened(*places)
    assert record.nodes == [[0, 3], [1, 2, 4]]
    assert record.writers == [0, 1]


# -- tables --------------------------------------------------------------------------------------


def table(sha256: str = "", manifest: str = "", **more: Any) -> AgreeVote:
    fields = {
        "table": sha256, "manifest": manifest, "defaults": [], "complete": False, "trusted": False,
        "vouched": False, "warnings": [], "mark": "", "deaths": {}, **more,
    }  # fmt: skip
    return msgspec.convert(fields, AgreeVote)


def test_without_a_table_all_start_cold() -> None:
    record = decide_agree(ranks(table(warnings=["a: denied"]), table(warnings=["b: absent"])))
    assert record.go == "none"
    assert record.warnings == ["rank 0: a: denied", "rank 1: b: absent"]


def test_one_table_is_everybodys_whoever_has_it() -> None:
    """Its heading travels with it."""
    record = decide_agree(
        ranks(table(), table("T", "M", defaults=["d"], complete=True, trusted=True))
    )
    assert record.go == "one"
    assert (record.source, record.held_by) == (1, [1])
    assert record.heading == Heading("T", "M", ["d"], complete=True, trusted=True, vouched=False)


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ([table("T", "M"), table("U", "N")], [0, 1]),
        ([table(), table("T", "M"), table("U", "N"), table("T", "M")], [1, 2]),
        ([table("T", ""), table("T", "M")], [0, 1]),
        ([table("T", "M"), table("T", "N"), table("T", "M")], [0, 1]),
    ],
    ids=["two tables", "each digest once", "one manifest lost", "two manifests of one table"],
)
def test_different_tables_are_merged(words: list[AgreeVote], want: list[int]) -> None:
    """Each distinct pair of table and manifest crosses once; a valid manifest is not lost."""
    record = decide_agree(ranks(*words))
    assert (record.go, record.want) == ("merge", want)


def test_a_table_that_one_rank_cannot_load_is_nobodys() -> None:
    fine, bad = LoadVote(error="", shares_disk=False), LoadVote(error="refused", shares_disk=True)
    assert decide_load(ranks(fine, fine)) == LoadDecision(go="loaded", redundant=[])
    assert decide_load(ranks(fine, bad)) == LoadDecision(
        go="empty", reason="rank 1: refused", redundant=[1]
    )


# -- survey --------------------------------------------------------------------------------------


def surveyed(**more: Any) -> SurveyVote:
    fields = {
        "error": "", "last_answered": "", "stage": 0, "unrecorded": {}, "missing": 0,
        "stored": False, "unshared": 0, "skipped": [], "ops": [], "asked": 1, "heal": False,
        "sealed": None, **more,
    }  # fmt: skip
    return msgspec.convert(fields, SurveyVote)


@pytest.mark.parametrize("heal", [False, True], ids=["", "with others' tables beside"])
@pytest.mark.parametrize("asked", [(1, 1), (0, 1), (0, 0)])
def test_a_forward_that_asks_nothing(asked: tuple[int, int], heal: bool) -> None:  # noqa: FBT001  # a case
    """On no rank: a rank without a layer of its own, or without a token, has others to ask."""
    words = ranks(*(surveyed(asked=number, heal=heal) for number in asked))
    assert decide_survey(words).is_empty is (asked == (0, 0))


def test_a_rank_without_a_task_adds_nothing_to_the_certificate() -> None:
    """And where no rank has one there is none."""
    word, none = certified("ab"), certified("")
    both, one = (decide_certify(ranks(word, other)) for other in (word, none))
    assert both.certificate == one.certificate != ""
    assert decide_certify(ranks(none, none)).certificate == ""


@pytest.mark.parametrize(
    ("words", "go"),
    [
        ([surveyed(), surveyed()], "warm"),
        ([surveyed(), surveyed(missing=1)], "plan"),
        ([surveyed(unshared=2), surveyed()], "plan"),
        ([surveyed(), surveyed(heal=True)], "plan"),
        ([surveyed(error="E", last_answered="op")] * 2, "rerun"),
        ([surveyed(error="E", last_answered="op")], "rerun"),
        ([surveyed(error="E", last_answered="op"), surveyed(last_answered="op")], "abort"),
        ([surveyed(error="E", last_answered=op) for op in ("op", "po")], "abort"),
        ([surveyed(error="E"), surveyed(error="E")], "abort"),
        ([*[surveyed(error="E", last_answered="op")] * 2, surveyed(stage=1, ops=["po"])], "rerun"),
        ([*[surveyed(error="E", last_answered="op")] * 2, surveyed(stage=1, ops=["op"])], "abort"),
        ([surveyed(error="E", last_answered="op"), surveyed(ops=["po"])], "abort"),
    ],
    ids=[
        "all known", "one missing", "one unshared", "files to heal", "all fail at one op",
        "alone", "one fails", "at two ops", "before any op", "a stage fails at its own op",
        "at another stage's too", "one rank of a stage fails at its own op",
    ],
)  # fmt: skip
def test_what_forwards_have_shown(words: list[SurveyVote], go: str) -> None:
    """A failure at one op on every rank that may call it is the op's; any other is a rank's."""
    record = decide_survey(ranks(*words))
    assert record.go == go
    assert record.op == ("op" if go == "rerun" else "")


def test_a_forward_that_cannot_run_again_ends_the_session() -> None:
    words = ranks(*[surveyed(error="E", last_answered="op")] * 2)
    assert decide_only_survey(words) == replace(decide_survey(words), go="retry")
    for same in (ranks(surveyed(), surveyed(missing=1)), ranks(surveyed(), surveyed(error="E"))):
        assert decide_only_survey(same) == decide_survey(same)


def test_the_failed_rank_is_named() -> None:
    record = decide_survey(
        ranks(surveyed(), surveyed(), surveyed(error="ValueError: 1"), surveyed())
    )
    assert (record.go, record.rank, record.reason) == ("abort", 2, "ValueError: 1")


def test_an_op_that_one_rank_skips_is_skipped_by_all() -> None:
    words = ranks(surveyed(skipped=["b"]), surveyed(skipped=["a", "b"]), surveyed(error="E"))
    assert decide_survey(words).skipped == ["a", "b"]
    assert decide_survey(ranks(surveyed(skipped=["b"]))).skipped == ["b"]


# -- sharing -------------------------------------------------------------------------------------


def ready(**more: Any) -> ReadyVote:
    return ReadyVote(**{"failed": {}, "refused": [], "error": "", **more})


ROW = RankRow(0, [], [], 0, 0, 0, 0, 0, {}, [])


def certified(served: str = "s", **more: Any) -> CertifyVote:
    fields = {"deviates": [], "published": [], "row": ROW, "apart": {}, "leaves": "", **more}
    return msgspec.convert({"served": served, **fields}, CertifyVote)


SEALED = certified("digest")


def test_a_warm_start_is_certified_with_the_survey() -> None:
    """Where each rank has its word ready: the record is that of step 9."""
    words = ranks(surveyed(sealed=SEALED), surveyed(sealed=SEALED))
    found = decide_survey(words).certified
    assert found == decide_certify(ranks(SEALED, SEALED))
    assert found is not None
    assert found.certificate


@pytest.mark.parametrize(
    "other",
    [
        surveyed(),
        surveyed(sealed=certified("digest", deviates=["gemm @ 8"])),
        surveyed(sealed=SEALED, missing=1),
        surveyed(sealed=SEALED, error="E", last_answered="op"),
    ],
    ids=["not ready", "another tactic", "one missing", "a forward that failed"],
)
def test_one_rank_that_is_not_ready_leaves_it_to_step_9(other: SurveyVote) -> None:
    """All ranks go on then, and certify when they have done what there is to do."""
    assert decide_survey(ranks(surveyed(sealed=SEALED), other)).certified is None


def test_winners_that_some_rank_cannot_build_are_dropped_by_all() -> None:
    """With the lowest such rank's reason."""
    record = decide_ready(
        ranks(
            ready(),
            ready(failed={"t": "no"}),
            ready(failed={"t": "nay", "u": "x"}, refused=["u"]),
        )
    )
    assert record == ReadyDecision(
        go="serve", drop={"t": "rank 1: no", "u": "rank 2: x"}, refused=["u"]
    )


def test_a_table_that_is_not_in_force_on_one_rank_is_in_force_on_none() -> None:
    record = decide_ready(ranks(ready(failed={"t": "no"}), ready(error="refused")))
    assert record.drop == {}
    assert (record.go, record.reason) == ("defaults", "rank 1: refused")


def test_tasks_that_ranks_serve_differently_are_named() -> None:
    """They are in no table; all else is certified. Of one rank's own nothing is said."""
    words = ranks(
        certified(apart={"t": ["op @ 4", "('A', 1)"], "u": ["op @ 8", "None"]}),
        certified(apart={"t": ["op @ 4", "('A', 2)"], "u": ["op @ 8", "None"]}),
        certified(apart={"v": ["op @ 16", "('A', 1)"]}),
    )
    record = decide_certify(words)
    assert (record.go, record.differ) == ("serve", ["op @ 4"])
    assert record.certificate == certificate("s")


def test_an_op_that_one_rank_cannot_record_is_passed_through_by_all() -> None:
    """In another run of the forward, where there can be one; else it stays on its default."""
    words = ranks(surveyed(), surveyed(unrecorded={"gemm": "KeyError: 'a'"}))
    record = decide_survey(words)
    assert (record.go, record.op, record.distrust) == ("rerun", "gemm", False)
    assert "KeyError: 'a'" in record.reason
    assert decide_survey(words, last=True).go == "warm"
    assert decide_only_survey(words).go == "warm"


def certificate(*served: str) -> str:
    return hashlib.sha256("".join(served).encode()).hexdigest()


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (["a"], certificate("a")),
        (["a", "a", "a"], certificate("a")),
        (["b", "a", "b"], certificate("a", "b")),
        (["", ""], ""),
    ],
    ids=["alone", "one stage", "two stages", "nothing shared"],
)
def test_the_certificate_is_over_the_distinct_answers(served: list[str], expected: str) -> None:
    """Equal on every rank and at every start; stages answer for different tasks."""
    record = decide_certify(ranks(*(certified(one) for one in served)))
    assert (record.go, record.certificate) == ("serve", expected)


def test_ranks_that_deviate_are_named_and_all_serve_defaults() -> None:
    record = decide_certify(
        ranks(
            certified(published=["/a"]), certified(deviates=["op @ 1", "op @ 2"], published=["/b"])
        )
    )
    assert record.go == "defaults"
    assert record.reason == "other tactics are served than agreed (rank 1: op @ 1, op @ 2)"
    assert record.published == ["/a", "/b"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_has_been_told_to_end_ends_the_job(rank: int) -> None:
    """Nobody is certified with one that is about to go, whatever it serves."""
    words = ranks(certified("a"), certified("a"))
    words[rank] = certified("a", leaves="SIGTERM")
    record = decide_certify(words)
    assert (record.go, record.rank, record.reason) == ("end", rank, "SIGTERM")
