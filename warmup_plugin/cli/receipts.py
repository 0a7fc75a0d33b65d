# SPDX-License-Identifier: Apache-2.0
"""Which receipts the starts below some cache roots have left, and which of them is the last.

Owns that choice, and whether a receipt tells of a start that tuned. Reads only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from warmup_plugin.cache.store import REPORTS
from warmup_plugin.cli import inventory, places
from warmup_plugin.cli.load import read_report
from warmup_plugin.cli.output import CommandError, note
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss


def last_receipt(roots: list[places.Root], limit: int, *, cold: bool = False) -> Path:
    """Return the newest receipt that can be read, rank 0's where several are as new.

    ``cold``: the newest of a start that has tuned.

    Raises:
        CommandError: there is none.
    """
    where = ", ".join(str(root.path) for root in roots) or "any cache root"
    return newest(receipts(roots), limit, of=f"below {where}", cold=cold)


def newest(paths: Iterable[Path], limit: int, *, of: str, cold: bool = False) -> Path:
    """Return the newest of these receipts that can be read; a note names those that cannot.

    Raises:
        CommandError: there is none.
    """
    ordered = sorted(paths, key=_recency, reverse=True)
    unread = 0
    for path in ordered:
        report = read_report(path, limit)
        if isinstance(report, Miss):
            note(f"{path}: {report.reason}; an earlier receipt is looked for")
            unread += 1
        elif not cold or is_cold(report):
            return path
    if unread:
        raise CommandError(f"no receipt {of} can be read")
    if ordered:
        raise CommandError(f"no start that tuned has left a receipt {of}: all were warm")
    raise CommandError(f"no receipt {of}: no start has written one there yet")


def receipts(roots: list[places.Root]) -> list[Path]:
    """Return every receipt below these roots, the oldest first."""
    return sorted(
        (path for kept in inventory.walk(roots) for path in receipts_of(kept)), key=_recency
    )


def is_cold(report: WarmupReport) -> bool:
    """Return whether a start has tuned."""
    return tasks_tuned(report) > 0


def tasks_tuned(report: WarmupReport) -> int:
    """Return how many tasks a start has tuned, or has had from ranks that tuned them."""
    if report.winners:
        return len(report.winners)
    return sum(report.tasks.get(name, 0) for name in ("tuned", "received", "default"))


def _recency(path: Path) -> tuple[int, bool, float]:
    try:
        changed = path.stat().st_mtime
    except OSError:
        changed = 0.0
    return int(changed), "_rank0." in path.name, changed


def receipts_of(kept: inventory.Kept) -> Iterator[Path]:
    """Yield the receipts beside the tables of one identity, in any order."""
    if REPORTS in kept.folders:
        with contextlib.suppress(OSError):
            yield from Path(kept.directory, REPORTS).glob("*.json")
