# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's table of winners as a value: parse, check, render, digest.

Owns the document that FlashInfer's `save_configs` writes and `load_configs` reads: `_metadata` (the
stamp of the environment), `_records`, and one `[runner, tactic]` or `[runner, tactic, policy]` per
key. What a release writes after the policy is not looked at and stays with its entry. Refuses
everything else, stricter than FlashInfer, which would raise in mid-start. Bytes come from anywhere,
so `parse_table` never raises: what is wrong is a `Miss` with the key and the rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from warmup_plugin.cache.stamps import INDETERMINATE
from warmup_plugin.runtime.safe_json import (
    MAX_DEPTH,
    TOO_DEEP,
    Miss,
    decode,
    is_deeper,
    json_document,
    json_line,
    unreadable,
)

WILDCARD: Final = "*"

STAMP: Final = "_metadata"
_RECORDS: Final = "_records"
_GENERATION: Final = "_generation"  # FlashInfer's own, of its own writers; not ours

if TYPE_CHECKING:
    Tactic: TypeAlias = "int | str | float | bool | tuple[Tactic, ...] | None"
    Policy: TypeAlias = tuple[Tactic, ...] | None
else:
    # To the decoder the alias is unrolled: it cannot express recursion, and like this it builds the
    # tuples and enforces the depth itself. `null` is no policy: FlashInfer iterates over it.
    Tactic = int | str | float | bool | None
    for _ in range(MAX_DEPTH):
        Tactic = int | str | float | bool | None | tuple[Tactic, ...]
    Policy = tuple[Tactic, ...]


class Entry(NamedTuple):
    """One winner: runner class, tactic, and how it was measured, where that is known.

    ``more``: the JSON of what follows these in FlashInfer's list (0.7.4: how the winner was
    chosen), which no lookup reads and which goes wherever the entry goes; only where there is a
    policy.
    """

    runner: str
    tactic: Tactic
    policy: Policy = None
    more: str = ""

    @property
    def winner(self) -> tuple[str, Tactic, Policy]:
        """What serves, and under which measurement: two entries alike in it are one answer."""
        return self[:3]


class Table(msgspec.Struct, frozen=True):
    """A stamp and the winners found under it, by FlashInfer's file key."""

    stamp: Mapping[str, str]
    entries: Mapping[str, Entry]
    records: Mapping[str, Any] = msgspec.field(default_factory=dict)


class _Saved(NamedTuple):
    """An entry as FlashInfer saves it; from 0.7.4 on with a fourth element."""

    runner: str
    tactic: Tactic
    policy: Policy = None
    more: msgspec.Raw = msgspec.Raw()


_Member: TypeAlias = Entry | dict[str, Any] | str
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ANYTHING: Final = msgspec.json.Decoder(Any)


@functools.cache
def _of_member() -> msgspec.json.Decoder[_Saved | dict[str, Any] | str]:
    # Two milliseconds, for all depths of a tactic: not for a start that reads no entry.
    return msgspec.json.Decoder(_Saved | dict[str, Any] | str)


def parse_table(data: bytes, *, limit: int) -> Table | Miss:
    """Read a table of at most `limit` bytes. Never raises."""
    if len(data) > limit:
        return Miss(f"{len(data)} bytes, more than the {limit} allowed", "too_large")
    document = _decode_members(data)
    if isinstance(document, Miss):
        return document
    stamp, records = document.pop(STAMP, None), document.pop(_RECORDS, {})
    document.pop(_GENERATION, None)
    for key, entry in document.items():
        if type(entry) is not Entry or key[:1] == "_":
            return unreadable(key, "an entry [runner, tactic] or [runner, tactic, policy]")
    if not isinstance(records, dict) or is_deeper(records, MAX_DEPTH):
        return unreadable(_RECORDS, f"an object nested at most {MAX_DEPTH} deep")
    known = _read_stamp(stamp)
    return known if isinstance(known, Miss) else Table(known, document, records)


def _decode_members(data: bytes) -> dict[str, Any] | Miss:
    """Decode member by member: of ten thousand entries few differ, and equal ones are one object.

    A fault is told with its key; the decoder by itself would name a position.
    """
    members = decode(_MEMBERS, data)
    if isinstance(members, Miss):
        return members
    known = _Known()
    document: dict[str, Any] = {key: known[bytes(raw)] for key, raw in members.items()}
    for key, member in document.items() if known.has_miss else ():
        if isinstance(member, Miss):
            return Miss(f"{key}: {member.reason}", member.kind)
    return document


class _Known(dict[bytes, "_Member | Miss"]):
    """Members decoded so far, by their bytes; ``has_miss`` once one of them could not be."""

    has_miss = False

    def __missing__(self, value: bytes) -> _Member | Miss:
        member = _member(value)
        self.has_miss |= isinstance(member, Miss)
        self[value] = member
        return member


def parse_entry(value: bytes) -> Entry | Miss:
    """Read one entry, a list of a runner, a tactic and what may follow. Never raises."""
    member = _member(value)
    return member if isinstance(member, (Entry, Miss)) else Miss("no entry", "unreadable")


def _member(value: bytes) -> _Member | Miss:
    saved = decode(_OBJECT if value.startswith(b"{") else _of_member(), value)
    if isinstance(saved, Miss):
        return _long_entry(value, saved)
    if type(saved) is not _Saved:
        known: _Member = saved
        return known
    more = bytes(saved.more)
    return _with_more(saved, [more]) if more else Entry(*saved[:3])


def _long_entry(value: bytes, refused: Miss) -> Entry | Miss:
    """Return an entry with more elements than any known release writes; else why it is refused."""
    elements = decode(_ELEMENTS, value)
    if isinstance(elements, Miss) or len(elements) <= len(_Saved._fields):
        return refused
    parts = [bytes(element) for element in elements]
    saved = decode(_of_member(), b"[" + b",".join(parts[:3]) + b"]")
    return _with_more(saved, parts[3:]) if type(saved) is _Saved else refused


def _with_more(saved: _Saved, more: list[bytes]) -> Entry | Miss:
    """Return the entry with what follows, in the one form that JSON without blanks has."""
    texts = []
    for element in more:
        found = decode(_ANYTHING, element)
        if isinstance(found, Miss):
            return found
        if is_deeper(found, MAX_DEPTH):
            return TOO_DEEP
        texts.append(msgspec.json.format(element, indent=-1).decode())
    return Entry(*saved[:3], ",".join(texts))


def _read_stamp(stamp: object) -> Mapping[str, str] | Miss:
    if stamp is None or stamp == {}:
        return Miss("no stamp: the environment it was tuned in is not known", "foreign")
    if not isinstance(stamp, dict):
        return unreadable(STAMP, "an object of strings")
    for name, value in stamp.items():
        if value == WILDCARD:
            return Miss(f'{STAMP}.{name} is "*": made to be accepted anywhere', "foreign")
        if value is not None and not isinstance(value, str):
            return unreadable(f"{STAMP}.{name}", "a string")
    if all(value in INDETERMINATE for value in stamp.values()):
        return Miss("no stamp: every field of it is unknown", "foreign")
    return {name: value for name, value in stamp.items() if value is not None}


def render_table(table: Table) -> bytes:
    """Return the document: equal tables give equal bytes, one line per entry."""
    lines = [json_line(STAMP, table.stamp)]
    if table.records:
        lines.append(json_line(_RECORDS, table.records))
    lines += [_entry_line(key, table.entries[key]) for key in sorted(table.entries)]
    return json_document(lines)


def _entry_line(key: str, entry: Entry) -> bytes:
    if entry.policy is None:
        return json_line(key, entry[:2])
    line = json_line(key, entry.winner)
    return line[:-1] + b"," + entry.more.encode() + b"]" if entry.more else line


def canonical_tactic(tactic: Any) -> Tactic:
    """Return a runner's tactic as plain Python, as it comes back from a table.

    Sequences become tuples, also foreign ones (TVM's arrays), and NumPy's numbers become Python's.

    Raises:
        TypeError: a table cannot hold it.
        ValueError: a number that is not finite, or an endless nesting.
    """
    return _canonical(tactic, MAX_DEPTH)


def _canonical(value: Any, depth: int) -> Tactic:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a tactic holds {value}, which JSON cannot")
        return float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a NumPy or torch scalar
        return _canonical(value.item(), depth)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping, set, frozenset)):
        if depth == 0:
            raise ValueError(f"a tactic is nested more than {MAX_DEPTH} deep")
        return tuple(_canonical(item, depth - 1) for item in value)
    raise TypeError(f"a tactic holds {value!r}, which a table cannot")
