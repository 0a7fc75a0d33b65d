# SPDX-License-Identifier: Apache-2.0
"""Whether what a rank hands in at a step can be a word of that step: version and fields. Pure.

Owns the list of what each step's word must hold, and what is said of one that does not: rank, field
and rule, or both versions, since another version of this package is the likeliest cause. Such a
rank lives: all ranks go on without this package (`fallback.py`). That a word is of this step and of
no other is the meeting's to see; whether its values make sense, of those who read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from warmup_plugin import __version__
from warmup_plugin.coordination.base import Decide, Word, Words

#: The first step, and the field of its words and its record that says of which version they are.
FIRST: Final = "open"
VERSION: Final = "plugin"
#: Of each step's word, its fields and their types. ``survey`` stands for ``survey0``, ``survey1``.
_FIELDS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    FIRST: {
        VERSION: (str,), "host": (str,), "ranks": (dict,), "tuning": (bool,),
        "version": (str,), "lack": (str,),
        "keys_tell_options_apart": (bool,), "factors": (dict,), "alike": (bool,), "takes": (list,),
        "must_share": (bool,), "require_agreement": (bool,), "session": (str,), "mode": (str,),
        "strategy": (str,), "on_hit": (str,), "budget_s": (int, float, type(None)),
        "margin": (int, float),
    },
    "unguarded": {},
    "agree": {
        "table": (str,), "manifest": (str,), "defaults": (list,), "complete": (bool,),
        "trusted": (bool,), "vouched": (bool,), "warnings": (list,), "mark": (str,),
        "deaths": (dict,),
    },
    "merge": {
        "table": (str,), "manifest": (str,), "defaults": (list,), "complete": (bool,),
        "trusted": (bool,), "vouched": (bool,), "warnings": (list,),
    },
    "load": {"error": (str,), "shares_disk": (bool,)},
    "survey": {
        "error": (str,), "last_answered": (str,), "stage": (int,), "unrecorded": (dict,),
        "missing": (int,), "stored": (bool,), "unshared": (int,),
        "skipped": (list,), "ops": (list,), "asked": (int,), "heal": (bool,),
        "sealed": (dict, type(None)),
    },
    "plan": {"inventory": (list,)},
    "share": {"results": (str,), "error": (str,)},
    "ready": {"failed": (dict,), "refused": (list,), "error": (str,)},
    "built": {},
    "certify": {
        "served": (str,), "deviates": (list,), "published": (list,), "row": (dict,),
        "apart": (dict,), "leaves": (str,),
    },
}  # fmt: skip


class VoteError(Exception):
    """A rank that lives has handed in a word that is not one of this step."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason


def checked(step: str, decide: Decide) -> Decide:
    """Return a decision that looks at the words first; it raises `VoteError` for a bad one."""

    def decide_checked(words: Words) -> Word:
        for rank in sorted(words):
            if reason := fault_of(step, words[rank]):
                raise VoteError(rank, reason)
        return decide(words)

    return decide_checked


def fault_of(step: str, word: Word) -> str:
    """Return what is wrong with a word, or an empty string."""
    if reason := other_version(step, word):
        return reason
    fields = _FIELDS[step.rstrip("0123456789")]
    if absent := sorted(fields.keys() - word.keys()):
        return f"its vote at step {step} has no {absent[0]!r}: every vote there has"
    if strange := sorted(word.keys() - fields.keys()):
        known = ", ".join(sorted(fields)) or "none"
        return f"its vote at step {step} has a field {strange[0]!r:.80}: must be one of {known}"
    for name, types in fields.items():
        value = word[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            rule = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            return f"its vote at step {step} has {name!r} = {value!r:.80}: must be {rule}"
    return ""


def other_version(step: str, word: Word) -> str:
    """Return that a word or record of the first step is of another version than this rank's."""
    if step != FIRST or word.get(VERSION) == __version__:
        return ""
    theirs = word.get(VERSION, "of a version that does not say which it is")
    return f"its warmup-plugin is {theirs!s:.60}, another rank's {__version__}: must be the same"
