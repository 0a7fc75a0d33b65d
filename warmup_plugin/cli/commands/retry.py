# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin retry DIR`: let the next start tune the tasks in which processes have died.

Owns the operator's word against two deaths. Takes the marks back in the journals and the tasks out
of the manifests; tables stay as they are. Needs neither torch nor FlashInfer.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from msgspec.structs import replace

from warmup_plugin.cache.files import read_file, write_files
from warmup_plugin.cache.journal import lift, read_journals
from warmup_plugin.cache.locks import locked
from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.paths import manifest_name, parse_table_name
from warmup_plugin.cli import named, output, places
from warmup_plugin.cli.output import CommandError
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

HELP = "let the next start tune the tasks again in which processes have died"
DESCRIPTION = """\
Two processes that die in one task make it serve FlashInfer's default, until
FlashInfer or the driver is another one, or until this command: the next start
tunes such tasks again, last of all. On several nodes with directories of their
own, run it on each."""
EXAMPLES = """\
examples:
  warmup-plugin retry ed16c9        first digits, as `ls` prints them
  warmup-plugin retry DIR --list    only say which tasks there are
  warmup-plugin retry DIR --json    the same as one JSON document
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "directory", metavar="DIR", help="directory of one identity, or its first digits"
    )
    parser.add_argument("--list", action="store_true", help="change nothing")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, directory: str, list: bool, root: Path | None,  # noqa: A002  # the option's name
    engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Lift and print."""
    settings = Settings.from_env()
    folder = named.directory(directory, places.offered(root, engine_root, settings, os.environ))
    if not named.is_of_identity(folder):
        raise CommandError(f"{folder}: not the directory of an identity")
    try:
        tasks = lift_all(folder, settings.table_bytes, dry=list)
    except OSError as error:
        raise CommandError(f"{error.filename or folder}: {error.strerror}") from None
    if json:
        found = {"schema": 1, "directory": str(folder), "lifted": not list, "tasks": tasks}
        output.print_json(found)
        return 0
    out = output.console()
    if not tasks:
        out.print("No process has died in a task here.")
        return 0
    output.print_rows(out, [(task[: output.SHORT], label) for task, label in tasks.items()])
    verb = "would be" if list else "will be"
    out.print(f"{output.plural(len(tasks), 'task')} {verb} tuned again by the next start.")
    return 0


def lift_all(directory: Path, limit: int, *, dry: bool) -> dict[str, str]:
    """Lift every mark and every block of a directory; return the tasks, id -> label.

    With ``dry`` nothing is changed. Raises `OSError`.
    """
    found: dict[str, str] = {}
    with locked(directory):
        for past in read_journals(directory, limit):
            if past.is_dead and past.in_hand is not None:
                found[past.in_hand.task] = past.in_hand.label
                if not dry:
                    lift(past)
        for path in sorted(directory.iterdir()):
            if (source := parse_table_name(path.name)) is not None:
                found = {**_unblock(directory / manifest_name(*source), limit, dry=dry), **found}
    return found


def _unblock(path: Path, limit: int, *, dry: bool) -> dict[str, str]:
    """Take the blocked tasks out of a manifest; it is not complete without them."""
    content = read_file(path, limit).content
    manifest = content if isinstance(content, Miss) else parse_manifest(content, limit=limit)
    if not isinstance(manifest, Manifest) or not manifest.blocked:
        return {}
    blocked = {task: manifest.tasks[task] for task in manifest.blocked if task in manifest.tasks}
    if blocked and not dry:
        kept = {task: row for task, row in manifest.tasks.items() if task not in blocked}
        write_files({path: render_manifest(replace(manifest, tasks=kept, complete=False))})
    return {task: f"{row.op}: {row.reason}" for task, row in blocked.items()}
