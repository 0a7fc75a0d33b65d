# SPDX-License-Identifier: Apache-2.0
"""What is going on, while it goes on: a line that moves on a terminal, else one line per step.

Owns the progress of a start on standard error. Shows rank 0: the others wait for it or do the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from warmup_plugin.cli import output
from warmup_plugin.engines.embedded.progress import Progress, parse

if TYPE_CHECKING:
    from rich.console import Console

_WORDS = {
    "start": "ranks load torch and FlashInfer",
    "survey": "the forward runs, calls are recorded",
    "tune": "the ranks tune",
}


@contextlib.contextmanager
def ticking(name: str) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of the start of that name; yields what `launch` takes."""
    if output.is_quiet():
        yield lambda _rank, _line: None
        return
    err = output.console(err=True)
    with _bar(err, name) if err.is_interactive else _lines(err, name) as show:
        show(Progress("start"))

        def progress(rank: int, line: str) -> None:
            told = parse(line)
            if rank == 0 and told is not None:
                show(told)

        yield progress


@contextlib.contextmanager
def _bar(err: Console, name: str) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    text, task = "{task.description}", "{task.fields[task]}"
    columns = (SpinnerColumn(), TextColumn(text), BarColumn(bar_width=20), TextColumn(task))
    with Bar(*columns, console=err, transient=True) as bar:
        row = bar.add_task(f"{name} start", total=None, task="")

        def show(told: Progress) -> None:
            of = f" {told.done + 1} of {told.total}" if told.total else ""
            bar.update(
                row,
                description=f"{name} start: {_WORDS.get(told.step, told.step)}{of}",
                completed=told.done,
                total=told.total or None,
                task=told.task,
            )

        yield show


@contextlib.contextmanager
def _lines(err: Console, name: str) -> Iterator[Callable[[Progress], None]]:
    last = ""

    def show(told: Progress) -> None:
        nonlocal last
        if told.step != last:
            of = f" {output.plural(told.total, 'task')}" if told.total else ""
            err.print(f"{name} start: {_WORDS.get(told.step, told.step)}{of}")
        last = told.step

    yield show
