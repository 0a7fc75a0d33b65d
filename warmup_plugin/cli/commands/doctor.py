# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin doctor`: what is wrong on this machine, and how to put it right.

Owns the order of the checks and how they are printed; `doctor_checks.py` and `doctor_probes.py`
have the checks, `doctor_ranks.py` those of several ranks. Every finding that is not good comes with
its fix. Exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from warmup_plugin.cli import (
    doctor_checks,
    doctor_disks,
    doctor_probes,
    doctor_ranks,
    output,
    places,
)
from warmup_plugin.cli.doctor_checks import Finding
from warmup_plugin.cli.output import CommandError
from warmup_plugin.errors import SettingError
from warmup_plugin.settings import Settings

HELP = "say what is wrong on this machine, and how to put it right"
DESCRIPTION = """\
Check settings, engine, FlashInfer, the plugin's hook, directories, permissions,
locks and clocks, and say how to put right what is wrong. The hook and
FlashInfer are tried in child processes, which takes a while; --quick leaves
them out. With --ranks, which torchrun or Slurm runs on every rank of a job,
check instead which hosts reach which address, and how the ranks meet."""
EXAMPLES = """\
examples:
  warmup-plugin doctor
  warmup-plugin doctor --quick               files and settings only
  warmup-plugin doctor --root /models/cache --json
  torchrun --nproc-per-node 8 -m warmup_plugin doctor --ranks
  srun python -m warmup_plugin doctor --ranks    with MASTER_ADDR, MASTER_PORT
"""
_STYLES = {"good": "green", "note": "yellow", "bad": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="start no child processes")
    which.add_argument(
        "--ranks", action="store_true", help="check how the ranks of a job meet; run it on each"
    )
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, quick: bool, ranks: bool, root: Path | None, engine_root: Path | None, json: bool
) -> int:
    """Check and print; return 1 where a check fails."""
    if ranks:
        found = doctor_ranks.examine(Settings.from_env(), os.environ)
        is_told = doctor_ranks.is_told_by(found, os.environ)
    else:
        found, is_told = examine(quick=quick, root=root, engine_root=engine_root), True
    is_well = all(each.state != "bad" for each in found)
    if not is_told:
        return 0 if is_well else CommandError.FAILED
    if json:
        findings = [asdict(each) for each in found]
        output.print_json({"schema": 1, "well": is_well, "findings": findings})
        return 0 if is_well else CommandError.FAILED
    rows: list[tuple[output.Cell, ...]] = []
    for each in found:
        mark = output.words({"good": "yes", "note": "?", "bad": "NO"}[each.state],
                            _STYLES[each.state])  # fmt: skip
        rows.append((mark, output.words(each.what, "bold"), each.words))
        if each.fix:
            rows.append(("", "", output.words(f"fix: {each.fix}", "bold")))
    output.print_rows(output.console(), rows)
    return 0 if is_well else CommandError.FAILED


def examine(*, quick: bool, root: Path | None, engine_root: Path | None) -> list[Finding]:
    """Return all findings; with a malformed setting, that alone of what depends on settings."""
    try:
        settings = Settings.from_env()
    except SettingError as error:
        fix = f"unset {error.variable}, or give it a value that its rule takes"
        return [Finding("settings", "bad", str(error), fix), *doctor_checks.packages(os.environ)]
    try:
        roots = places.find(root, engine_root, settings, os.environ)
    except CommandError as error:
        fix = "set WARMUP_PLUGIN_CACHE_ROOT to a directory that outlives the process"
        placed = [Finding("directory", "bad", str(error), fix)]
    else:
        placed = [*doctor_disks.directories(roots), *doctor_checks.tables(roots, settings)]
    found = [
        doctor_checks.mode(settings), *doctor_checks.variables(settings, os.environ),
        *doctor_checks.packages(os.environ), *placed,
    ]  # fmt: skip
    return found if quick else [*found, *doctor_probes.processes()]
