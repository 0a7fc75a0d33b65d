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
from typing import TYPE_CHECKING

from warmup_plugin.cache.manifest import DEFAULTS, Manifest
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.stamps import stamp_conflicts
from warmup_plugin.cache.table import Table
from warmup_plugin.cli import inventory, named, output, places
from warmup_plugin.cli.load import TableFile, read_table
from warmup_plugin.cli.output import CommandError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from warmup_plugin.cache.manifest import TaskRecord

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
_MOST = 3


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
    """Check and print; return 1 where something fails, or there is nothing to check."""
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
    """Yield what is wrong with a table, its manifest, its identity, or between them."""
    if isinstance(file.table, Miss):
        yield file.table.reason
    if isinstance(file.manifest, Miss):
        yield f"manifest: {file.manifest.reason}"
    elif not file.vouched and isinstance(file.table, Table):
        yield "manifest: it vouches for a table with another sha256"
    if isinstance(file.identity, Miss):
        yield f"{IDENTITY_NAME}: {file.identity.reason}"
    elif isinstance(file.identity, Identity):
        yield from _identity_faults(file, file.identity)
    if isinstance(file.table, Table) and isinstance(file.manifest, Manifest):
        yield from _task_faults(file.table, file.manifest)


def _identity_faults(file: TableFile, identity: Identity) -> Iterator[str]:
    directory = file.path.absolute().parent.name
    if len(directory) == inventory.DIGITS and directory != identity.digest:
        yield f"{IDENTITY_NAME}: its digest is {identity.digest[: output.SHORT]}, not the directory"
    if isinstance(file.manifest, Manifest) and file.manifest.identity != identity.digest:
        yield f"manifest: of identity {file.manifest.identity[: output.SHORT]}"
    if isinstance(file.table, Table):
        stamp = identity.factors.get("stamp", {})
        for name, (theirs, ours) in stamp_conflicts(file.table.stamp, stamp).items():
            yield f"tuned with {name} {theirs}, the identity says {ours}"


def _task_faults(table: Table, manifest: Manifest) -> Iterator[str]:
    if manifest.tasks_miss:
        yield f"manifest: its tasks: {manifest.tasks_miss.reason}"
        return
    lacking = [task for task in manifest.tasks.values() if not _is_answered(table, task)]
    for task in lacking[:_MOST]:
        yield f"{task.op}: a task without its winner"
    if len(lacking) > _MOST:
        yield f"and {len(lacking) - _MOST} more tasks without their winners"


def _is_answered(table: Table, task: TaskRecord) -> bool:
    return task.outcome in DEFAULTS or any(
        key in table.entries for keys in task.keys for key in keys
    )


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
