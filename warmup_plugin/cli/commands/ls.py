# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin ls`: all tables on this machine, one line each.

Owns the list: the newest last, as people read a terminal. A glance only: `verify` checks files,
`show` tells what is in one. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_plugin.cli import output, places
from warmup_plugin.cli.inventory import Glance, glance, walk
from warmup_plugin.cli.places import Root
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

HELP = "list all tables on this machine"
DESCRIPTION = """\
List the tables below every cache root that an engine or a runner of your own
uses on this machine, and below the layers, of every FlashInfer version and GPU
architecture: one line for each identity, the newest last."""
EXAMPLES = """\
examples:
  warmup-plugin ls
  warmup-plugin ls --root /models/cache           another cache root
  warmup-plugin ls --json | jq '.tables[].directory'
"""

_HEADER = ("identity", "flashinfer", "arch", "entries", "size", "state", "written", "of")
_NUMBERS = ("entries", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(*, root: Path | None, engine_root: Path | None, json: bool) -> int:
    """Look and print."""
    roots = places.find(root, engine_root, Settings.from_env(), os.environ)
    found = sorted(map(glance, walk(roots)), key=lambda each: each.kept.changed)
    if json:
        output.print_json(document(roots, found))
    else:
        _print(roots, found)
    return 0


def document(roots: list[Root], found: list[Glance]) -> dict[str, Any]:
    """Return the list as JSON values."""
    return {
        "schema": 1,
        "roots": [
            {
                "path": str(r.path),
                "source": r.source,
                "kind": r.kind,
                "users": r.users,
                "exists": r.is_there,
            }
            for r in roots
        ],
        "tables": [
            {
                "identity": each.kept.identity,
                "directory": each.kept.directory,
                "flashinfer": each.kept.version or None,
                "arch": each.kept.arch or None,
                "layer": each.kept.root.kind == "layer",
                "tables": each.kept.tables,
                "entries": each.entries,
                "bytes": each.kept.bytes,
                "state": each.state,
                "engine": each.engine,
                "changed": each.kept.changed,
                "about": each.words,
            }
            for each in found
        ],
    }


def _print(roots: list[Root], found: list[Glance]) -> None:
    out = output.console()
    if not output.is_quiet():
        _print_roots(out, roots, found)
    if not found:
        return
    rows = [_row(each) for each in found]
    if out.is_terminal:
        output.print_rows(out, rows, header=_HEADER, right=_NUMBERS)
        _print_total(found)
        return
    # Where nobody watches a column may be as wide as it is: ten thousand lines in no time.
    table = [_HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numbers = [name in _NUMBERS for name in _HEADER]
    lines = (
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in table
    )
    sys.stdout.write("".join(f"  {line}\n" for line in lines))
    _print_total(found)


def _print_roots(out: Console, roots: list[Root], found: list[Glance]) -> None:
    """Print the places that were searched; a default place only if it has tables."""
    holding = {each.kept.root.path for each in found}
    told = [r for r in roots if r.path in holding or r.chosen or not found or output.is_verbose()]
    for root in told:
        empty = "" if root.path in holding or not found else ": nothing yet"
        out.print(output.words(f"{root.path}  ({root.source}){empty}", "bold"), soft_wrap=True)
    if not found:
        out.print("  Nothing is kept there yet.")


def _print_total(found: list[Glance]) -> None:
    total = output.size(sum(each.kept.bytes for each in found))
    print(f"  {output.plural(len(found), 'identity', 'identities')}, {total}")


def _row(each: Glance) -> tuple[str, ...]:
    kept = each.kept
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.changed)) if kept.changed else "-"
    words = f"{each.words}; layer" if kept.root.kind == "layer" else each.words
    return (
        kept.identity[: output.SHORT],
        kept.version or "-",
        kept.arch or "-",
        str(each.entries),
        output.size(kept.bytes),
        each.state,
        written,
        output.printable(words),
    )
