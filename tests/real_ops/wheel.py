# SPDX-License-Identifier: Apache-2.0
"""What of a FlashInfer release tunes, read from its source: call sites of choose_one, runners.

Owns the reading alone; nothing of the release is imported. A site is named by file, function and
the source text of the op's name, since lines move with every release.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

#: The tuner itself, and copies of other projects.
_NOT_OPS = ("autotuner", "data/")
BASE = "TunableRunner"
TUNES = ("choose_one", "choose_with_protocol")


def sites(package: Path) -> list[str]:
    """Return ``file function op`` of every call of FlashInfer's tuner, sorted; equal ones counted."""
    found: list[str] = []
    for name, tree in _modules(package, TUNES):
        for function, call in _calls(tree, "<module>"):
            site = f"{name} {function} {_op(call)}"
            same = sum(other.split(" #")[0] == site for other in found)
            found.append(f"{site} #{same + 1}" if same else site)
    return sorted(found)


def runners(package: Path) -> list[str]:
    """Return ``file class`` of every runner class, base classes of others too, sorted."""
    classes: dict[str, tuple[str, set[str]]] = {}
    for name, tree in _modules(package, ("Runner",)):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                classes[f"{name} {node.name}"] = (node.name, bases)
    known = {BASE}
    while True:
        more = {short for short, bases in classes.values() if bases & known} - known
        if not more:
            break
        known |= more
    return sorted(full for full, (_, bases) in classes.items() if bases & known)


def _modules(package: Path, words: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.startswith(_NOT_OPS):
            continue
        text = path.read_text()
        if any(word in text for word in words):
            yield name, ast.parse(text)


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of the tuner below a node, in order, with the function it stands in."""
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else function
        if isinstance(child, ast.Call) and getattr(child.func, "attr", "") in TUNES:
            yield inner, child
        yield from _calls(child, inner)


def _op(call: ast.Call) -> str:
    """Return the source text of the op's name."""
    named = {word.arg: word.value for word in call.keywords}
    first = call.args[0] if call.args else named.get("custom_op")
    return ast.unparse(first).replace(" ", "") if first is not None else "?"
