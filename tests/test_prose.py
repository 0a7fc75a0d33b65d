# SPDX-License-Identifier: Apache-2.0
"""Rules for the words of the project: its docstrings, its messages and its pages.

Owns the list of words that are not used, and how much of them is left. A new reader, or one whose
language is another one, needs a named subject: *nobody* and *whatever* name none. The metaphors
have a term of the field instead: *verified* for *vouched for*, *the current task* for *the task in
hand*, *closed* for *let go of*.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "warmup_plugin"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

INDEFINITE = "somebody|someone|something|anybody|anyone|nobody|whoever|whatever"
METAPHORS = r"vouch\w*|loose|in hand|let go of|lets go of|comes to"
UNUSED = re.compile(rf"\b({INDEFINITE}|{METAPHORS})\b", re.IGNORECASE)
CODE = re.compile(r"```.*?```|``.*?``|`.*?`", re.DOTALL)

#: By part of the package: how many of these words its docstrings still have. The numbers only go
#: down, and a part that is not listed has none.
LEFT = {"coordination": 12, "steps": 28, "tuner": 15}
#: The most of these words on a page, for each thousand of its words.
MOST_ON_A_PAGE = 4.0
#: The longest clause of a docstring in words: from one stop, colon or semicolon to the next.
LONGEST = 45

LOGS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "warn"})


def unused(text: str) -> list[str]:
    """Return the words of a text that are not to be used; what is marked as code does not count."""
    return [word.lower() for word in UNUSED.findall(CODE.sub(" ", text))]


def docstrings(module: Path) -> Iterator[tuple[int, str]]:
    """Yield every docstring of a module with its line."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def messages(module: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of what a module raises and logs, with their lines."""
    for node in ast.walk(ast.parse(module.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        is_log = isinstance(call.func, ast.Attribute) and call.func.attr in LOGS
        if is_log or isinstance(node, ast.Raise):
            texts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
            yield (
                getattr(node, "lineno", 1),
                " ".join(text for text in texts if isinstance(text, str)),
            )


def clauses(text: str) -> list[str]:
    """Return the clauses of a docstring; tables, which are indented, are none."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(" "))
    parts = [" ".join(part.split()) for part in prose.split("\n\n")]
    return [clause for part in parts for clause in re.split(r"(?<=[.:;?!])\s+", part)]


def named(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


@pytest.mark.parametrize("part", sorted({named(module).partition("/")[0] for module in MODULES}))
def test_the_words_of_docstrings(part: str) -> None:
    found = [
        f"{named(module)}:{line}: {word}"
        for module in MODULES if named(module).partition("/")[0] == part
        for line, text in docstrings(module) for word in unused(text)
    ]  # fmt: skip
    assert len(found) <= LEFT.get(part, 0), found


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_the_words_of_messages(module: Path) -> None:
    """What is raised and logged, for the reader of a log at night."""
    assert [(line, unused(text)) for line, text in messages(module) if unused(text)] == []


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_a_docstring_is_sentences(module: Path) -> None:
    """Its first paragraph ends a sentence, and no clause is longer than a reader can hold."""
    for line, text in docstrings(module):
        first = text.partition("\n\n")[0]
        assert re.search(r"[.:?]`*$", first), f"{line}: {first}"
        longest = max(clauses(text), key=lambda clause: len(clause.split()))
        assert len(longest.split()) <= LONGEST, f"{line}: {longest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_words_of_pages(page: Path) -> None:
    text = CODE.sub(" ", page.read_text())
    found = unused(text)
    assert 1000 * len(found) <= MOST_ON_A_PAGE * len(text.split()), found


def test_a_broken_rule_is_seen(tmp_path: Path) -> None:
    """The rules themselves: on a module that breaks each of them."""
    module = tmp_path / "broken.py"
    module.write_text(
        '"""Whoever reads this, vouches for `nobody`"""\n'
        "def f():\n"
        '    logger.warning("nobody is left")\n'
        '    raise ValueError(f"the task in hand: {f}")\n'
    )
    assert [unused(text) for _, text in docstrings(module)] == [["whoever", "vouches"]]
    assert sorted(unused(text) for _, text in messages(module)) == [["in hand"], ["nobody"]]
    assert clauses("One. Two: three\n\n    a table\n\nFour") == ["One.", "Two:", "three", "Four"]
