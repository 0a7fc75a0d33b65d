# SPDX-License-Identifier: Apache-2.0
"""Both starts side by side, one column per rank: the demo's table and its verdict.

Owns the look of the two, at any width: where the ranks do not fit beside each other, those with the
same counts share a column, and what still does not fit goes below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from warmup_plugin.cache.table import Table
from warmup_plugin.cli import output
from warmup_plugin.cli.demo_run import Check, Ranks, TwoStarts, calls_left_alone
from warmup_plugin.engines.embedded import EngineConfig, RankResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_CELL, _GAP, _INDENT = 7, 4, 2
_AXES = ("tp", "pp", "dp", "ep")
_ALWAYS = ("from_cache", "tuned", "received")
_SELDOM = ("adopted", "default", "unshared")
_LABELS = {"from_cache": "from cache", "tuned": "tuned here"}


@dataclass(frozen=True)
class Row:
    """One measure: its label and its value on ranks that share a column, as text."""

    label: str
    value: Callable[[Ranks], str]
    style: Callable[[str], str] = lambda text: "dim" if text in ("0", "-") else ""


@dataclass(frozen=True)
class Column:
    """Ranks whose counts are equal in both starts; mostly one."""

    cold: Ranks
    warm: Ranks


def print_starts(out: Console, found: TwoStarts) -> None:
    """Print the table, what is odd about it, and the verdict."""
    _print_title(out, found)
    rows = list(_rows(found))
    label = max(len(row.label) for row in rows) + _INDENT
    fit = max(1, (out.width - label - _GAP) // (2 * _CELL))
    columns = [Column([cold], [warm]) for cold, warm in zip(found.cold, found.warm, strict=True)]
    if len(columns) > fit:
        columns = _joined(found)
    per_block = -(-len(columns) // -(-len(columns) // fit))  # blocks of about the same width
    for first in range(0, len(columns), per_block):
        block = columns[first : first + per_block]
        _print_block(out, found.config, rows, label, block)
    _print_remarks(out, found, is_joined=len(columns) < len(found.cold))
    _print_verdict(out, found)


def _joined(found: TwoStarts) -> list[Column]:
    """Return a column for each set of ranks that count the same."""
    groups: dict[str, list[int]] = {}
    for index, pair in enumerate(zip(found.cold, found.warm, strict=True)):
        counts = [(rank.report.tasks, rank.counts, rank.report.certificate) for rank in pair]
        groups.setdefault(repr(counts), []).append(index)
    return [
        Column([found.cold[i] for i in group], [found.warm[i] for i in group])
        for group in groups.values()
    ]


def _print_title(out: Console, found: TwoStarts) -> None:
    sizes = {axis: getattr(found.config, axis) for axis in _AXES}
    layout = " x ".join(f"{axis.upper()}{size}" for axis, size in sizes.items() if size > 1)
    ranks = output.plural(found.config.world_size, "rank")
    report = found.cold[0].report
    out.print(
        f"{ranks}{f' ({layout})' if layout else ''} on the CPU, FlashInfer "
        f"{report.flashinfer_version or '?'}, strategy {report.strategy}"
    )
    out.print()


def _rows(found: TwoStarts) -> Iterator[Row]:
    everybody = (*found.cold, *found.warm)
    counted = {name for rank in everybody for name, n in rank.report.tasks.items() if n}
    yield Row("tasks", lambda ranks: str(ranks[0].report.tasks.get("seen", 0)))
    for name in (*_ALWAYS, *(name for name in _SELDOM if name in counted)):
        yield Row(f"  {_LABELS.get(name, name)}", _task_count(name))
    yield from _measured("tactics timed", "profile_single_kernel", everybody)
    yield from _measured("inputs synthesised", "prepare_input_tensors", everybody)
    yield Row("certificate", lambda ranks: ranks[0].report.certificate[: _CELL - 1] or "-")
    yield Row("seconds", lambda ranks: f"{max(r.report.total_seconds for r in ranks):.2f}")
    for step in dict.fromkeys(step for rank in everybody for step in rank.report.seconds):
        yield Row(f"  {step}", _seconds(step), lambda _text: "dim")


def _task_count(name: str) -> Callable[[Ranks], str]:
    return lambda ranks: str(ranks[0].report.tasks.get(name, 0))


def _measured(label: str, function: str, everybody: Ranks) -> Iterator[Row]:
    """Yield the calls of tasks, and those of ops left to themselves where there are any."""

    def of_tasks(ranks: Ranks) -> str:
        calls = ranks[0].counts.get(function)
        return "-" if calls is None else str(calls - calls_left_alone(ranks[0], function))

    yield Row(label, of_tasks, _zero_is_the_point)
    if any(calls_left_alone(rank, function) for rank in everybody):
        yield Row("  left alone", lambda ranks: str(calls_left_alone(ranks[0], function)))


def _seconds(step: str) -> Callable[[Ranks], str]:
    def slowest(ranks: Ranks) -> str:
        found = [rank.report.seconds[step] for rank in ranks if step in rank.report.seconds]
        return f"{max(found):.2f}" if found else "-"

    return slowest


def _zero_is_the_point(text: str) -> str:
    return "bold green" if text == "0" else ""


def _print_block(
    out: Console, config: EngineConfig, rows: list[Row], label: int, columns: Sequence[Column]
) -> None:
    width = _CELL * len(columns)
    heads = "".join(f"{name:>{width + _GAP}}" for name in ("cold start", "warm start"))
    out.print(output.words(" " * (label - _GAP) + heads, "bold"))
    for name, cells in _coordinates(config, columns):
        numbers = "".join(f"{cell:>{_CELL}}" for cell in cells)
        line = f"{'  ' + name:<{label}}{numbers}{' ' * _GAP}{numbers}"
        out.print(output.words(line, "bold"))
    out.print(output.words("  " + "-" * (label - _INDENT + 2 * width + _GAP), "dim"))
    for row in rows:
        out.print(_line(row, label, columns))
    out.print()


def _coordinates(
    config: EngineConfig, columns: Sequence[Column]
) -> Iterator[tuple[str, list[str]]]:
    ranks = [[rank.rank for rank in column.cold] for column in columns]
    yield "rank", [_span(numbers) for numbers in ranks]
    axes = [axis for axis in _AXES if getattr(config, axis) > 1]
    for axis in axes if len(axes) > 1 else ():
        name = f"{axis}_rank"
        yield (
            f"  {axis}",
            [_span([getattr(config.place(n), name) for n in numbers]) for numbers in ranks],
        )


def _span(numbers: Sequence[int]) -> str:
    """Return numbers as a range, those of a gap as a list."""
    found = sorted(set(numbers))
    if len(found) > 1 and found[-1] - found[0] == len(found) - 1:
        return f"{found[0]}-{found[-1]}"
    return ",".join(map(str, found))


def _line(row: Row, label: int, columns: Sequence[Column]) -> Text:
    line = output.words(f"{'  ' + row.label:<{label}}")
    for index, start in enumerate(("cold", "warm")):
        line.append(" " * (_GAP * index))
        for column in columns:
            value = row.value(getattr(column, start))
            line.append(f"{value:>{_CELL}}", style=row.style(value))
    return line


def _print_remarks(out: Console, found: TwoStarts, *, is_joined: bool) -> None:
    everybody = (*found.cold, *found.warm)
    remarks = ["tactics, inputs: calls of FlashInfer's own methods, counted from outside"]
    if is_joined:
        remarks.append("ranks with equal counts share a column; seconds are the slowest one's")
    passed = {op: why for rank in everybody for op, why in rank.report.passed_through.items()}
    remarks += [f"{op} is left to itself: {why}" for op, why in passed.items()]
    remarks += dict.fromkeys(remark for rank in everybody for remark in _odd(rank))
    output.print_rows(out, [(output.words(remark, "dim"),) for remark in remarks])
    out.print()


def _odd(rank: RankResult) -> Iterator[str]:
    yield from rank.report.warnings
    yield from (f"not shared: {task} ({why})" for task, why in rank.report.unshared.items())


def _print_verdict(out: Console, found: TwoStarts) -> None:
    for line in output.fold_path(found.table.path, out.width - _INDENT).splitlines():
        out.print(" " * _INDENT + line, soft_wrap=True)
    out.print()
    for checks in filter(None, (found.checks, found.clauses)):
        rows = [
            (_yes_or_no(check), output.words(check.name, "bold"), check.words) for check in checks
        ]
        output.print_rows(out, rows)
        out.print()
    if found.is_kept:
        out.print(f"  warmup-plugin show {found.table.path}", soft_wrap=True)
    elif isinstance(found.table.table, Table):
        out.print(output.words("  The table went with its temporary root; --keep keeps it.", "dim"))


def _yes_or_no(check: Check) -> Text:
    return output.words("yes", "green") if check.holds else output.words("NO", "bold red")
