# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin diff A B`: which winners and times differ between two tables.

Owns the comparison: by file key, since that is what FlashInfer serves by. Changes nothing; why two
starts have not one table is `explain`'s to say.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from warmup_plugin.cache.file_key import fields_of, shapes_of
from warmup_plugin.cache.gains import serving_ms
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.table import Entry
from warmup_plugin.cli import named, output, places
from warmup_plugin.cli.load import read_table
from warmup_plugin.cli.output import CommandError
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

HELP = "say which winners and times differ between two tables"
DESCRIPTION = """\
Compare two tables entry by entry: which winners differ, which only one of them
has, and what both winners took where they were tuned. A and B are tables,
directories, or first digits of identities. Exit code 1 if a winner differs."""
EXAMPLES = """\
examples:
  warmup-plugin diff ed16c9 0082f1
  warmup-plugin diff old/rank_tp0_pp0_dp0.json new/rank_tp0_pp0_dp0.json
  warmup-plugin diff ed16c9 0082f1 --all          equal winners too, with times
"""


@dataclass(frozen=True)
class Rows:
    """A table by file key: its entries, and the records of the tasks that have them."""

    path: Path
    entries: Mapping[str, Entry]
    records: Mapping[str, TaskRecord]


@dataclass(frozen=True)
class Change:
    """One key: its winner in A and in B, None where there is none, with what it took."""

    op: str
    shapes: str
    a: str | None
    b: str | None
    a_ms: float | None
    b_ms: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("a", metavar="A", help="a table, a directory, or first digits")
    parser.add_argument("b", metavar="B", help="the other one")
    parser.add_argument("--all", action="store_true", help="entries with equal winners too")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, a: str, b: str, all: bool, root: Path | None, engine_root: Path | None, json: bool,  # noqa: A002  # the option's name
) -> int:  # fmt: skip
    """Compare and print; return 1 where a winner differs."""
    settings = Settings.from_env()
    roots = places.offered(root, engine_root, settings, os.environ)
    one, other = (rows_of(name, roots, settings.table_bytes) for name in (a, b))
    for each in (one, other):
        if not each.entries:
            raise CommandError(f"{each.path}: it cannot be used, or has no entry")
    found = list(_compared(one, other))
    differ = [change for change in found if change.a != change.b]
    shown = found if all else differ
    if json:
        output.print_json({
            "schema": 1, "a": str(one.path), "b": str(other.path), "same": len(found) - len(differ),
            "differ": len(differ), "entries": [asdict(change) for change in shown],
        })  # fmt: skip
    else:
        _print(one, other, shown, same=len(found) - len(differ), differ=len(differ))
    return CommandError.FAILED if differ else 0


def rows_of(name: str, roots: list[places.Root], limit: int) -> Rows:
    """Return the table that the user names; no entries where it cannot be used."""
    path = named.file(name, roots)
    file = read_table(path, limit)
    entries = {} if isinstance(file.table, Miss) else file.table.entries
    tasks = file.manifest.tasks.values() if isinstance(file.manifest, Manifest) else ()
    records = {key: task for task in tasks for keys in task.keys for key in keys}
    return Rows(file.path, entries, records)


def changes(one: Rows, other: Rows) -> list[Change]:
    """Return the keys whose winners differ."""
    return [change for change in _compared(one, other) if change.a != change.b]


def _compared(one: Rows, other: Rows) -> Iterator[Change]:
    for key in sorted({*one.entries, *other.entries}):
        (a, a_ms), (b, b_ms) = (_side(rows, key) for rows in (one, other))
        yield Change(str(fields_of(key)[0]), shapes_of(key), a, b, a_ms, b_ms)


def _side(rows: Rows, key: str) -> tuple[str | None, float | None]:
    entry, record = rows.entries.get(key), rows.records.get(key)
    winner = None
    if entry is not None:
        winner = f"{entry.runner} {'default' if entry.tactic == -1 else entry.tactic}"
    return winner, serving_ms(entry, record.ms, record.default_ms) if record else None


def _print(one: Rows, other: Rows, shown: list[Change], *, same: int, differ: int) -> None:
    out = output.console()
    output.print_rows(out, [("A", str(one.path)), ("B", str(other.path))])
    out.print()
    rows = [
        (f"{row.op} {row.shapes}", _ms(row.a_ms), _ms(row.b_ms), _winners(row)) for row in shown
    ]
    header = ("task", "A ms", "B ms", "winner")
    if rows:
        output.print_rows(out, rows, header=header, right=header[1:3])
    out.print(f"  {output.plural(differ, 'winner')} differ, {same} equal")


def _winners(row: Change) -> str:
    a, b = row.a or "none", row.b or "none"
    return a if a == b else f"{a} -> {b}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
