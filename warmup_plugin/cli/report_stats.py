# SPDX-License-Identifier: Apache-2.0
"""The numbers of a receipt as people ask for them: who waited, where time went, what it was worth.

Owns these sums; `report.py` prints them, `report_html.py` draws them. Pure, but that the
winners of an earlier start are read from the manifest that the receipt names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmup_plugin.cache.file_key import shapes_of
from warmup_plugin.cache.gains import gain, mean_gain
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cli.load import read_table
from warmup_plugin.observability.report import WarmupReport


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
            Win(
                str(r["op"]),
                str(r.get("bucket", "")),
                r.get("ms"),
                r.get("default_ms"),
                r.get("seconds"),
                r.get("rank"),
            )
            for r in report.winners
        ]
    manifest = read_table(Path(report.path), limit).manifest if report.path else None
    records = manifest.tasks.values() if isinstance(manifest, Manifest) else ()
    return [
        Win(r.op, shapes_of(r.keys[0][0]).partition("x")[0], r.ms, r.default_ms, rank=r.rank)
        for r in records
        if r.outcome == "tuned" and r.keys and r.keys[0]
    ]


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


def who_waited(row: Mapping[str, Any]) -> str:
    """Return one wait in words."""
    ranks = row["ranks"]
    is_run = len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1  # noqa: PLR2004  # a range
    named = f"{ranks[0]}-{ranks[-1]}" if is_run else ", ".join(map(str, ranks))
    waiting = f"ranks {named}" if len(ranks) > 1 else f"rank {named}"
    last = row["for"]
    reason = f"rank {last}" if isinstance(last, int) else f"another engine ({last})"
    return f"{waiting} waited {row['seconds']:.2f} s for {reason} at {row['at']}"
