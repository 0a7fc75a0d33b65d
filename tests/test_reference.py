# SPDX-License-Identifier: Apache-2.0
"""The public names: each is documented to its last parameter, and each type in them is public.

Owns the rules of `docs/reference.md`, which is made from the docstrings that are read here.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import warmup_plugin
from warmup_plugin import Settings

PAGES = Path(__file__).parent.parent / "docs"
NAMES = warmup_plugin.__all__
#: Names whose values are types, without a docstring of their own: the page shows their values.
ALIASES = [
    name for name in NAMES
    if not isinstance(getattr(warmup_plugin, name), (type, types.FunctionType))
]  # fmt: skip
#: Handed on as they are: only an adapter makes one, and no runner calls their methods.
OPAQUE = {"StoreLink", "Seal"}
#: Types of others that stand in public signatures.
FOREIGN = {"Path", "PathLike", "ProcessGroup", "TCPStore", "Unpack", "FormerArguments"}
KNOWN = {*NAMES, *FOREIGN, *dir(builtins), *typing.__all__, *abc.__all__}

SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")
ENTRY = re.compile(r" {4}(\S[^:]*): \S")


def sections(thing: object) -> dict[str, list[str]]:
    """Return the sections of a docstring with the names of their entries."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        if line and not line.startswith(" "):
            name = line.removesuffix(":") if line in SECTIONS else ""
        if name:
            entries = found.setdefault(name, [])
            if entry := ENTRY.match(line):
                entries.append(entry[1])
    return found


def parameters(function: Any) -> list[str]:
    """Return the names of what can be given, with the stars of a signature."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        f"{stars.get(each.kind) or ''}{each.name}"  # type: ignore[call-overload]  # of any kind
        for each in inspect.signature(function).parameters.values()
        if each.name not in ("self", "cls")
    ]


def functions_of(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public functions of a class, without those of its bases; the name has the class."""
    for name, member in vars(owner).items():
        inner = getattr(member, "__func__", member)
        if not name.startswith("_") and isinstance(inner, types.FunctionType):
            yield f"{owner.__name__}.{name}", inner


CLASSES = {name: thing for name in NAMES if isinstance(thing := getattr(warmup_plugin, name), type)}
FUNCTIONS = {
    **{name: thing for name in NAMES
       if isinstance(thing := getattr(warmup_plugin, name), types.FunctionType)},
    **{name: function for owner in CLASSES.values() if owner.__name__ not in OPAQUE
       for name, function in functions_of(owner)},
}  # fmt: skip


def raised(function: Any) -> set[str]:
    """Return the classes of the errors that a function itself raises, by their names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {each.func.id for each in calls
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_to_its_last_parameter(name: str) -> None:
    """`Args:` has each of them and no other; what it returns and raises stands there, too."""
    function = FUNCTIONS[name]
    found = sections(function)
    assert found.get("Args", []) == parameters(function)
    result = str(function.__annotations__["return"])
    is_generator = result.startswith("Iterator")
    assert ("Returns" in found, "Yields" in found) == (
        result != "None" and not is_generator,
        is_generator,
    )
    told = {each for entry in found.get("Raises", []) for each in entry.split(", ")}
    assert raised(function) <= told


def is_made_by_users(owner: type) -> bool:
    """Whether a class has parameters of its own: an error without `__init__` has its base's."""
    return not issubclass(owner, Exception) or "__init__" in vars(owner)


@pytest.mark.parametrize("name", [name for name in CLASSES if is_made_by_users(CLASSES[name])])
def test_a_class_is_documented_to_its_last_field(name: str) -> None:
    """In `Args:`, or in `Attributes:` where its values are read; settings have a page instead."""
    owner = CLASSES[name]
    if owner is Settings:
        page = (PAGES / "settings.md").read_text()
        for field in dataclasses.fields(Settings):
            row = f"| `{field.metadata['variable']}` | `{field.name}` |"
            assert row in page
            assert field.metadata["meaning"]
        return
    found = sections(owner)
    told = found.get("Args") or found.get("Attributes", [])
    assert told == parameters(owner)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALIASES])
def test_every_docstring_begins_with_a_sentence(name: str) -> None:
    first = inspect.cleandoc(getattr(warmup_plugin, name).__doc__).partition("\n\n")[0]
    assert re.match(r"[A-Z].*\.$", first, re.DOTALL), first


def test_properties_are_documented() -> None:
    missing = [
        f"{owner.__name__}.{name}"
        for owner in CLASSES.values() if owner.__name__ not in OPAQUE
        for name, member in vars(owner).items()
        if not name.startswith("_") and isinstance(member, property) and not member.__doc__
    ]  # fmt: skip
    assert missing == []


def written_types() -> Iterator[tuple[str, str]]:
    """Yield every annotation of a public signature or field, as it is written."""
    for name, function in FUNCTIONS.items():
        for parameter, written in function.__annotations__.items():
            yield f"{name}({parameter})", str(written)
    for name, owner in CLASSES.items():
        for field, written in inspect.get_annotations(owner).items():
            if not field.startswith("_"):
                yield f"{name}.{field}", str(getattr(written, "__forward_arg__", written))


@pytest.mark.parametrize(("where", "written"), list(written_types()), ids=str)
def test_a_type_in_a_public_signature_is_public(where: str, written: str) -> None:
    """So that a runner can name what it passes and what it gets."""
    named = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(written))
        if isinstance(node, (ast.Attribute, ast.Name))
    } - {"dist", "os"}
    assert named <= KNOWN, where


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_has_values_to_show(name: str) -> None:
    """A choice of texts, a callable or a union: what the page shows says all."""
    value = getattr(warmup_plugin, name)
    shown: tuple[object, ...] = (Literal, abc.Callable, types.UnionType)
    assert typing.get_origin(value) in shown
    assert typing.get_args(value)


def test_the_page_has_every_public_name_once() -> None:
    page = (PAGES / "reference.md").read_text()
    assert sorted(re.findall(r"^::: warmup_plugin\.(\w+)$", page, re.MULTILINE)) == sorted(NAMES)
