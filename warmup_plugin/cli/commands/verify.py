# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin verify`: whether tables are what their manifests say.

Owns the list of checks. A table that a start would set aside, or use without trust, fails; exit
code 1 then. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from warmup_plugin.cache import checking
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.table import Table
from warmup_plugin.cli import inventory, named, output, places
from warmup_plugin.cli.load import TableFile, read_table
from warmup_plugin.cli.output import CommandError
from warmup_plugin.settings import Settings

HELP = "check tables against their manifests and identities"
DESCRIPTION = """\
Check tables: the JSON, the manifest's sha256, the identity and its directory,
the environment's stamp, a winner for every task that has one. Checks all that
is kept, or what is named: a table, a directory, first digits. Exit code 1 if
one fails."""
EXAMPLES = """\
examples:
  warmup-plugin verify                            all tables on this machine
  warmup-plugin verify ed16c9                     one identity, by first digits
  warmup-plugin verify rank_tp0_pp0_dp0.json
  warmup-plugin verify --root /opt/tables --json  a baked image's
"""


@dataclass(frozen=True)
class Checked:
    """One table, and what is wrong with it."""

    path: str
    entries: int
    complete: bool
    faults: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("what", metavar="WHAT", nargs="*", help="tables, directories, or digits")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(*, what: list[str], root: Path | None, engine_root: Path | None, json: bool) -> int:
    """Check and print; return 1 where a check fails, or there is nothing to check."""
    settings = Settings.from_env()
    roots = places.offered(root, engine_root, settings, os.environ)
    paths = [path for name in what for path in named.tables(name, roots)] if what else _all(roots)
    found = [check(path, settings.table_bytes) for path in paths]
    if not found:
        raise CommandError("there is no table to check")
    bad = [each for each in found if each.faults]
    if json:
        tables = [asdict(each) for each in found]
        output.print_json({"schema": 1, "holds": not bad, "tables": tables})
    else:
        _print(found, bad)
    return CommandError.FAILED if bad else 0


def _all(roots: list[places.Root]) -> list[Path]:
    return [Path(kept.directory, name) for kept in inventory.walk(roots) for name in kept.tables]


def check(path: Path, limit: int) -> Checked:
    """Return what is wrong with a table."""
    file = read_table(path, limit)
    entries = len(file.table.entries) if isinstance(file.table, Table) else 0
    complete = isinstance(file.manifest, Manifest) and file.manifest.complete
    return Checked(str(path), entries, complete, tuple(faults_of(file)))


def faults_of(file: TableFile) -> Iterator[str]:
    """Yield what is wrong with a table, what lies beside it, or between them."""
    directory = file.path.absolute().parent.name
    yield from checking.faults_of(
        file.table, file.manifest, file.identity, is_vouched=file.vouched,
        named=directory if len(directory) == inventory.DIGITS else "",
    )  # fmt: skip


def _print(found: list[Checked], bad: list[Checked]) -> None:
    out = output.console()
    for each in found if len(found) == 1 else bad:
        output.print_path(out, Path(each.path))
        for fault in each.faults:
            output.print_rows(out, [(output.words("NO", "bold red"), fault)])
    good, incomplete = len(found) - len(bad), sum(not each.complete for each in found)
    whole = "" if not incomplete else f", {incomplete} incomplete"
    hold = "holds" if 1 in (good, len(found)) else "hold"
    out.print(f"  {good} of {output.plural(len(found), 'table')} {hold}{whole}")
