# SPDX-License-Identifier: Apache-2.0
"""The numbers of a receipt as people ask for them: who waited, where time went, what it was worth.

Owns these sums; `report.py` prints them, `report_html.py` draws them. Pure, but that the
winners of an earlier start are read from the manifest that the receipt names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from warmup_plugin.cache.file_key import shapes_of
from warmup_plugin.cache.gains import gain, mean_gain, serving_ms
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.table import Entry
from warmup_plugin.cli import output
from warmup_plugin.cli.load import read_table
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.observability.report_rows import Wait
from warmup_plugin.runtime.safe_json import Miss


@dataclass(frozen=True)
class Win:
    """One tuned task: milliseconds of the winner and of FlashInfer's default, None if not timed."""

    op: str
    size: str
    ms: float | None
    default_ms: float | None
    seconds: float | None = None
    rank: int | None = None

    @property
    def gain(self) -> float | None:
        """Return how many times as fast as the default the winner is.

        None where one of both is no time: receipts may have what a clock gone wrong has said.
        """
        return gain(self.ms, self.default_ms)


@dataclass(frozen=True)
class OpSum:
    """One op: tasks, seconds spent on tuning them, geometric mean of the gains."""

    op: str
    tasks: int
    seconds: float | None
    gain: float | None
    best: float | None


def wins_of(report: WarmupReport, limit: int) -> list[Win]:
    """Return the tuned tasks: this start's own, else those of the table that it was served from."""
    if report.winners:
        return [
            Win(row.op, row.bucket, row.ms, row.default_ms, row.seconds, row.rank)
            for row in report.winners
        ]
    file = read_table(Path(report.path), limit) if report.path else None
    if file is None or not isinstance(file.manifest, Manifest):
        return []
    entries = {} if isinstance(file.table, Miss) else file.table.entries
    return [
        _of_record(record, [entries[k] for each in record.keys for k in each if k in entries])
        for record in file.manifest.tasks.values()
        if record.outcome == "tuned" and record.keys and record.keys[0]
    ]


def _of_record(record: TaskRecord, found: list[Entry]) -> Win:
    entry = found[0] if found else None
    size = shapes_of(record.keys[0][0]).partition("x")[0]
    ms = serving_ms(entry, record.ms, record.default_ms)
    return Win(record.op, size, ms, record.default_ms, rank=record.rank)


def by_op(wins: Iterable[Win]) -> list[OpSum]:
    """Return the sums, the op that took the longest first."""
    groups: dict[str, list[Win]] = {}
    for win in wins:
        groups.setdefault(win.op, []).append(win)
    found = []
    for op, group in groups.items():
        gains = [win.gain for win in group if win.gain]
        seconds = [win.seconds for win in group if win.seconds is not None]
        spent = sum(seconds) if seconds else None
        found.append(OpSum(op, len(group), spent, mean_gain(gains), max(gains, default=None)))
    return sorted(found, key=lambda row: (-(row.seconds or 0.0), row.op))


def who_waited(row: Wait) -> str:
    """Return one wait in words."""
    last = row.for_whom
    reason = f"rank {last}" if isinstance(last, int) else f"another engine ({last})"
    return f"{output.name_ranks(row.ranks)} waited {row.seconds:.2f} s for {reason} at {row.at}"
