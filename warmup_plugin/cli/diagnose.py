# SPDX-License-Identifier: Apache-2.0
"""Why the last start was warm or not: its receipt, held against what is kept beside it.

Owns that judgement. Where a start found no table of its own identity, the nearest other identity
(the fewest factors that differ) names the factor. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cli import inventory, places
from warmup_plugin.cli.factor_text import Reason, reasons
from warmup_plugin.cli.load import read_identity, read_report
from warmup_plugin.cli.output import SHORT, CommandError, plural
from warmup_plugin.cli.receipts import tasks_tuned
from warmup_plugin.errors import IdentityError
from warmup_plugin.identity import Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss

Cause = Literal["warm", "adopted", "not shared", "file", "factor", "first", "incomplete"]


@dataclass(frozen=True)
class Verdict:
    """Why a start tuned, or that it did not. ``nearest``: the identity that ``factors`` is to."""

    receipt: str
    cause: Cause
    words: tuple[str, ...]
    nearest: str = ""
    factors: tuple[Reason, ...] = ()


def explain_start(path: Path, roots: list[places.Root], limit: int) -> Verdict:
    """Return why the start that wrote this receipt tuned, or did not.

    Raises:
        CommandError: it is no receipt.
    """
    report = read_report(path, limit)
    if isinstance(report, Miss):
        raise CommandError(f"{path}: {report.reason}")
    verdict = _verdict(path, report, roots, limit)
    words = _fleet_words(report)
    return replace(verdict, words=(*verdict.words, words)) if words else verdict


def _fleet_words(report: WarmupReport) -> str:
    """Return what the fleet gave this start, or why not; an empty string where none was asked."""
    if not report.fleet.state:
        return ""
    return " ".join(filter(None, (_gift(report), _check_words(report), _lease_words(report))))


def _gift(report: WarmupReport) -> str:
    told = report.fleet
    url, reason, bundle = told.url, told.reason, f"bundle {told.bundle[:SHORT]}"
    match told.state:
        case "fetched":
            return f"The fleet {url} gave {bundle}, {told.entries} entries."
        case "kept":
            return f"The fleet {url} has {bundle}, which an earlier start had fetched."
        case "absent":
            return f"The fleet {url} had no table of this identity."
        case "refused":
            return f"What the fleet {url} has was not used: {reason}."
    return f"The fleet {url} gave nothing: {reason}."


def _check_words(report: WarmupReport) -> str:
    """Return what the winners of the fleet came to that were timed; empty where none was."""
    timed = [row for row in report.fleet.checks if row.ms and row.default_ms]
    if not report.fleet.checks:
        return ""
    slower = "; ".join(
        f"{row.op} @ {row.bucket} takes {row.ms:.4g} ms, the default {row.default_ms:.4g} ms"
        for row in timed
        if row.is_slower
    )
    found = f", slower than FlashInfer's default: {slower}" if slower else ", none of them slower"
    failed = len(report.fleet.checks) - len(timed)
    left = f"; {failed} could not be timed" if failed else ""
    return f"Of its winners {len(timed)} were timed on this host{found}{left}."


def _lease_words(report: WarmupReport) -> str:
    """Return whose turn it was to tune for the fleet; an empty string where that was not asked."""
    told = report.fleet
    waited = f"waited {told.waited:.1f} s for {told.holder}, which tuned for the fleet"
    why = f": {told.lease_reason}" if told.lease_reason else ""
    words = {
        "held": f"This start tuned for the fleet{why}.",
        "adopted": "" if told.holder else "Another host had published it a moment before.",
        "free": "No other host tuned, and the role read tunes for itself alone.",
        "tried": "Another host has had no result for what was left, so this start tried it, too.",
        "over": "This start then tuned by itself.",
        "lost": "This start tuned for the fleet until another host took that over.",
        "failed": f"Whose turn it was to tune could not be asked{why}.",
    }
    before = f"It {waited}." if told.holder else ""
    return " ".join(filter(None, (before, words.get(told.lease, ""))))


def _verdict(path: Path, report: WarmupReport, roots: list[places.Root], limit: int) -> Verdict:
    tuned = tasks_tuned(report)
    if report.agreement != "certified":
        why = f"The ranks could not share a table ({report.agreement}): {report.reason}."
        return Verdict(str(path), "not shared", (why,))
    if not tuned and report.adopted_from:
        return _adopted(path, report, roots, limit)
    if not tuned:
        tasks = plural(report.tasks.get("seen", 0), "task")
        warm = f"It was warm: {tasks}, none of them tuned, {report.tactics_of_tasks} tactics timed."
        return Verdict(str(path), "warm", (warm,))
    return _why_tuned(path, report, roots, limit, tuned)


def _why_tuned(
    path: Path, report: WarmupReport, roots: list[places.Root], limit: int, tuned: int
) -> Verdict:
    has_entries = any(row.entries for row in report.read)
    spoilt = [row for row in report.read if row.reason and not row.entries]
    if spoilt and not has_entries:
        files = tuple(f"{row.path} could not be used: {row.reason}." for row in spoilt)
        return Verdict(str(path), "file", files)
    if has_entries:
        return Verdict(str(path), "incomplete", _incomplete(report, tuned))
    return _by_factor(path, report, roots, limit)


def _incomplete(report: WarmupReport, tuned: int) -> tuple[str, ...]:
    known = report.tasks.get("from_cache", 0)
    ops = sorted({row.op for row in report.winners})
    named = f": {', '.join(ops)}" if ops else ""
    were = "was" if tuned == 1 else "were"
    words = (
        f"Its table was there and answered {plural(known, 'task')}; {plural(tuned, 'task')} "
        f"{were} new{named}. The engine called what it had not called before: another engine "
        "version, a longer warm-up, or a start that was interrupted while it tuned."
    )
    return (words,)


def _adopted(path: Path, report: WarmupReport, roots: list[places.Root], limit: int) -> Verdict:
    took = [f"{plural(n, 'task')} from {source}" for source, n in report.adopted_from.items()]
    words = f"It tuned nothing: it took over {'; '.join(took)}."
    found = _by_factor(path, report, roots, limit)
    if found.cause != "factor" or any(row.entries for row in report.read):
        return Verdict(str(path), "adopted", (words,))
    return Verdict(str(path), "adopted", (words, *found.words), found.nearest, found.factors)


def _by_factor(path: Path, report: WarmupReport, roots: list[places.Root], limit: int) -> Verdict:
    mine = _identity(report, path, limit)
    if mine is None:
        return Verdict(str(path), "first", ("There was no table; its factors are not known.",))
    began = report.at - report.total_seconds
    nearest = nearest_to(mine, inventory.walk(roots), before=began, limit=limit)
    if nearest is None:
        words = "There was no table yet: no other identity is kept here, so it was a first start."
        return Verdict(str(path), "first", (words,))
    directory, found = nearest
    other = f"The nearest table is {Path(directory).name[:SHORT]}'s"
    many = "one factor differs" if len(found) == 1 else f"{len(found)} factors differ"
    return Verdict(
        str(path),
        "factor",
        (f"{_without_table(report)} {other}: {many}.",),
        directory,
        tuple(found),
    )


def _without_table(report: WarmupReport) -> str:
    """Return what a start without a table of its own did."""
    tuned = plural(tasks_tuned(report), "task")
    lent = sum(report.adopted_from.values())
    taken = f", {plural(lent, 'task')} taken over from others" if lent else ""
    return f"There was no table for this identity: {tuned} tuned{taken}."


def _identity(report: WarmupReport, path: Path, limit: int) -> Identity | None:
    try:
        if report.factors:
            return Identity(report.factors)
    except IdentityError:
        return None
    found = read_identity(path.parent.parent / IDENTITY_NAME, limit)
    return None if isinstance(found, Miss) else found


def nearest_to(
    mine: Identity, shelf: Iterable[inventory.Kept], *, before: float, limit: int
) -> tuple[str, list[Reason]] | None:
    """Return the directory that differs from an identity in the fewest factors, and those.

    Only of tables that were there ``before``, unix seconds; the latest of equally near ones.
    """
    best: tuple[tuple[int, float], str, list[Reason]] | None = None
    for kept in shelf:
        if kept.identity == mine.digest or not kept.tables:
            continue
        status = kept.files.get(IDENTITY_NAME)
        if status is None or status.st_mtime > before:
            continue
        other = read_identity(Path(kept.directory, IDENTITY_NAME), limit)
        if isinstance(other, Miss):
            continue
        found = reasons(other, mine)
        rank = (len(found), -kept.changed)
        if best is None or rank < best[0]:
            best = (rank, kept.directory, found)
    return None if best is None else best[1:]


def document(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON values."""
    return {
        "schema": 1,
        "receipt": verdict.receipt,
        "cause": verdict.cause,
        "words": " ".join(verdict.words),
        "nearest": verdict.nearest or None,
        "factors": [{"factor": r.factor, "was": r.a, "is": r.b, "words": r.words}
                    for r in verdict.factors],
    }  # fmt: skip
