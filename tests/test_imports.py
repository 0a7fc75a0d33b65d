# SPDX-License-Identifier: Apache-2.0
"""The modules of the package: few rooms at the top, no circle of imports, and no long file."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def script(name: str) -> Any:
    """Return a script of tools/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / f"tools/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


imports, size = script("imports"), script("size")

#: What a reader finds at the top, the extras of `pip install` not counted.
MOST_ROOMS = 18
#: Files that may be longer than others, and how long: FlashInfer's private names stand together.
LONGER = {"tuner/compat.py": 950}


def test_no_module_imports_itself_round_a_circle() -> None:
    """Such a module works or fails by which of them is imported first."""
    assert imports.circle(imports.read(CHECKOUT / "warmup_plugin")) == []


def test_the_top_of_the_package_is_short() -> None:
    """A reader who looks for one concept has few doors to choose from."""
    modules = imports.read(CHECKOUT / "warmup_plugin")
    assert len({imports.room(name) for name in modules}) - 1 <= MOST_ROOMS


def test_no_file_is_long() -> None:
    """A file that grows has got a second reason to change: it is split by that."""
    lengths = imports.lengths_of(CHECKOUT / "warmup_plugin")
    most = dict.fromkeys(lengths, imports.LONGEST) | LONGER
    assert {file: n for file, n in lengths.items() if n > most[file]} == {}
    assert [file for file in LONGER if lengths[file] <= imports.LONGEST] == []


def test_the_size_is_told_of_modules_that_are_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is counted once, and a module that has moved is missed."""
    package = CHECKOUT / "warmup_plugin"
    numbers = imports.lengths_of(package).values()
    monkeypatch.setattr("sys.argv", ["size.py", str(package)])
    assert size.main() == 0
    assert capsys.readouterr().out.count(f"{sum(numbers):8,}  in all") == 2
    assert size.capability_of("fleet/pull") == size.capability_of("steps/fleet") != size.CORE
    assert size.capability_of("steps/agree") == size.capability_of("fleeting") == size.CORE


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from . import x", []),
        ("import p.a", ["p.a"]),
        ("from p import a", ["p.a"]),
        ("if TYPE_CHECKING:\n    from p import a", []),
        ("def f():\n    from p import a", []),
        ("try:\n    import p.a\nexcept ImportError:\n    pass", ["p.a"]),
    ],
)
def test_what_counts_as_an_import(source: str, found: list[str]) -> None:
    """Whatever runs when the module is imported."""
    assert [each for each in imports.imports_of(ast.parse(source)) if "None" not in each] == found


def test_a_circle_is_found() -> None:
    """The first test can fail."""
    modules: dict[str, set[str]] = {"p": set(), "p.a": {"p.b"}, "p.b": {"p.a", "p"}}
    assert set(imports.circle(modules)) == {"p.a", "p.b"}
