# SPDX-License-Identifier: Apache-2.0
"""JSON of others, read without harm: size of numbers, depth, and why a document was not used. Pure.

Owns what any document of ours must hold before its fields are looked at, the digest of its bytes,
and how ours are written. `Miss` says why a document, or what it stands for, cannot be used.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from warmup_plugin.runtime.gc_pause import collector_paused

MAX_DEPTH: Final = 32


MissKind = Literal["absent", "denied", "foreign", "newer", "stale", "too_large", "unreadable"]


class Miss(msgspec.Struct, frozen=True):
    """Why there is nothing to use.

    `absent`: no such file; `denied`: the system refuses; `too_large`: above the limit, not read;
    `unreadable`: not what the format says; `foreign`: of another environment; `newer`: written by
    a later version of this package; `stale`: a manifest of other bytes than its table's.
    """

    reason: str
    kind: MissKind


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def digest(data: bytes) -> str:
    """Return the sha256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    """Decode JSON that another program wrote; what is wrong with it is a `Miss`."""
    # The decoder recurses in C as far as Python's own limit says. Where a host has raised that, a
    # file full of brackets would overrun the stack, which no `except` catches.
    if sys.getrecursionlimit() > _SAFE_RECURSION and _has_deep_brackets(data):
        return TOO_DEEP
    try:
        with collector_paused():
            return decoder.decode(data)
    except RecursionError:
        return TOO_DEEP
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Miss(str(error), "unreadable")


TOO_DEEP: Final = Miss(f"nested more than {MAX_DEPTH} deep", "unreadable")


_SAFE_RECURSION: Final = 5_000


_STRINGS: Final = rb'(?s)"[^"\\]*+(?:\\.?+[^"\\]*+)*+(?:"|\Z)'


_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _has_deep_brackets(data: bytes) -> bool:
    """Return whether JSON nests too deeply, by taking away the innermost brackets again and again.

    Also true of brackets that never close, which is no loss: such JSON is malformed.
    """
    brackets = re.sub(_STRINGS, b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH + 2):  # the document and the entry stand around what is measured
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def is_deeper(value: object, limit: int) -> bool:
    below = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)):
        return False
    return limit == 0 or any(is_deeper(item, limit - 1) for item in below)  # type: ignore[attr-defined]


def unreadable(key: str, rule: str) -> Miss:
    return Miss(f"{key}: must be {rule}", "unreadable")


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
