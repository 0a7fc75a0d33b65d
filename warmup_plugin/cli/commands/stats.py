# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin stats`: all starts whose receipts are kept: hits, misses and why, time saved.

Owns these sums. Receipts are kept in small numbers (WARMUP_PLUGIN_REPORTS for each identity), so
this is the recent past. What a warm start has saved is what the last start of its identity that
tuned took for it; where that one's receipt is gone the saving is not known, and not counted.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmup_plugin.cache.gains import plausible
from warmup_plugin.cli import output, places, receipts
from warmup_plugin.cli.load import read_report
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

HELP = "count starts: how many were warm, why the others were not, time saved"
DESCRIPTION = """\
Sum up the starts whose receipts are kept on this machine: how many were warm,
why the others tuned, how long they took, and what warm starts have saved. Each
identity keeps its last WARMUP_PLUGIN_REPORTS receipts, so this is the recent
past. Modes that write no receipts are not seen."""
EXAMPLES = """\
examples:
  warmup-plugin stats
  warmup-plugin stats --root /models/cache
  warmup-plugin stats --json | jq .warm
"""

_WHY = {
    "no table": "there was no table of their identity",
    "incomplete": "their table did not answer all",
    "file": "their table could not be used",
    "not shared": "the ranks could not share a table",
}


@dataclass
class Sums:
    """What the receipts come to. ``unknown``: warm starts whose saving is not known any more."""

    starts: int = 0
    warm: int = 0
    adopted: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    tuned_s: float = 0.0
    warm_s: float = 0.0
    saved_s: float = 0.0
    unknown: int = 0
    first: float = math.inf
    latest: float = 0.0
    unread: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(*, root: Path | None, engine_root: Path | None, json: bool) -> int:
    """Sum up and print."""
    settings = Settings.from_env()
    roots = places.find(root, engine_root, settings, os.environ)
    reports, unread = list[WarmupReport](), 0
    for path in receipts.receipts(roots):
        found = read_report(path, settings.table_bytes)
        if isinstance(found, Miss):
            output.note(f"{path}: {found.reason}; not counted")
            unread += 1
        elif found.rank == 0:  # other nodes' first ranks write one of the same start
            reports.append(found)
    sums = summed(sorted(reports, key=lambda report: report.at))
    sums.unread = unread
    if json:
        output.print_json(_document(sums))
    else:
        _print(sums, roots)
    return 0


def summed(reports: Iterable[WarmupReport]) -> Sums:
    """Return the sums of starts, given the oldest first."""
    sums, took = Sums(), dict[str, float]()
    for report in reports:
        sums.starts += 1
        sums.first, sums.latest = min(sums.first, report.at), max(sums.latest, report.at)
        cause = cause_of(report)
        if cause not in ("warm", "adopted"):
            sums.misses[cause] += 1
            spent = tuning_s(report)
            sums.tuned_s += spent
            took[report.identity] = max(spent, took.get(report.identity, 0.0))
            continue
        sums.warm += 1
        sums.adopted += cause == "adopted"
        sums.warm_s += plausible(report.total_seconds) or 0.0
        if report.identity in took:
            sums.saved_s += took[report.identity]
        else:
            sums.unknown += 1
    return sums


def cause_of(report: WarmupReport) -> str:
    """Return why a start tuned, or that it was warm; `explain` goes into it."""
    if report.agreement != "certified":
        return "not shared"
    if not receipts.is_cold(report):
        return "adopted" if report.adopted_from else "warm"
    if any(row.entries for row in report.read):
        return "incomplete"
    return "file" if any(row.reason for row in report.read) else "no table"


def tuning_s(report: WarmupReport) -> float:
    """Return how long a start has tuned: as its slowest rank has, since all wait for that one."""
    spans = [sum(plausible(s) or 0.0 for name, _, s in row.steps if name == "tune")
             for row in report.ranks]  # fmt: skip
    return max(spans, default=plausible(report.seconds.get("tune")) or 0.0)


def _document(sums: Sums) -> dict[str, Any]:
    return {
        "schema": 1, "starts": sums.starts, "warm": sums.warm, "adopted": sums.adopted,
        "misses": dict(sums.misses), "tuned_seconds": sums.tuned_s, "warm_seconds": sums.warm_s,
        "saved_seconds": sums.saved_s, "saving_unknown": sums.unknown, "unread": sums.unread,
        "first": sums.first if sums.starts else None, "last": sums.latest or None,
    }  # fmt: skip


def _print(sums: Sums, roots: list[places.Root]) -> None:
    out = output.console()
    if not sums.starts:
        where = ", ".join(str(root.path) for root in roots)
        out.print(output.words(f"  No start has left a receipt below {where}."), soft_wrap=True)
        return
    dates = f"{_date(sums.first)} to {_date(sums.latest)}"
    lent = f", {sums.adopted} of them with winners taken over" if sums.adopted else ""
    rows = [
        ("starts", f"{sums.starts}, {dates}"),
        ("warm", f"{sums.warm} ({sums.warm / sums.starts:.0%}){lent}"),
        ("tuned", f"{sums.starts - sums.warm}, {sums.tuned_s:.1f} s in all"),
        *_reasons(sums.misses),
        ("saved", _saved(sums)),
    ]
    output.print_rows(out, rows)


def _reasons(misses: Mapping[str, int]) -> list[tuple[str, str]]:
    ordered = sorted(misses.items(), key=lambda item: (-item[1], item[0]))
    return [("", f"{number}: {_WHY[cause]}") for cause, number in ordered]


def _saved(sums: Sums) -> str:
    known = f"{sums.saved_s:.1f} s of tuning"
    if not sums.unknown:
        return known
    return f"{known}; of {output.plural(sums.unknown, 'warm start')} it is not known any more"


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
