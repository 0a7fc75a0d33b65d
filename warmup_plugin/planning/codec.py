# SPDX-License-Identifier: Apache-2.0
"""Inventories, plans and results as bytes that cross ranks: JSON, short.

Owns their form. A rank receives little beside the table however many ranks there are: file keys,
which repeat themselves, are compressed; ids, which do not, are bytes in base 85; a result names its
task by the place in the plan and shares what it has in common with others. Pure.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from warmup_plugin.cache.table import Entry, canonical_tactic
from warmup_plugin.cache.task_result import Result
from warmup_plugin.planning.inventory import Item

#: From so many bytes on it pays to compress.
_LONG = 256
_ID_BYTES = 16
#: What the results of one rank mostly have in common, and what each has for itself.
_COMMON = ("kind", "winner", "reason", "rank", "host", "gpu", "at", "samples", "candidates")
_OWN = ("ms", "default_ms", "seconds")


def packed(value: object) -> bytes:
    """Return JSON, compressed where it is long; still JSON, for any language to read."""
    body = json.dumps(value, separators=(",", ":")).encode()
    if len(body) >= _LONG:
        short = {"zlib": base64.b85encode(zlib.compress(body, 6)).decode()}
        body = min(body, json.dumps(short).encode(), key=len)
    return body


def unpacked(body: bytes) -> Any:
    """Return the values of such a body, whose sha256 has been checked."""
    value = json.loads(body)
    if isinstance(value, dict) and "zlib" in value:
        return json.loads(zlib.decompress(base64.b85decode(value["zlib"])))
    return value


def pack_items(items: Sequence[Item]) -> bytes:
    """Return an inventory; ids are hexadecimal, as `TaskIds` makes them."""
    ids = base64.b85encode(b"".join(bytes.fromhex(item.id) for item in items)).decode()
    return json.dumps([ids, packed([item.to_row() for item in items]).decode()]).encode()


def unpack_items(body: bytes) -> list[Item]:
    """Return the items of an inventory."""
    ids, rows = json.loads(body)
    names = base64.b85decode(ids).hex()
    size = 2 * _ID_BYTES
    return [
        Item.from_json([names[size * place : size * (place + 1)], *row])
        for place, row in enumerate(unpacked(rows.encode()))
    ]


def pack_results(results: Sequence[Result], places: Mapping[str, int]) -> bytes:
    """Return what one rank has found out; ``places``: of the tasks in the plan.

    Tasks that are in no queue (each rank tunes them for itself) are left out.
    """
    kinds: dict[str, int] = {}
    rows = []
    for result in results:
        if result.task not in places:
            continue
        entry = result.entry
        runner, policy = (entry.runner, entry.policy) if entry else (None, None)
        common = [*(getattr(result, name) for name in _COMMON), runner, policy]
        kind = kinds.setdefault(json.dumps(common), len(kinds))
        own = [_short(getattr(result, name)) for name in _OWN]
        rows.append([places[result.task], kind, entry.tactic if entry else None, *own])
    return packed([[json.loads(kind) for kind in kinds], rows])


def _short(number: float | None) -> float | None:
    """Return a measured time as precisely as it is measured, and better."""
    return None if number is None else float(f"{number:.4g}")


def unpack_results(body: bytes, tasks: Sequence[str]) -> list[Result]:
    """Return the results of one rank."""
    kinds, rows = unpacked(body)
    found = []
    for place, kind, tactic, *own in rows:
        *common, runner, policy = kinds[kind]
        entry = None
        if runner is not None:
            policy = None if policy is None else tuple(canonical_tactic(part) for part in policy)
            entry = Entry(runner, canonical_tactic(tactic), policy)
        fields = dict(zip((*_COMMON, *_OWN), (*common, *own), strict=True))
        found.append(Result(task=tasks[place], entry=entry, **fields))
    return found
