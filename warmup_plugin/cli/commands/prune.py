# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin prune`: throw tables away by age, size or version, never those in use.

Owns the choice, over all cache roots of this machine together; `removal.py` deletes. An identity
goes as a whole. Layers are never touched.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmup_plugin.cache.files import FOREIGN
from warmup_plugin.cli import environment, inventory, output, places, removal
from warmup_plugin.cli.in_use import last_used, user_of
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.places import Root
from warmup_plugin.settings import Settings

HELP = "throw tables away by age, size or version, never those in use"
DESCRIPTION = """\
Throw tables away: those not used for a time, the least recently used above a
size, those of a FlashInfer version. An identity goes if one option names it,
and stays if it is in use. --set-aside clears what starts could not use."""
EXAMPLES = """\
examples:
  warmup-plugin prune --older-than 30d --dry-run
  warmup-plugin prune --max-size 2GB
  warmup-plugin prune --version 0.6.13 --version 0.7.0
  warmup-plugin prune --other-versions --set-aside   all but the installed one's
"""

_AGE = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_SIZE: dict[str, int] = {f"{prefix}{end}": base**power
         for power, prefix in enumerate("kmgt", 1)
         for end, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """An identity that an option names: why, and who uses it (then it stays)."""

    kept: inventory.Kept
    why: str
    used: float
    user: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--older-than", metavar="AGE", type=_age, help="not used for so long: 12h, 30d, 8w"
    )
    parser.add_argument(
        "--max-size", metavar="SIZE", type=_size, help="keep at most so much: 500MB, 2GB"
    )
    parser.add_argument(
        "--version", metavar="V", action="append", default=[], help="of this FlashInfer"
    )
    parser.add_argument(
        "--other-versions", action="store_true", help="of any FlashInfer but the installed one"
    )
    parser.add_argument(
        "--set-aside", action="store_true", help="also what starts have set aside, everywhere"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+)([hdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number with h, d or w")
    return int(match[1]) * _AGE[match[2]]


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([a-z]+)", text.lower())
    if match is None or match[2] not in _SIZE:
        rule = "must be a number with kB, MB, GB or TB, or KiB, MiB, GiB or TiB"
        raise argparse.ArgumentTypeError(f"{text!r}: {rule}")
    return int(match[1]) * _SIZE[match[2]]


def run(
    *, older_than: float | None, max_size: int | None, version: list[str], other_versions: bool,
    set_aside: bool, dry_run: bool, root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Choose, throw away, and say so."""
    if older_than is None and max_size is None and not (version or other_versions or set_aside):
        message = (
            "say what may go: --older-than, --max-size, --version, --other-versions, --set-aside"
        )
        raise CommandError(message, code=CommandError.USAGE)
    settings = Settings.from_env()
    everywhere = places.find(root, engine_root, settings, os.environ)
    found = [place for place in everywhere if place.kind != "layer"]
    installed = _installed() if other_versions else ""
    kept = list(inventory.walk(found))
    chosen = choose(
        kept, older_than=older_than, max_size=max_size, versions=version, installed=installed,
        limit=settings.table_bytes,
    )  # fmt: skip
    going = [each for each in chosen if not each.user]
    aside = [each for each in kept if set_aside and FOREIGN in each.folders]
    done = [] if dry_run else _throw_away(going, aside, settings.table_bytes)
    if json:
        output.print_json(_document(found, kept, chosen, aside, done, dry_run=dry_run))
    else:
        _print(chosen, aside, done, dry_run=dry_run)
    return CommandError.FAILED if any(each.stayed for each in done) else 0


def _installed() -> str:
    found = environment.flashinfer_version()
    if found is None:
        raise CommandError("FlashInfer is not installed here: name versions with --version")
    return found.value


def choose(
    kept: list[inventory.Kept],
    *,
    older_than: float | None,
    max_size: int | None,
    versions: Collection[str],
    installed: str,
    limit: int,
) -> list[Candidate]:
    """Return what the options name, the least recently used first, with who uses it."""
    now = time.time()
    ages = sorted((last_used(each), index) for index, each in enumerate(kept))
    why: dict[int, str] = {}
    for used, index in ages:
        each = kept[index]
        if older_than is not None and now - used > older_than:
            why[index] = f"not used for {(now - used) / _AGE['d']:.1f} days"
        elif each.version and (each.version in versions or installed not in ("", each.version)):
            why[index] = f"of FlashInfer {each.version}"
    users = {index: user_of(kept[index], limit) for index in why}
    if max_size is not None:
        total = sum(e.bytes for i, e in enumerate(kept) if users.get(i, "-"))
        for _, index in ages:
            if total > max_size and index not in why:
                why[index] = f"above {output.size(max_size)} in all"
                users[index] = user_of(kept[index], limit)
                total -= 0 if users[index] else kept[index].bytes
    return [Candidate(kept[i], why[i], used, users[i]) for used, i in ages if i in why]


def _throw_away(
    going: list[Candidate], aside: list[inventory.Kept], limit: int
) -> list[removal.Removed]:
    """Delete, and return what became of each directory."""
    done = [removal.remove_identity(each.kept, limit) for each in going]
    gone = {each.directory for each in done if each.is_gone}
    return done + [
        removal.remove_folder(kept, FOREIGN) for kept in aside if kept.directory not in gone
    ]


def _document(
    found: list[Root], kept: list[inventory.Kept], chosen: list[Candidate],
    aside: list[inventory.Kept], done: list[removal.Removed], *, dry_run: bool,
) -> dict[str, Any]:  # fmt: skip
    rows = [
        {
            "identity": each.kept.identity, "directory": each.kept.directory, "why": each.why,
            "bytes": each.kept.bytes, "used": each.used, "in_use_by": each.user or None,
        }
        for each in chosen
    ]  # fmt: skip
    return {
        "schema": 1, "root": str(found[0].path), "roots": [str(root.path) for root in found],
        "dry_run": dry_run, "looked_at": len(kept), "chosen": rows,
        "set_aside": [each.directory for each in aside],
        "gone": [each.directory for each in done if each.is_gone],
        "bytes_gone": sum(each.bytes for each in done),
        "failed": [line for each in done for line in each.stayed],
    }  # fmt: skip


def _print(
    chosen: list[Candidate],
    aside: list[inventory.Kept],
    done: list[removal.Removed],
    *,
    dry_run: bool,
) -> None:
    going = [each for each in chosen if not each.user]
    for each in chosen:
        what = f"stays: in use by {each.user}" if each.user else each.why
        print(f"  {each.kept.identity[: output.SHORT]}  {output.size(each.kept.bytes):>10}  {what}")
    identities = {each.kept.directory for each in going}
    gone = [each for each in done if each.is_gone and each.directory in identities]
    print_stayed(done)
    number = len(going) if dry_run else len(gone)
    total = sum(e.kept.bytes for e in going) if dry_run else sum(e.bytes for e in done)
    verb = "would go" if dry_run else "gone"
    more = f", and what {output.plural(len(aside), 'identity', 'identities')} had set aside"
    many = output.plural(number, "identity", "identities")
    output.console().print(f"  {verb}: {many}, {output.size(total)}{more if aside else ''}")


def print_stayed(done: list[removal.Removed]) -> None:
    """Print what could not be deleted, each with its reason."""
    out = output.console()
    for each in done:
        if each.user:
            line = f"  {Path(each.directory).name[: output.SHORT]}  stays: in use by {each.user}"
            out.print(output.words(line), soft_wrap=True)
        for line in each.stayed:
            out.print(output.words(f"  NO  stays: {line}", "red"), soft_wrap=True)
