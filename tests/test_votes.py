# SPDX-License-Identifier: Apache-2.0
"""Votes that are none of their round are refused: with rank, field and rule, or both versions."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_decide import certified, hello, opened, ready, surveyed, table
from tests.test_fuzz import anything, fuzzed
from warmup_plugin.coordination import decisions, messages
from warmup_plugin.coordination.decisions import (
    AGREE,
    CERTIFY,
    LOAD,
    MERGE,
    OPEN,
    PLAN,
    READY,
    SHARE,
    SURVEY,
    UNGUARDED,
    ReadyDecision,
)
from warmup_plugin.coordination.messages import Head, read_decision, read_vote, said
from warmup_plugin.coordination.rounds import Round, Vote, VoteError
from warmup_plugin.coordination.versions import BUILD
from warmup_plugin.coordination.votes import (
    EmptyVote,
    LoadVote,
    MergeVote,
    PlanVote,
    RankRow,
    ShareVote,
)
from warmup_plugin.errors import RankLostError

Fields = dict[str, Any]
ROUNDS = [found for found in vars(decisions).values() if isinstance(found, Round)]
SOUND: dict[str, tuple[Round[Any, Any], Vote]] = {
    "open": (OPEN, hello()), "agree": (AGREE, table("T", deaths={"t": ("op @ 1", ["a"])})),
    "survey0": (SURVEY.again(0), surveyed(sealed=certified())), "ready": (READY, ready()),
    "unguarded": (UNGUARDED, EmptyVote()), "certify": (CERTIFY, certified()),
    "merge": (MERGE, MergeVote("T", "M", [], complete=True, trusted=True, vouched=True,
                               warnings=["w"])),
    "load": (LOAD, LoadVote(error="", shares_disk=False)),
    "plan": (PLAN, PlanVote(inventory=["i"])),
    "share": (SHARE, ShareVote(results="r", error="")),
}  # fmt: skip


def fields_of(vote: Vote, **changes: Any) -> Fields:
    return {**json.loads(said("", vote)), **changes}


def body(fields: Fields, step: str) -> bytes:
    return json.dumps({**fields, "step": step}).encode()


@pytest.mark.parametrize("step", SOUND)
def test_a_vote_arrives_as_it_was_handed_in(step: str) -> None:
    held, vote = SOUND[step]
    assert held.name == step
    found = read_vote(held, said(step, vote).encode(), 1)
    assert found == msgspec.structs.replace(vote, step=step)


def without(name: str) -> Fields:
    return {n: v for n, v in fields_of(hello()).items() if n != name}


FAULTS: dict[str, tuple[Round[Any, Any], Fields, str]] = {
    "no margin": (
        OPEN, without("margin"),
        f"its vote at step open has no 'margin': each of version {BUILD} has",
    ),
    "an older version": (
        OPEN, {**without("margin"), "plugin": "0.0.9"},
        f"its warmup-plugin is 0.0.9, another rank's {BUILD}: must be the same: install",
    ),
    "another build of one version": (
        OPEN, {**fields_of(hello()), "plugin": BUILD.partition(" ")[0]},
        f"another rank's {BUILD}: must be the same: install one version on all ranks",
    ),
    "a version that did not say so": (
        OPEN, without("plugin"),
        f"its warmup-plugin is older than {BUILD}, which is another rank's: must be",
    ),
    "factors without a stamp": (
        OPEN, fields_of(hello(), factors={}), "its vote at step open cannot be read: factors: must",
    ),
    "a place without a node": (
        OPEN, fields_of(hello(), ranks={"rank": 0, "world_size": 1}),
        "{'rank': 0, 'world_size': 1}: object missing required field `node`",
    ),
    "a field too many": (
        READY, fields_of(ready(), mood=1),
        "its vote at step ready has a field 'mood': must be one of error, failed, refused",
    ),
    "another type": (
        READY, fields_of(ready(), failed=["a"]),
        "its vote at step ready has 'failed' = ['a']: expected `object`, got `array`",
    ),
    "another type, further down": (
        READY, fields_of(ready(), failed={"a": 1}),
        "its vote at step ready has 'failed' = {'a': 1}: expected `str`, got `int` at $[...]",
    ),
    "a truth for a number": (
        OPEN, fields_of(hello(), margin=True),
        "its vote at step open has 'margin' = True: expected `float`, got `bool`",
    ),
    "a mode that there is not": (
        OPEN, fields_of(hello(), mode="fast"),
        "its vote at step open has 'mode' = 'fast': invalid enum value 'fast'",
    ),
    "a second survey": (SURVEY.again(1), {}, "its vote at step survey1 has no 'asked'"),
    "a field too many for none": (
        UNGUARDED, {"go": 1}, "its vote at step unguarded has a field 'go': must be one of none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_vote_that_is_none_of_its_round(name: str) -> None:
    held, fields, reason = FAULTS[name]
    with pytest.raises(VoteError) as caught:
        read_vote(held, body(fields, held.name), 3)
    assert reason in caught.value.reason
    assert caught.value.rank == 3


@pytest.mark.parametrize("step", SOUND)
def test_each_field_that_is_missing_is_named(step: str) -> None:
    """No field of a vote has a value that is taken where it is not there."""
    held, vote = SOUND[step]
    fields = fields_of(vote)
    for name in fields.keys() - {"step", "plugin"}:
        fewer = {n: v for n, v in fields.items() if n != name}
        with pytest.raises(VoteError) as caught:
            read_vote(held, body(fewer, step), 2)
        assert f"its vote at step {step} has no '{name}'" in caught.value.reason


def test_every_vote_is_tried_here() -> None:
    assert {held.vote for held in ROUNDS} == {held.vote for held, _ in SOUND.values()}


@pytest.mark.parametrize(
    ("step", "field", "inner"),
    [("open", "ranks", ["rank", "world_size", "node"]),
     ("certify", "row", [f.name for f in msgspec.structs.fields(RankRow)])],
)  # fmt: skip
def test_each_field_that_is_missing_further_down_is_named(
    step: str, field: str, inner: list[str]
) -> None:
    held, vote = SOUND[step]
    fields = fields_of(vote)
    for name in inner:
        fewer = {n: v for n, v in fields[field].items() if n != name}
        with pytest.raises(VoteError) as caught:
            read_vote(held, body({**fields, field: fewer}, step), 2)
        assert f"its vote at step {step} has '{field}'" in caught.value.reason
        assert f"missing required field `{name}`" in caught.value.reason


def test_what_is_no_object_is_the_fault_of_a_rank_that_is_lost() -> None:
    for said_ in (b"", b"[1]", b"{", b'{"step": "ready", "fa'):
        with pytest.raises(RankLostError, match="vote at step ready cannot be read") as caught:
            read_vote(READY, said_, 2)
        assert caught.value.rank == 2


def test_the_first_decision_says_of_which_version_it_is() -> None:
    """By it the other ranks know rank 0, before they read more of it."""
    record = said("open", opened({}, {})).encode()
    head = messages.read(Head, record, 0, "record")
    assert read_decision(OPEN, record, head).go == "share"
    other = json.dumps({"go": "share", "step": "open"}).encode()
    with pytest.raises(VoteError, match="must be the same"):
        read_decision(OPEN, other, messages.read(Head, other, 0, "record"))


def test_a_decision_of_other_fields_is_told() -> None:
    decision = ReadyDecision(go="serve", drop={}, refused=[])
    fields = {**json.loads(said("ready", decision))}
    del fields["drop"]
    record = json.dumps(fields).encode()
    with pytest.raises(VoteError) as caught:
        read_decision(READY, record, messages.read(Head, record, 0, "record"))
    assert "its record of step ready has no 'drop'" in caught.value.reason


def told(held: Round[Any, Any], fields: Fields) -> Vote | VoteError | RankLostError:
    """Return the vote in some JSON, or what is raised about it: the latter where it is none."""
    try:
        found: Vote = read_vote(held, messages.text({**fields, "step": held.name}).encode(), 1)
    except (VoteError, RankLostError) as error:
        return error
    return found


@fuzzed
@given(held=st.sampled_from(ROUNDS), fields=st.dictionaries(st.text(), anything))
def test_whatever_comes_is_an_answer(held: Round[Any, Any], fields: Fields) -> None:
    """No vote of whatever form raises another error, or is told of at length."""
    found = told(held, fields)
    if isinstance(found, Vote):
        assert isinstance(found, EmptyVote)
        assert fields.keys() <= {"step"}
    else:
        assert len(found.reason) < 500


@fuzzed
@given(name=st.sampled_from(sorted(fields_of(hello()).keys() - {"step"})), value=anything)
def test_a_field_of_another_type_is_named(name: str, value: Any) -> None:
    found = told(OPEN, {**fields_of(hello()), name: value})
    if isinstance(found, VoteError):
        assert name in found.reason or name == "plugin"
    elif isinstance(found, RankLostError):
        assert "JSON" in found.reason
