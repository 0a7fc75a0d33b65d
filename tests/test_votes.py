# SPDX-License-Identifier: Apache-2.0
"""Words that are none of their step are refused: with rank, field and rule, or both versions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_decide import hello, opened
from tests.test_fuzz import anything, fuzzed
from warmup_plugin import __version__
from warmup_plugin.coordination import votes
from warmup_plugin.coordination.votes import FIRST, VERSION, VoteError, checked, fault_of

Word = dict[str, Any]

READY = {"failed": {}, "refused": [], "error": ""}
FAULTS: dict[str, tuple[str, Word, str]] = {
    "no margin": (
        "open", {n: v for n, v in hello().items() if n != "margin"},
        "its vote at step open has no 'margin': every vote there has",
    ),
    "an older version": (
        "open", {**hello(), VERSION: "0.0.9"},
        f"its warmup-plugin is 0.0.9, another rank's {__version__}: must be the same",
    ),
    "a version that did not say so": (
        "open", {n: v for n, v in hello().items() if n != VERSION},
        f"does not say which it is, another rank's {__version__}: must be the same",
    ),
    "a field too many": (
        "ready", {**READY, "mood": 1},
        "its vote at step ready has a field 'mood': must be one of error, failed, refused",
    ),
    "another type": (
        "ready", {**READY, "failed": ["a"]},
        "its vote at step ready has 'failed' = ['a']: must be dict",
    ),
    "a truth for a number": (
        "open", {**hello(), "margin": True},
        "its vote at step open has 'margin' = True: must be int or float",
    ),
    "a second survey": ("survey1", {}, "its vote at step survey1 has no 'asked'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_word_that_is_none_of_its_step(name: str) -> None:
    step, word, reason = FAULTS[name]
    sound = hello() if step == FIRST else READY
    with pytest.raises(VoteError) as caught:
        checked(step, lambda _words: {"go": "on"})({0: sound, 1: word})
    assert reason in caught.value.reason
    assert caught.value.rank == (1 if step in (FIRST, "ready") else 0)


def test_sound_words_decide() -> None:
    assert checked("ready", lambda words: {"go": len(words)})({0: READY, 1: READY}) == {"go": 2}
    assert fault_of(FIRST, hello()) == ""


def test_the_first_record_says_of_which_version_it_is() -> None:
    """By it the other ranks know rank 0."""
    assert votes.other_version(FIRST, opened({}, {})) == ""
    assert "must be the same" in votes.other_version(FIRST, {"go": "share"})
    assert votes.other_version("agree", {"go": "one"}) == ""


@fuzzed
@given(step=st.sampled_from(sorted(votes._FIELDS)), word=st.dictionaries(st.text(), anything))
def test_whatever_comes_is_an_answer(step: str, word: Word) -> None:
    """No word of whatever form raises, or is told of at length."""
    reason = fault_of(step, word)
    assert len(reason) < 500
    assert bool(reason) == (step not in ("built", "unguarded") or bool(word))


@fuzzed
@given(name=st.sampled_from(sorted(votes._FIELDS[FIRST])), value=anything)
def test_a_field_of_another_type_is_named(name: str, value: Any) -> None:
    reason = fault_of(FIRST, {**hello(), name: value})
    assert reason == "" or name in reason or name == VERSION
