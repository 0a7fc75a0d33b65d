# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin rm IDENTITY`: throw single identities away, never those in use.

Owns the question which; `removal.py` deletes. Layers are read only and stay.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from warmup_plugin.cli import inventory, named, output, places, removal
from warmup_plugin.cli.commands.prune import print_stayed
from warmup_plugin.cli.in_use import user_of
from warmup_plugin.cli.output import CommandError
from warmup_plugin.settings import Settings

HELP = "throw identities away by their first digits, never those in use"
DESCRIPTION = """\
Throw identities away, with their tables, manifests and receipts, below every
cache root of this machine. What is in use stays, with exit code 1; so do
layers. `prune` chooses by age, size and version instead."""
EXAMPLES = """\
examples:
  warmup-plugin rm ed16c9
  warmup-plugin rm ed16c9 0082f1 --dry-run
  warmup-plugin rm ed16c9 --root /models/cache
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "identity", metavar="IDENTITY", nargs="+", help="first digits of an identity"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, identity: list[str], dry_run: bool, root: Path | None, engine_root: Path | None, json: bool
) -> int:
    """Find all that are named, then throw them away; return 1 where one stays."""
    settings = Settings.from_env()
    everywhere = places.find(root, engine_root, settings, os.environ)
    roots = [place for place in everywhere if place.kind != "layer"]
    found = {kept.directory: kept for name in identity for kept in named.kept_as(name, roots)}
    users = {path: user_of(kept, settings.table_bytes) for path, kept in found.items()}
    done = [_remove(kept, users[path], settings.table_bytes, dry_run=dry_run)
            for path, kept in found.items()]  # fmt: skip
    if json:
        rows = [
            {"directory": each.directory, "bytes": each.bytes, "gone": each.is_gone,
             "in_use_by": each.user or None, "stayed": each.stayed}
            for each in done
        ]  # fmt: skip
        output.print_json({"schema": 1, "dry_run": dry_run, "identities": rows})
    else:
        _print(done, dry_run=dry_run)
    return 0 if all(each.is_gone for each in done) else CommandError.FAILED


def _remove(kept: inventory.Kept, user: str, limit: int, *, dry_run: bool) -> removal.Removed:
    if user:
        return removal.Removed(kept.directory, 0, user=user)
    if dry_run:
        return removal.Removed(kept.directory, kept.bytes)
    return removal.remove_identity(kept, limit)


def _print(done: list[removal.Removed], *, dry_run: bool) -> None:
    for each in done:
        if each.is_gone:
            output.print_path(output.console(), Path(each.directory))
    print_stayed(done)
    gone = [each for each in done if each.is_gone]
    total = output.size(sum(each.bytes for each in done))
    many = output.plural(len(gone), "identity", "identities")
    print(f"  {'would go' if dry_run else 'gone'}: {many}, {total}")
