# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin show FILE`: what stands in a table, a manifest, a report or an identity.

Owns the words. A file that cannot be used is described, with the reason for which a warm-up would
not use it, and exit code 1; so is a manifest that is not its table's. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec

from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.table import Table
from warmup_plugin.cli import named, output, places, show_text
from warmup_plugin.cli.load import (
    Kind,
    TableFile,
    kind_of,
    read_bytes,
    read_identity,
    read_report,
    read_table,
)
from warmup_plugin.cli.output import CommandError
from warmup_plugin.identity import Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

HELP = "print what stands in a table, a manifest, a report or an identity"
DESCRIPTION = """\
Print what stands in a file: a table (with the manifest and the identity beside
it), a manifest, a report, an identity.json. A file that cannot be used is
described too, with exit code 1."""
EXAMPLES = """\
examples:
  warmup-plugin show ed16c9                          by first digits
  warmup-plugin show rank_tp0_pp0_dp0.json           the table and its manifest
  warmup-plugin show rank_tp0_pp0_dp0.json --tasks   every task with its winner
  warmup-plugin show reports/20261120T091545.120Z_rank0.json
  warmup-plugin show rank_tp0_pp0_dp0.json --json | jq .manifest.complete
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("file", metavar="FILE", help="or first digits: an identity's table")
    parser.add_argument(
        "--tasks", action="store_true", help=f"all tasks, not the first {show_text.FEW}"
    )
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(*, file: str, tasks: bool, root: Path | None, engine_root: Path | None, json: bool) -> int:
    """Read and print; return 1 where something cannot be used."""
    settings = Settings.from_env()
    path = named.file(file, places.offered(root, engine_root, settings, os.environ))
    kind, found = look_into(path, settings.table_bytes)
    out = output.console()
    if json and isinstance(found, TableFile):
        output.print_json(table_document(found))
    elif json:
        output.print_json({"schema": 1, "kind": kind, "path": str(path), **_part(found)})
    elif isinstance(found, TableFile):
        show_text.print_table(out, found, all_tasks=tasks)
    elif isinstance(found, Miss):
        show_text.print_miss(out, kind, path, found)
    elif isinstance(found, WarmupReport):
        show_text.print_report(out, path, found)
    else:
        show_text.print_identity(out, path, found)
    is_bad = found.has_fault if isinstance(found, TableFile) else isinstance(found, Miss)
    return CommandError.FAILED if is_bad else 0


def look_into(path: Path, limit: int) -> tuple[Kind, TableFile | WarmupReport | Identity | Miss]:
    """Return what a file is and what it holds.

    Raises:
        CommandError: there is no such file.
    """
    data = read_bytes(path, limit)
    if isinstance(data, Miss) and data.kind == "absent":
        raise CommandError(f"{path}: {data.reason}")
    kind = kind_of(path, b"" if isinstance(data, Miss) else data)
    if kind in ("table", "manifest"):
        return kind, read_table(path, limit)
    return kind, (read_report if kind == "report" else read_identity)(path, limit)


def table_document(file: TableFile) -> dict[str, Any]:
    """Return a table and what lies beside it as JSON values."""
    table = file.table
    found: dict[str, Any] = {
        "schema": 1,
        "kind": "table",
        "path": str(file.path),
        "bytes": file.bytes,
        "sha256": file.sha256,
        **_part(table),
    }
    if isinstance(table, Table):
        found |= {
            "stamp": dict(table.stamp),
            "entries": len(table.entries),
            "ops": show_text.ops_of(table),
        }
    manifest = {"path": str(file.manifest_path), **_part(file.manifest)}
    if isinstance(file.manifest, Manifest):
        manifest["sha256_valid"] = file.vouched
    return {**found, "manifest": manifest, "identity": _part(file.identity)}


def _part(found: TableFile | Table | Manifest | Identity | WarmupReport | Miss) -> dict[str, Any]:
    """Return what was read, or why not."""
    match found:
        case Miss():
            return {"miss": msgspec.structs.asdict(found)}
        case Manifest():
            fields = {name: getattr(found, name) for name in _MANIFEST_FIELDS}
            tasks_miss = {"tasks_miss": found.tasks_miss.reason} if found.tasks_miss else {}
            return {**fields, **tasks_miss, "tasks": msgspec.to_builtins(dict(found.tasks))}
        case Identity():
            return {"identity": found.digest, "factors": found.factors}
        case WarmupReport():
            return {"report": found.to_json()}
        case _:
            return {}


_MANIFEST_FIELDS = (
    "schema", "identity", "table_sha256", "generation", "complete", "engine", "engine_version",
    "inventory", "loose", "blocked",
)  # fmt: skip
