# SPDX-License-Identifier: Apache-2.0
"""What other ranks say, as values: parsed with limits and by a schema, never trusted.

Owns the schemas of words, records, heartbeats and process cards. What cannot be read is the fault
of the rank that wrote it: `RankLostError` naming it, which all ranks then raise alike. Nothing is
ever unpickled. Bodies (tables, plans) are checked against their sha256, and parsed where used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.safe_json import Miss, decode

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
    mates: dict[str, str]


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


#: Half a character, by which Python stands for a byte that is none; JSON's readers refuse it.
_HIGH, _LOW = r"\\ud[89ab][0-9a-f]{2}", r"\\ud[c-f][0-9a-f]{2}"
_NO_TEXT: Final = re.compile(f"(?<!{_HIGH}){_LOW}|{_HIGH}(?!{_LOW})")
_WORD: Final = msgspec.json.Decoder(dict[str, Any])


def text(message: Mapping[str, Any]) -> str:
    """Return a message as JSON; bytes of a path that are no text are replaced in it."""
    return _NO_TEXT.sub(r"\\ufffd", json.dumps(message, sort_keys=True))


def word(body: bytes, rank: int, what: str) -> dict[str, Any]:
    """Return a word or a record that a rank wrote. Raises `RankLostError` of that rank."""
    found: dict[str, Any] = _read(_WORD, body, rank, what)
    return found


def read(kind: type[Any], body: bytes, rank: int, what: str) -> dict[str, Any]:
    """Return a message of one of the kinds above, as a dictionary of its fields.

    Raises `RankLostError` of the rank that wrote it.
    """
    found = _read(msgspec.json.Decoder(kind), body, rank, what)
    return msgspec.structs.asdict(found)


def _read(decoder: msgspec.json.Decoder[Any], body: bytes, rank: int, what: str) -> Any:
    if len(body) > MOST_WORD_BYTES:
        raise RankLostError(rank, f"its {what} has {len(body)} bytes, {MOST_WORD_BYTES} at most")
    found = decode(decoder, body)
    if isinstance(found, Miss):
        raise RankLostError(rank, f"its {what} cannot be read: {found.reason}")
    return found


#: The step of a heartbeat whose rank is in the forward; back from it, it says "survey0".
FORWARD = "survey"


#: Keys of the store: a rank's forward has failed; a rank has left.
FAILED, BYE = "failed", "bye"
#: The session is over: the record by which all hear of that.
LOST = "lost"
