# SPDX-License-Identifier: Apache-2.0
"""Writes docs/guarantees.md: every row, what engines do by themselves, how the last run came out.

    pytest tests/faults tests/ranks/test_{bad_tables,readiness}.py --junitxml=run.xml
    python tests/faults/guarantees.py run.xml [MORE.xml ...]

`make guarantees` does both. The page's own words stay, down to the marker. What engines do is in
`engines.md`, what happens with this package in `test_rows.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "guarantees.md"
MARKER = "<!-- From here on: make guarantees -->"


def engines() -> dict[str, tuple[str, str]]:
    """Return row -> what vLLM and SGLang do, each with how it is known."""
    text = (HERE / "engines.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| F")]
    return {row: (vllm, sglang) for row, vllm, sglang in rows}


def load_rows() -> Any:
    """Return `test_rows.py`; test folders are no packages."""
    spec = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("test_rows.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rows"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def outcomes(paths: Sequence[Path]) -> tuple[str, dict[str, list[str]]]:
    """Return the last day of a run, and by name of the test function how its cases came out."""
    trees = [ET.parse(path) for path in paths]  # noqa: S314  # pytest has just written them
    found: dict[str, list[str]] = {}
    for tree in trees:
        own: dict[str, list[str]] = {}
        for case in tree.iter("testcase"):
            kinds = ("failure", "error", "skipped")
            word = next((kind for kind in kinds if case.find(kind) is not None), "passed")
            own.setdefault(case.get("name", ""), []).append(word)
        found.update(own)  # what was run again counts as it came out last
    days = (next(tree.iter("testsuite")).get("timestamp", "")[:10] for tree in trees)
    return max(days), found


def came_out(row: Any, index: int, found: dict[str, list[str]]) -> str:
    """Return how the tests of a row came out, in a word or two."""
    file, _, function = row.test.partition("::")
    if function == "test_row":
        names = [n for n in found if n.startswith(f"test_row[{row.number}-{index}-")]
    else:
        names = [n for n in found if n.partition("[")[0] == function]
    words = Counter(word for name in names for word in found[name])
    if not words:
        return f"not run (`{file}`)"
    if words["failure"] or words["error"]:
        return f"**fails** ({words['failure'] + words['error']} of {sum(words.values())})"
    if not words["passed"]:
        return "skipped: this machine cannot do it"
    return f"held, {words['passed']} x" if words["passed"] > 1 else "held"


def page(paths: Sequence[Path]) -> str:
    """Return the whole page."""
    rows, (day, found) = load_rows().ROWS, outcomes(paths)
    lines = [
        "| row | fault | vLLM 0.33.0 | SGLang 0.5.23 | with warmup-plugin | last run |",
        "|---|---|---|---|---|---|",
    ]
    told: set[str] = set()
    alone = engines()
    for index, row in enumerate(rows):
        known = alone[row.number] if row.number not in told else ("″", "″")
        told.add(row.number)
        cells = (row.number, row.injected, *known, row.happens, came_out(row, index, found))
        lines.append(f"| {' | '.join(cells)} |")
    words, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    return f"{words}{MARKER}\n\n**The last run** was on {day}.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page([Path(name) for name in sys.argv[1:]]), encoding="utf-8")
