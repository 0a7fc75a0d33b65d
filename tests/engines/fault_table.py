# SPDX-License-Identifier: Apache-2.0
"""Rows of a page's table of faults: what is planted, what comes of it on each side.

Owns the form of a row, the parameters of a test of all rows, what can be done to tables, the words
for what a start came to, and the table that a page shows. The rows are the engines' own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Document = dict[str, Any]
#: Changes the tables of all ranks, in their order; ours is one for all.
Spoil = Callable[[Sequence[Path]], None]
Verdicts = tuple[str, str]

#: One rank tunes: each finds another tactic fastest, and a row's outcome must not be a race.
BOUND = {
    "WARMUP_PLUGIN_GRACE_S": "1", "WARMUP_PLUGIN_SILENCE_S": "3",
    "WARMUP_PLUGIN_STRATEGY": "leader",
}  # fmt: skip
NEVER_OURS = ("hang", "crash", "disagree", "fails in serving")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    ``alone``, ``ours``, ``adopted``: the engine's verdicts; ours, our table spoiled; ours at the
    first start over the engine's files, spoiled. None: there is no such case. Two verdicts: the
    start with the fault, and the one after it, the cache untouched. ``options`` are those of the
    start with the fault; ``lasting``: it is there at the next one too. ``is_split``: rank 1 has a
    cache root of its own. ``place``: does something to the roots, by rank, before the fault.
    ``has_nowhere``: nothing can be kept of what the fault touches. ``is_left_alone``: we leave the
    start to the engine.
    """

    number: str
    fault: str
    alone: Verdicts
    ours: Verdicts | None
    adopted: Verdicts | None = None
    num_ranks: int = 2
    spoil: Spoil | None = None
    place: Callable[[Path, Path], None] | None = None
    is_cold: bool = False
    is_lasting: bool = False
    is_split: bool = False
    has_nowhere: bool = False
    is_left_alone: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Callable[[int, Path], Mapping[str, Any]] = lambda _rank, _root: {}


def sides(rows: Sequence[Row]) -> list[Any]:
    """Return the parameters ``row, side`` of a test of all rows, each side that a row has.

    Some minutes, and what they hold changes with releases: run by ``-m soak``.
    """
    return [
        pytest.param(
            row,
            side,
            id=f"{row.number} {row.fault} ({row.num_ranks}), {side}",
            marks=pytest.mark.soak,
        )
        for row in rows
        for side in ("alone", "ours", "adopted")
        if getattr(row, side) is not None
    ]


def faults_of_ours(rows: Sequence[Row]) -> list[str]:
    """Return the verdicts with us that there must never be."""
    told = [word for row in rows for side in (row.ours, row.adopted) for word in side or ()]
    return [word for word in told for never in NEVER_OURS if never in word]


@contextlib.contextmanager
def writable_again(folder: Path) -> Iterator[None]:
    """Let everybody write again after the body, that the folder can be removed."""
    yield
    for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        each.chmod(0o755)


def last(change: Callable[[bytes], bytes] | None) -> Spoil:
    """Change the last rank's table, or lose it."""
    return lambda tables: _change(tables[-1], change)


def every(change: Callable[[bytes], bytes]) -> Spoil:
    """Change every table."""

    def spoil(tables: Sequence[Path]) -> None:
        for table in tables:
            _change(table, change)

    return spoil


def _change(table: Path, change: Callable[[bytes], bytes] | None) -> None:
    if change is None:
        table.unlink()
    else:
        table.write_bytes(change(table.read_bytes()))


def edited(change: Callable[[Document], Document]) -> Callable[[bytes], bytes]:
    """Change a table as a document."""
    return lambda data: json.dumps(change(json.loads(data))).encode()


def entries(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Change every entry."""
    return edited(lambda d: {k: v if k.startswith("_") else change(v) for k, v in d.items()})


def halved(data: bytes) -> bytes:
    """Cut a file in half."""
    return data[: len(data) // 2]


def first_empty(document: Document) -> Document:
    """Empty one entry."""
    first = next(key for key in document if not key.startswith("_"))
    return {**document, first: []}


def half(document: Document) -> Document:
    """Leave every second entry out."""
    keys = [key for key in document if not key.startswith("_")]
    return {key: v for key, v in document.items() if key not in keys[::2]}


def other_version(document: Document) -> Document:
    """Say that another FlashInfer wrote it."""
    return {**document, "_metadata": {**document["_metadata"], "flashinfer_version": "0.6.0"}}


def no_such_tactic(entry: list[Any]) -> list[Any]:
    """Name a tactic that there is not."""
    return [entry[0], 99, *entry[2:]]


def default_tactic(entry: list[Any]) -> list[Any]:
    """Name the default, which is slower than what was measured."""
    return [entry[0], -1, *entry[2:]]


def read_only(tables: Sequence[Path]) -> None:
    """Forbid writing where the tables are."""
    for folder in {table.parent for table in tables}:
        folder.chmod(0o555)


def verdict(start: Any, *, is_ours: bool) -> str:
    """Return in a word or two what a start came to."""
    if start.hung:
        assert start.errors or start.ranks, f"ranks {start.hung} are slow: nobody has ended"
        return "hang"
    if start.errors:
        return "ends" if is_ours else "crash"
    told = "tunes" if sum(start.timed) else "warm"
    if any(rank.get("serving") for rank in start.ranks):
        return f"{told}, fails in serving"
    if start.disputed:
        return f"{told}, ranks disagree"
    return f"{told}, on defaults" if defaults(start) else told


def defaults(start: Any) -> list[str]:
    """Return the calls within the warmed-up sizes that serve FlashInfer's default."""
    return [
        call
        for rank in start.ranks
        for call, (_, tactic) in rank["served"].items()
        if tactic == -1 and int(call.rpartition("@ ")[2]) <= rank["tokens"]
    ]


def table(rows: Sequence[Row], engine: str) -> str:
    """Return the page's table."""
    head = ("", "fault", f"{engine} alone", "next", "with us", "next",
            f"with us, over {engine}'s files", "next")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        sides = [
            _cell(word) for side in (row.alone, row.ours, row.adopted) for word in side or ("", "")
        ]
        lines.append(f"| {' | '.join((row.number, row.fault, *sides))} |")
    return "\n".join(lines)


def _cell(word: str) -> str:
    return f"**{word}**" if any(bad in word for bad in NEVER_OURS) else word


def page(path: Path, rows: Sequence[Row], engine: str, begin: str, end: str) -> str:
    """Return a page as it should be: its own words around the table."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table(rows, engine)}\n\n{end}{after}"
