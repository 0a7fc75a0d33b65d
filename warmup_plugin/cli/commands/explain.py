# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin explain`: which config factor keeps two starts from sharing a table, in words.

Owns what may be named (a directory, an `identity.json`, a table, a receipt, first digits of an
identity) and the look of the answer. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cli import diagnose, named, output, places, receipts
from warmup_plugin.cli.commands import diff
from warmup_plugin.cli.factor_text import Reason, reasons
from warmup_plugin.cli.load import read_identity, read_report
from warmup_plugin.cli.output import SHORT, CommandError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

HELP = "say which factor keeps two starts apart, or why the last start tuned"
DESCRIPTION = """\
Say in words which config factors keep A and B from sharing a table. Each may be
the directory of an identity, a file in it, a receipt, or the first digits of an
identity. With one alone, --last or --cold: why that start tuned."""
EXAMPLES = """\
examples:
  warmup-plugin explain --last                    why did this start tune?
  warmup-plugin explain --cold                    the last one that did
  warmup-plugin explain ed16c9 0087db             by first digits
  warmup-plugin explain old/identity.json new/identity.json
  warmup-plugin explain reports/20261120T091545.120Z_rank0.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("a", metavar="A", nargs="?", help="one of the two, or a receipt alone")
    parser.add_argument("b", metavar="B", nargs="?", help="the other one")
    parser.add_argument("--last", action="store_true", help="the last start's receipt")
    parser.add_argument("--cold", action="store_true", help="the last start's that has tuned")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, a: str | None, b: str | None, last: bool, cold: bool, root: Path | None,
    engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Explain and print."""
    if (a is not None) + last + cold != 1:
        message = "name two identities, or one receipt, or --last, or --cold"
        raise CommandError(message, code=CommandError.USAGE)
    settings = Settings.from_env()
    roots = places.offered(root, engine_root, settings, os.environ)
    limit = settings.table_bytes
    if a is not None and b is not None:
        _two(a, b, roots, limit, as_json=json)
    else:
        _one(_receipt(a, roots, limit, cold=cold), roots, limit, as_json=json)
    return 0


def _receipt(name: str | None, roots: list[places.Root], limit: int, *, cold: bool) -> Path:
    if name is None:
        return receipts.last_receipt(roots, limit, cold=cold)
    return named.receipt(name, roots, limit)


def _two(a: str, b: str, roots: list[places.Root], limit: int, *, as_json: bool) -> None:
    one, other = (identity_named(name, roots, limit) for name in (a, b))
    found = reasons(one, other)
    if as_json:
        output.print_json(_document(one, other, found))
        return
    out = output.console()
    output.print_rows(out, [("A", one.digest[:SHORT], a), ("B", other.digest[:SHORT], b)])
    out.print()
    if not found:
        out.print(f"  The same identity: {_tables_of(a, b, roots, limit)}.")
        return
    many = "One factor differs" if len(found) == 1 else f"{len(found)} factors differ"
    out.print(f"  {many}:")
    print_reasons(out, found)


def _tables_of(a: str, b: str, roots: list[places.Root], limit: int) -> str:
    """Return whether two names of one identity have one table, in words."""
    first, second = (diff.rows_of(name, roots, limit) for name in (a, b))
    if not (first.entries and second.entries):
        return "they share a table"
    number = len(diff.changes(first, second))
    if not number:
        return "they share a table"
    return f"but {output.plural(number, 'winner')} differ in their tables; see warmup-plugin diff"


def _one(path: Path, roots: list[places.Root], limit: int, *, as_json: bool) -> None:
    verdict = diagnose.explain_start(path, roots, limit)
    if as_json:
        output.print_json(diagnose.document(verdict))
        return
    out = output.console()
    output.print_path(out, Path(verdict.receipt))
    output.print_rows(out, [(words,) for words in verdict.words])
    if verdict.factors:
        print_reasons(out, verdict.factors)


def print_reasons(out: Console, found: list[Reason] | tuple[Reason, ...]) -> None:
    rows = [(output.words(r.factor, "bold"), r.values(), r.words) for r in found]
    output.print_rows(out, rows)


def identity_named(name: str, roots: list[places.Root], limit: int) -> Identity:
    """Return the identity that somebody names by a path or by its first digits.

    Raises:
        CommandError: there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists():
        path = named.directory(name, roots)
    found = _read(path, limit)
    if isinstance(found, Miss):
        raise CommandError(f"{path}: {found.reason}")
    return found


def _read(path: Path, limit: int) -> Identity | Miss:
    if path.is_dir():
        return read_identity(path / IDENTITY_NAME, limit)
    report = read_report(path, limit)
    if not isinstance(report, Miss):
        return Identity(report.factors) if report.factors else Miss("without factors", "absent")
    if path.name != IDENTITY_NAME and (path.parent / IDENTITY_NAME).exists():
        path = path.parent / IDENTITY_NAME
    return read_identity(path, limit)


def _document(a: Identity, b: Identity, found: list[Reason]) -> dict[str, Any]:
    return {
        "schema": 1,
        "a": a.digest,
        "b": b.digest,
        "same": not found,
        "factors": [{"factor": r.factor, "a": r.a, "b": r.b, "words": r.words} for r in found],
    }
