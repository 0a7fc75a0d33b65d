# SPDX-License-Identifier: Apache-2.0
"""What the verbs print with: a console, a JSON document, rows of words, an error.

Owns how things look, once: results go to standard output, progress and errors to standard error;
nothing is coloured or cut where nobody watches. Refuses markup: the names of ops hold brackets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    Cell = str | Text

#: So many digits of a sha256 tell two apart for people.
SHORT = 12


class CommandError(Exception):
    """The command cannot do what it was asked; `detail` is for --debug."""

    FAILED: ClassVar = 1
    USAGE: ClassVar = 2

    def __init__(self, message: str, *, code: int = FAILED, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


def console(*, err: bool = False) -> Console:
    """Return a console on standard output or standard error as they are now."""
    from rich.console import Console

    return Console(stderr=err, markup=False, highlight=False, emoji=False)


def print_json(document: object) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def words(text: str, style: str = "") -> Text:
    """Return styled text."""
    from rich.text import Text

    return Text(text, style)


def print_rows(
    out: Console, rows: Iterable[Sequence[Cell]], *, header: Sequence[str] = (), right: str = ""
) -> None:
    """Print rows in columns; the last one wraps. ``right``: the headers of columns of numbers."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    look = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    table = Table(
        box=look if header else None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0),
        header_style="bold", collapse_padding=True, border_style="dim",
    )  # fmt: skip
    rows = list(rows)
    if not rows:
        return
    names = header or [""] * len(rows[0])
    for index, name in enumerate(names):
        is_last = index == len(names) - 1
        justify: Any = "right" if name and name in right.split(",") else "left"
        table.add_column(name, no_wrap=not is_last, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(Padding(table, (0, 0, 0, 2), expand=False))


def fold_path(path: Path | str, width: int) -> str:
    """Return a path over several lines, cut at its slashes, each at most ``width`` if possible."""
    lines = [""]
    for part in str(path).replace("/", "/\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return plural(count, "byte")
