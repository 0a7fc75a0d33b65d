# SPDX-License-Identifier: Apache-2.0
"""What other ranks say, as values: parsed with limits and by a schema, never trusted.

Owns how votes and decisions are read, and the schemas of heartbeats, process cards and the end of a
session. What is no JSON is the fault of the rank that wrote it: `RankLostError` naming it, which
all ranks then raise alike. What is, and is no vote of the round in question, is a `VoteError` with
rank, field and rule, or with both versions, as another version of this package is the likeliest
cause: such a rank lives, and all ranks go on without this package (`fallback.py`). Nothing is ever
unpickled. Bodies (tables, plans) are checked against their sha256, and parsed where used.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from warmup_plugin.coordination.rounds import D, Round, V, VoteError
from warmup_plugin.coordination.versions import BUILD, other_version
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import View
from warmup_plugin.runtime.safe_json import Miss, decode

T = TypeVar("T", bound=msgspec.Struct)

#: torch's store drops the connection at a value of 8 MiB. Words are far smaller; bodies that are
#: not cross in parts, small enough for one to be read while the next is written.
MOST_WORD_BYTES: Final = 4 * 2**20
PART_BYTES: Final = 2**19
MOST_BODY_BYTES: Final = 512 * 2**20


class Beat(msgspec.Struct):
    """A heartbeat: how often it beat, and what its rank is at."""

    beats: int
    step: str
    task: str
    notes: int
    idle: bool
    mates: dict[str, View]


class Card(msgspec.Struct):
    """Whose process a rank is, the name of its machine, its end of its connection to the store."""

    pid: int
    started: int
    place: str
    host: str = ""
    end: str = ""


class Lost(msgspec.Struct):
    """That a rank is given up, or ``lives`` and cannot go on: that ends the session too."""

    lost: int
    reason: str
    lives: bool = False


class Failed(msgspec.Struct):
    """That a rank's forward has failed."""

    rank: int
    reason: str


class Head(msgspec.Struct):
    """The fields that are read first, of a vote or a decision of any version of this package.

    ``step``: of which round; ``plugin``: the version, in the first round; ``lost``: a rank, where
    the session is over.
    """

    step: Any = None
    plugin: Any = None
    lost: Any = None


#: Half a character, by which Python stands for a byte that is none; JSON's readers refuse it.
_HIGH, _LOW = r"\\ud[89ab][0-9a-f]{2}", r"\\ud[c-f][0-9a-f]{2}"
_NO_TEXT: Final = re.compile(f"(?<!{_HIGH}){_LOW}|{_HIGH}(?!{_LOW})")
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
#: The field of a message that names its round.
_STEP: Final = "step"


def text(message: Mapping[str, Any]) -> str:
    """Return a message as JSON; bytes of a path that are no text are replaced in it."""
    return _NO_TEXT.sub(r"\\ufffd", json.dumps(message, sort_keys=True))


def said(step: str, message: msgspec.Struct) -> str:
    """Return a vote, or what ends the session, as it crosses ranks at a round of that name."""
    return text({**msgspec.to_builtins(message), _STEP: step})


def read_vote(held: Round[V, D], body: bytes, rank: int) -> V:
    """Return a rank's vote.

    Raises `RankLostError` of that rank for what is no JSON object, `VoteError` for what is no vote
    of this round or of another version of this package.
    """
    what = f"vote at step {held.name}"
    _refuse_other(held, read(Head, body, rank, what), rank, f"{what} is one")
    return _typed(held.vote, body, rank, what)


def read_decision(held: Round[V, D], body: bytes, head: Head) -> D:
    """Return the decision of a round. Raises `VoteError` of rank 0, as for votes."""
    what = f"record of step {held.name}"
    _refuse_other(held, head, 0, f"{what} is")
    return _typed(held.decision, body, 0, what)


def prepare_reader(held: Round[V, D]) -> None:
    """Make the decoders of a round's votes and of its decision, which takes a millisecond."""
    _decoder(held.vote)
    _decoder(held.decision)


def _refuse_other(held: Round[Any, Any], head: Head, rank: int, it_is: str) -> None:
    """Raise `VoteError` for a message of another round or of another version of this package."""
    if head.step not in (None, held.name):
        raise VoteError(rank, f"its {it_is} of step {head.step!r:.80}")
    if held.opens and (reason := other_version(head.plugin)):
        raise VoteError(rank, reason)


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _typed(kind: type[T], body: bytes, rank: int, what: str) -> T:
    found: T | Miss = decode(_decoder(kind), body)
    if isinstance(found, Miss):
        fields = decode(_OBJECT, body)
        if isinstance(fields, Miss):
            raise RankLostError(rank, f"its {what} cannot be read: {fields.reason}")
        fault = _fault(kind, fields) or f"cannot be read: {found.reason}"
        raise VoteError(rank, f"its {what} {fault}"[:400])
    return found


def _fault(kind: type[Any], found: Mapping[str, Any]) -> str:
    """Return which field of a message is missing, strange or of another type."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(kind) if f.encode_name != _STEP}
    absent = [name for name, f in fields.items() if f.required and name not in found]
    if absent:
        return f"has no {min(absent)!r}: each of version {BUILD} has"
    if strange := sorted(found.keys() - fields.keys() - {_STEP}):
        known = ", ".join(sorted(fields)) or "none"
        return f"has a field {strange[0]!r:.80}: must be one of {known}"
    for name, value in found.items():
        try:
            msgspec.convert(value, fields[name].type if name != _STEP else str)
        except msgspec.ValidationError as error:
            rule = str(error).partition(" - at ")
            at = f" at {rule[2][1:-1]}" if rule[1] else ""
            return f"has {name!r} = {value!r:.80}: {rule[0][:1].lower()}{rule[0][1:]}{at}"
    return ""


def read(kind: type[T], body: bytes, rank: int, what: str) -> T:
    """Return a message of one of the kinds above. Raises `RankLostError` of who wrote it."""
    if len(body) > MOST_WORD_BYTES:
        raise RankLostError(rank, f"its {what} has {len(body)} bytes, {MOST_WORD_BYTES} at most")
    found: T | Miss = decode(_decoder(kind), body)
    if isinstance(found, Miss):
        raise RankLostError(rank, f"its {what} cannot be read: {found.reason}")
    return found


#: The step of a heartbeat whose rank is in the forward; back from it, it says "survey0".
FORWARD = "survey"


#: Keys of the store: a rank's forward has failed; a rank has left.
FAILED, BYE = "failed", "bye"
#: The session is over: the record by which all hear of that.
LOST = "lost"
