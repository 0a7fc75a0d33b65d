# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's table of winners as a value: parse, check, render, digest.

Owns the document that FlashInfer's `save_configs` writes and `load_configs` reads: `_metadata` (the
stamp of the environment), `_records`, and one `[runner, tactic]` or `[runner, tactic, policy]` per
key. What a release writes after the policy is not looked at and stays with its entry. Refuses
everything else, stricter than FlashInfer, which would raise in mid-start. Bytes come from anywhere,
so `parse_table` never raises: what is wrong is a `Miss` with the key and the rule.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from warmup_plugin.cache.stamps import INDETERMINATE
from warmup_plugin.runtime.gc_pause import collector_paused

MAX_DEPTH: Final = 32
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

MissKind = Literal["absent", "denied", "foreign", "newer", "stale", "too_large", "unreadable"]


@dataclass(frozen=True)
class Miss:
    """Why there is nothing to use.

    `absent`: no such file; `denied`: the system refuses; `too_large`: above the limit, not read;
    `unreadable`: not what the format says; `foreign`: of another environment; `newer`: written by
    a later version of this package; `stale`: a manifest of other bytes than its table's.
    """

    reason: str
    kind: MissKind


class Entry(NamedTuple):
    """One winner: runner class, tactic, and how it was measured, where that is known.

    ``more``: the JSON of what follows these in FlashInfer's list (0.7.4: how the winner was
    chosen), which serves nobody and goes wherever the entry goes; only where there is a policy.
    """

    runner: str
    tactic: Tactic
    policy: Policy = None
    more: str = ""

    @property
    def winner(self) -> tuple[str, Tactic, Policy]:
        """What serves, and under which measurement: two entries alike in it are one answer."""
        return self[:3]


@dataclass(frozen=True)
class Table:
    """A stamp and the winners found under it, by FlashInfer's file key."""

    stamp: Mapping[str, str]
    entries: Mapping[str, Entry]
    records: Mapping[str, Any] = field(default_factory=dict)


class _Saved(NamedTuple):
    """An entry as FlashInfer saves it; from 0.7.4 on with a fourth element."""

    runner: str
    tactic: Tactic
    policy: Policy = None
    more: msgspec.Raw = msgspec.Raw()


_Member: TypeAlias = Entry | dict[str, Any] | str
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MEMBER: Final = msgspec.json.Decoder(_Saved | dict[str, Any] | str)
_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ANYTHING: Final = msgspec.json.Decoder(Any)
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def digest(data: bytes) -> str:
    """Return the sha256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


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
            return _unreadable(key, "an entry [runner, tactic] or [runner, tactic, policy]")
    if not isinstance(records, dict) or _is_deeper(records, MAX_DEPTH):
        return _unreadable(_RECORDS, f"an object nested at most {MAX_DEPTH} deep")
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
    saved = decode(_MEMBER, value)
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
    saved = decode(_MEMBER, b"[" + b",".join(parts[:3]) + b"]")
    return _with_more(saved, parts[3:]) if type(saved) is _Saved else refused


def _with_more(saved: _Saved, more: list[bytes]) -> Entry | Miss:
    """Return the entry with what follows, in the one form that JSON without blanks has."""
    texts = []
    for element in more:
        found = decode(_ANYTHING, element)
        if isinstance(found, Miss):
            return found
        if _is_deeper(found, MAX_DEPTH):
            return _TOO_DEEP
        texts.append(msgspec.json.format(element, indent=-1).decode())
    return Entry(*saved[:3], ",".join(texts))


def decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    """Decode JSON that somebody else wrote; what is wrong with it is a `Miss`."""
    # The decoder recurses in C as far as Python's own limit says. Where a host has raised that, a
    # file full of brackets would overrun the stack, which no `except` catches.
    if sys.getrecursionlimit() > _SAFE_RECURSION and _has_deep_brackets(data):
        return _TOO_DEEP
    try:
        with collector_paused():
            return decoder.decode(data)
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Miss(str(error), "unreadable")


_TOO_DEEP: Final = Miss(f"nested more than {MAX_DEPTH} deep", "unreadable")
_SAFE_RECURSION: Final = 5_000
_STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.?+[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _has_deep_brackets(data: bytes) -> bool:
    """Return whether JSON nests too deeply, by taking away the innermost brackets again and again.

    Also true of brackets that never close, which is no loss: such JSON is malformed.
    """
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH + 2):  # the document and the entry stand around what is measured
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _is_deeper(value: object, limit: int) -> bool:
    below = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)):
        return False
    return limit == 0 or any(_is_deeper(item, limit - 1) for item in below)  # type: ignore[attr-defined]


def _unreadable(key: str, rule: str) -> Miss:
    return Miss(f"{key}: must be {rule}", "unreadable")


def _read_stamp(stamp: object) -> Mapping[str, str] | Miss:
    if stamp is None or stamp == {}:
        return Miss("no stamp: the environment it was tuned in is not known", "foreign")
    if not isinstance(stamp, dict):
        return _unreadable(STAMP, "an object of strings")
    for name, value in stamp.items():
        if value == WILDCARD:
            return Miss(f'{STAMP}.{name} is "*": made to be accepted anywhere', "foreign")
        if value is not None and not isinstance(value, str):
            return _unreadable(f"{STAMP}.{name}", "a string")
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


def json_line(name: str, value: object) -> bytes:
    """Return one member of a JSON object, its mappings sorted."""
    return _ENCODER.encode(name) + b": " + _ENCODER.encode(value)


def json_document(lines: Iterable[bytes]) -> bytes:
    r"""Return a JSON object, one line per member, other letters than ASCII as `\u…`.

    FlashInfer opens its files in the locale's encoding, which need not be UTF-8.
    """
    data = b"{\n" + b",\n".join(lines) + b"\n}\n"
    if data.isascii():
        return data
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in data.decode()).encode()


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
