# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin status`: who tunes on this machine's roots now, and how far each rank is.

Owns the question. The answer stands in what a start keeps while it tunes: the lease and the
journals of its ranks; and in the progress file, where a setting names one. Changes nothing, and
waits only with --watch.
"""

from __future__ import annotations

import argparse
import contextlib
import json as json_
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmup_plugin.cache.journal import read_journals
from warmup_plugin.cache.lease import holder
from warmup_plugin.cache.paths import JOURNAL
from warmup_plugin.cli import inventory, output, places
from warmup_plugin.cli.output import CommandError
from warmup_plugin.settings import Settings

HELP = "say who tunes now, and how far it is"
DESCRIPTION = """\
Say which starts tune now for an identity that is kept on this machine, which
tasks their ranks have in hand, and what the progress file says where
WARMUP_PLUGIN_PROGRESS_FILE names one. A start that tunes nothing keeps no
journal: only its progress file tells of it."""
EXAMPLES = """\
examples:
  warmup-plugin status
  warmup-plugin status --watch 2                  again every 2 s, until ^C
  warmup-plugin status --json | jq .starts
"""
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Rank:
    """One rank that tunes: its process, what it has done, its current task, and since when."""

    rank: str
    process: int
    host: str
    done: int
    task: str | None
    silent_s: float


@dataclass(frozen=True)
class Start:
    """A start that tunes for one identity; ``holder``: the one that replicas wait for."""

    identity: str
    directory: str
    holder: str
    ranks: tuple[Rank, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--watch", metavar="S", type=_seconds, help="say it again every S seconds, until ^C"
    )
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (found := float(text)) < 86_400:  # noqa: PLR2004  # a day
            return found
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0")


def run(*, watch: float | None, root: Path | None, engine_root: Path | None, json: bool) -> int:
    """Look and print."""
    if watch is not None and json:
        message = "--json prints one document: without --watch"
        raise CommandError(message, code=CommandError.USAGE)
    settings = Settings.from_env()
    roots = places.find(root, engine_root, settings, os.environ)
    while True:
        starts, progress = list(running(roots, settings.table_bytes)), _progress(settings)
        if json:
            rows = [asdict(start) for start in starts]
            output.print_json({"schema": 1, "starts": rows, "progress": progress})
        else:
            _print(starts, progress)
        if watch is None:
            return 0
        time.sleep(watch)


def running(roots: list[places.Root], limit: int) -> Iterator[Start]:
    """Yield the starts that tune now."""
    for kept in inventory.walk([root for root in roots if root.kind != "layer"]):
        if JOURNAL not in kept.folders:
            continue
        directory = Path(kept.directory)
        ranks = tuple(
            Rank(
                past.path.stem.rpartition(".")[2], past.opened.card.pid, past.opened.host,
                len(past.found), past.in_hand.label if past.in_hand else None, _age(past.path),
            )
            for past in read_journals(directory, limit)
            if not past.is_dead
        )  # fmt: skip
        by = holder(directory)
        if ranks or by:
            yield Start(kept.identity, kept.directory, by, ranks)


def _age(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _progress(settings: Settings) -> dict[str, Any] | None:
    """Return what the progress file says, None where there is none."""
    if settings.progress_file is None:
        return None
    try:
        with settings.progress_file.open("rb") as file:
            found = json_.loads(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        output.note(f"{settings.progress_file}: {error}")
        return None
    return found if isinstance(found, dict) else None


def _print(starts: list[Start], progress: dict[str, Any] | None) -> None:
    out = output.console()
    if progress is not None:
        said = [(str(name), str(value)) for name, value in progress.items() if name != "schema"]
        output.print_rows(out, said)
    if not starts:
        out.print("  Nobody tunes here now.")
    for start in starts:
        by = f", {start.holder}" if start.holder else ""
        out.print(output.words(f"{start.identity[: output.SHORT]}{by}", "bold"), soft_wrap=True)
        rows = [
            (f"rank {each.rank}", output.plural(each.done, "task") + " tuned",
             f"{each.task or 'between two tasks'}, for {each.silent_s:.0f} s")
            for each in start.ranks
        ]  # fmt: skip
        output.print_rows(out, rows or [("its ranks have tuned nothing yet", "", "")])
