# SPDX-License-Identifier: Apache-2.0
"""What the verbs print with: a console, a JSON document, rows of words, a note, an error.

Owns how things look, once: results go to standard output; progress, notes and errors to standard
error; nothing is coloured, wrapped or cut where the output is no terminal. Refuses markup: the
names of ops hold brackets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    Cell = str | Text

#: So many digits of a sha256 tell two apart for people.
SHORT = 12

_INDENT, _NARROWEST = 2, 20
#: Where nobody watches, a line is as long as it is: who reads it may search it.
_ENDLESS = 10_000
#: -1 after ``--quiet``, 1 after ``--verbose``; set once, before a verb runs.
_loudness = 0


def set_loudness(level: int) -> None:
    """Say how much is told beside the answer itself."""
    global _loudness  # noqa: PLW0603  # of the process, as its standard error is
    _loudness = level


def is_quiet() -> bool:
    """Return whether only the answer and errors are asked for."""
    return _loudness < 0


def is_verbose() -> bool:
    """Return whether more is asked for than the answer needs."""
    return _loudness > 0


class CommandError(Exception):
    """The command cannot do what it was asked; `detail` is for --debug."""

    FAILED: ClassVar = 1
    USAGE: ClassVar = 2

    def __init__(self, message: str, *, code: int = FAILED, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


def console(*, err: bool = False, folded: bool = False) -> Console:
    """Return a console on standard output or standard error as they are now.

    ``folded``: as wide as a terminal also where there is none, for what stands side by side.
    """
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, as if the command had failed

    found = Piped(stderr=err, markup=False, highlight=False, emoji=False)
    if not folded and not found.is_terminal and not os.environ.get("COLUMNS"):
        found.width = _ENDLESS
    return found


def note(text: str) -> None:
    """Say on standard error what does not keep the command from its answer."""
    if not is_quiet():
        print(f"warmup-plugin: note: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """Return a text in which what could steer a terminal is spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_json(document: object) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def words(text: str, style: str = "") -> Text:
    """Return styled text. What could steer a terminal, in a file from anywhere, is spelled out."""
    from rich.text import Text

    return Text(printable(text), style)


def print_path(out: Console, path: Path) -> None:
    """Print a path on a line of its own, whole, so that it can be copied."""
    out.print(words(str(path), "bold"), soft_wrap=True)


def print_rows(
    out: Console,
    rows: Iterable[Sequence[Cell]],
    *,
    header: Sequence[str] = (),
    right: Sequence[str] = (),
) -> None:
    """Print rows in columns; what is in the last one wraps, or goes below where there is no room.

    ``right``: the headers of columns of numbers.
    """
    table = [[_text(cell) for cell in row] for row in ([header] if header else [])]
    table += [[_text(cell) for cell in row] for row in rows]
    if not table:
        return
    widths = [max(cell.cell_len for cell in column) for column in zip(*table, strict=True)]
    margin = _INDENT + sum(width + _INDENT for width in widths[:-1])
    if out.width - margin < min(widths[-1], _NARROWEST):
        margin = 2 * _INDENT
    for number, row in enumerate(table):
        line = _text(" " * _INDENT)
        for index, (cell, width) in enumerate(zip(row[:-1], widths, strict=False)):
            is_number = bool(header) and header[index] in right
            pad = _text(" " * (width - cell.cell_len))
            line += (pad + cell if is_number else cell + pad) + _text(" " * _INDENT)
        _print_wrapped(out, line, row[-1], margin)
        if header and number == 0:
            out.print(_dashes(widths, out.width), style="dim")


def _print_wrapped(out: Console, line: Text, last: Text, margin: int) -> None:
    if line.cell_len > margin:
        out.print(_rstripped(line), soft_wrap=True)
        line = _text(" " * margin)
    for part in last.wrap(out, max(_NARROWEST, out.width - margin)):
        out.print(_rstripped(line + part), soft_wrap=True)
        line = _text(" " * margin)


def _dashes(widths: Sequence[int], most: int) -> str:
    total = sum(widths) + _INDENT * (len(widths) - 1)
    return " " * _INDENT + "-" * min(total, most - 2 * _INDENT)


def _text(cell: Cell) -> Text:
    return words(cell) if isinstance(cell, str) else cell


def _rstripped(line: Text) -> Text:
    line.rstrip()
    return line


def fold_path(path: Path | str, width: int) -> str:
    """Return a path over several lines, cut at its slashes, each at most ``width`` if possible."""
    lines = [""]
    for part in str(path).replace("/", "/\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def name_ranks(numbers: Sequence[int]) -> str:
    """Return ranks, given in their order, in few words: "rank 4", "ranks 0, 2", "ranks 0-3"."""
    if not numbers:
        return "no rank"
    is_run = len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1  # noqa: PLR2004  # a range
    named = f"{numbers[0]}-{numbers[-1]}" if is_run else ", ".join(map(str, numbers))
    return f"rank{'s' if len(numbers) > 1 else ''} {named}"


def plural(count: int, noun: str, several: str = "") -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return plural(count, "byte")
