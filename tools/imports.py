# SPDX-License-Identifier: Apache-2.0
"""The package's imports as a picture: rooms at the top, arrows between them, circles, long files.

    python tools/imports.py [PACKAGE]      the folder `warmup_plugin` of this checkout by default

Counts what runs when a module is imported: not what only a type checker reads, nor what a function
imports when it is called. Ends with status 1 where modules import each other in a circle.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

LONGEST = 300


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module imports when it is imported, `a.b` for a `from`."""
    todo: list[ast.stmt] = [*tree.body]
    for node in todo:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += node.body + node.orelse
        elif isinstance(node, ast.Try):
            todo += node.body + node.orelse + node.finalbody
        elif isinstance(node, ast.ClassDef):
            todo += node.body


def read(package: Path) -> dict[str, set[str]]:
    """Return what each module of a package imports of the same package."""
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"):
        path for path in sorted(package.rglob("*.py"))
    }  # fmt: skip
    found = {}
    for name, path in files.items():
        asked = imports_of(ast.parse(path.read_text(encoding="utf-8")))
        known = (each if each in files else each.rpartition(".")[0] for each in asked)
        found[name] = {each for each in known if each in files and each != name}
    return found


def room(module: str) -> str:
    """Return the part of a module's name that stands at the top of the package."""
    return module.split(".")[1] if "." in module else module


def circle(modules: dict[str, set[str]]) -> list[str]:
    """Return one circle of imports, or nothing.

    The package itself does not count: its `__init__` has the version, and imports nothing by
    itself.
    """
    top = next(iter(modules)).split(".")[0]
    graph = {name: wanted - {top} for name, wanted in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def lengths_of(package: Path) -> dict[str, int]:
    """Return how many lines each file of a package has."""
    return {
        path.relative_to(package).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in package.rglob("*.py")
    }


def main() -> int:
    here = Path(__file__).resolve().parent.parent / "warmup_plugin"
    package = Path(sys.argv[1]) if sys.argv[1:] else here
    modules = read(package)
    rooms = {room(name) for name in modules} - {package.name}
    arrows = Counter(
        (room(name), room(other)) for name, wanted in modules.items() for other in wanted
        if room(name) != room(other) and package.name not in (room(name), room(other))
    )  # fmt: skip
    lengths = lengths_of(package)
    for name in sorted(rooms):
        wanted = sorted(other for one, other in arrows if one == name)
        print(f"{name:15} -> {' '.join(wanted) or '-'}")
    found = circle(modules)
    print(f"{len(modules)} modules, {sum(lengths.values())} lines, {len(rooms)} rooms, "
          f"{len(arrows)} arrows between rooms, circle: {' > '.join(found) or 'none'}")  # fmt: skip
    for file, length in sorted(lengths.items(), key=lambda each: -each[1]):
        if length > LONGEST:
            print(f"{length:5d} lines: {file}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
