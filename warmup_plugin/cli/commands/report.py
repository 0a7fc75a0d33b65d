# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin report`: what a start did: where its time went, who waited, whether tuning paid.

Owns the words; `report_html.py` makes the page. Reads a receipt, writes nothing but the page.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_plugin.cache.gains import mean_gain
from warmup_plugin.cli import named, output, places, receipts, report_stats
from warmup_plugin.cli.archive import write_whole
from warmup_plugin.cli.load import read_report
from warmup_plugin.cli.output import CommandError
from warmup_plugin.observability.report_rows import FileRead, RankStats, Span
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from warmup_plugin.observability.report import WarmupReport

HELP = "say where a start's time went, who waited, and whether tuning paid"
DESCRIPTION = """\
Tell from a receipt where a start's time went, by rank and step, who waited for
whom, what came from where, and what the winners gain over FlashInfer's
defaults. Without RECEIPT the last one. --html makes one page of it that needs
no network."""
EXAMPLES = """\
examples:
  warmup-plugin report                           the last start
  warmup-plugin report --only waits              who waited for whom
  warmup-plugin report reports/20261120T091545.120Z_rank0.json
  warmup-plugin report --html start.html         needs warmup-plugin[report]
"""
PARTS = ("steps", "sources", "waits", "gains")
_MOST_WAITS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "receipt", metavar="RECEIPT", nargs="?", help="or an identity's first digits; default: last"
    )
    parser.add_argument("--cold", action="store_true", help="the last start that has tuned")
    parser.add_argument("--only", choices=PARTS, help="print one part")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, receipt: str | None, cold: bool, only: str | None, html: Path | None, root: Path | None,
    engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Read and print, or draw."""
    settings = Settings.from_env()
    if receipt is not None and cold:
        raise CommandError("name a receipt, or --cold, not both", code=CommandError.USAGE)
    roots = places.offered(root, engine_root, settings, os.environ)
    if receipt is None:
        path = receipts.last_receipt(roots, settings.table_bytes, cold=cold)
    else:
        path = named.receipt(receipt, roots, settings.table_bytes)
    found = read_report(path, settings.table_bytes)
    if isinstance(found, Miss):
        raise CommandError(f"{path}: {found.reason}")
    wins = report_stats.wins_of(found, settings.table_bytes)
    if html is not None:
        from warmup_plugin.cli import report_html

        write_whole(html, report_html.render(found, wins).encode())
    if json:
        output.print_json(_document(path, found, wins, html))
    elif html is not None:
        output.print_path(output.console(), html)
    else:
        _print(output.console(), path, found, wins, only=only)
    return 0


def _document(
    path: Path, report: WarmupReport, wins: list[report_stats.Win], html: Path | None
) -> dict[str, Any]:
    gains = [win.gain for win in wins if win.gain]
    return {
        "schema": 1,
        "receipt": str(path),
        "page": str(html) if html else None,
        "report": report.to_json(),
        "ops": [asdict(row) for row in report_stats.by_op(wins)],
        "over_default": mean_gain(gains),
    }


def _print(
    out: Console,
    path: Path,
    report: WarmupReport,
    wins: list[report_stats.Win],
    *,
    only: str | None,
) -> None:
    output.print_path(out, path)
    if only is None:
        out.print(output.words(f"  {report.line()}"))
    if only in (None, "steps"):
        _print_steps(out, report)
    if only in (None, "sources"):
        _print_sources(out, report)
    if only in (None, "waits"):
        _print_waits(out, report)
    if only in (None, "gains"):
        _print_gains(out, report, wins)


def _print_waits(out: Console, report: WarmupReport) -> None:
    out.print()
    waits = sorted(report.waited, key=lambda row: -row.seconds)
    rows = [("waited", report_stats.who_waited(row)) for row in waits[:_MOST_WAITS]]
    output.print_rows(out, rows or [("Nobody waited for longer than 0.01 s.",)])


def _print_steps(out: Console, report: WarmupReport) -> None:
    out.print()
    ranks = report.ranks or (RankStats(report.rank, _own_steps(report)),)
    steps = list(dict.fromkeys(step.name for row in ranks for step in row.steps))
    header = ("seconds", *(f"rank {row.rank}" for row in ranks[:8]))
    rows = []
    for step in steps:
        spent = [sum(s for name, _, s in row.steps if name == step) for row in ranks[:8]]
        rows.append((step, *(f"{seconds:.3f}" for seconds in spent)))
    output.print_rows(out, rows, header=header, right=header[1:])
    if len(ranks) > 8:  # noqa: PLR2004  # so many fit
        out.print(output.words(f"  8 of {len(ranks)} ranks; --json has all", "dim"))


def _own_steps(report: WarmupReport) -> tuple[Span, ...]:
    return tuple(Span(step, 0.0, seconds) for step, seconds in report.seconds.items())


def _print_sources(out: Console, report: WarmupReport) -> None:
    out.print()
    rows = [(("read" if row.entries else "not used"), _of_file(row)) for row in report.read]
    rows += [("adopted", f"{output.plural(number, 'task')} from {source}")
             for source, number in report.adopted_from.items()]  # fmt: skip
    rows += [("written", path) for path in report.published]
    moved = sum(row.bytes_sent for row in report.ranks) or report.bytes_sent
    where = f", met on: {report.met_on}" if report.met_on else ""
    rows.append(("moved", f"{output.size(moved)} between ranks{where}"))
    output.print_rows(out, rows)


def _of_file(row: FileRead) -> str:
    entries = output.plural(row.entries, "entry", "entries")
    return f"{row.path}: {entries}{', ' if row.reason else ''}{row.reason}"


def _print_gains(out: Console, report: WarmupReport, wins: list[report_stats.Win]) -> None:
    out.print()
    if not wins:
        out.print("  No task of this start's table has been timed.")
        return
    rows = [
        (row.op, str(row.tasks), _or_dash(row.seconds, "{:.2f}"), _or_dash(row.gain, "{:.2f} x"),
         _or_dash(row.best, "{:.2f} x"))
        for row in report_stats.by_op(wins)
    ]  # fmt: skip
    header = ("op", "tuned", "seconds", "over default", "best")
    output.print_rows(out, rows, header=header, right=header[1:])
    gain = mean_gain([win.gain for win in wins if win.gain])
    when = "in this start" if report.winners else "by the start that wrote its table"
    if gain is None:
        out.print(f"  {len(wins)} tasks tuned {when}; the default was raced in none of them.")
    else:
        out.print(
            f"  {len(wins)} tasks tuned {when}: {gain:.2f} x the default's speed in the mean."
        )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
