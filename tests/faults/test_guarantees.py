# SPDX-License-Identifier: Apache-2.0
"""The page of guarantees has every row there is, and says of none that it fails."""

from __future__ import annotations

from pathlib import Path

from warmup_plugin.engines.embedded.config import resolve

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "guarantees.md"


def test_every_row_is_on_the_page_and_held() -> None:
    """A row that is new, or reads otherwise, needs another run: ``make guarantees``."""
    rows = resolve(f"{HERE / 'guarantees.py'}:load_rows")().ROWS
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| F")]
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert (cells[0], cells[1], cells[4]) == (row.number, row.injected, row.happens)
    assert "**fails**" not in text
    assert "not run" not in text


def test_what_the_engines_do_is_said_of_every_row() -> None:
    engines = resolve(f"{HERE / 'guarantees.py'}:engines")
    rows = resolve(f"{HERE / 'guarantees.py'}:load_rows")().ROWS
    assert [*engines()] == [*dict.fromkeys(row.number for row in rows)]
