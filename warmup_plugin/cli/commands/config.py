# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin config`: the settings as a start in this environment would have them.

Owns the answer's look: each setting with its value and what says so, the cache roots, and the
variables that do nothing. The rules are `settings.py`'s and `places.py`'s. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from warmup_plugin.cli import output, places
from warmup_plugin.settings import Settings, unknown_variables

HELP = "print the settings in effect, each with its source"
DESCRIPTION = """\
Print every setting as a start in this environment would have it, with the
variable that it is from; then the cache roots, and variables that are set and
do nothing. An engine's process may have another environment than this shell:
run it there, for instance with kubectl exec."""
EXAMPLES = """\
examples:
  warmup-plugin config
  warmup-plugin config --set                      only what is not the default
  warmup-plugin config --json | jq .settings.margin.value
"""


@dataclass(frozen=True)
class Effective:
    """One setting: its value, where that is from, and the variable that would set it."""

    name: str
    value: object
    source: str
    variable: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--set", action="store_true", help="leave out what is at its default")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(*, set: bool, root: Path | None, engine_root: Path | None, json: bool) -> int:  # noqa: A002  # the option's name
    """Look and print."""
    settings = Settings.from_env()
    rows = [row for row in effective(settings) if not set or row.source != "default"]
    roots = places.offered(root, engine_root, settings, os.environ)
    unknown = unknown_variables(os.environ)
    useless = places.useless(settings, os.environ)
    if json:
        output.print_json(_document(rows, roots, unknown, useless))
        return 0
    out = output.console()
    output.print_rows(out, [(row.name, _shown(row.value), row.source) for row in rows],
                      header=("setting", "value", "from"))  # fmt: skip
    out.print()
    output.print_rows(out, [("root", str(each.path), each.words()) for each in roots])
    for name, nearest in unknown.items():
        meant = f"; is it {nearest}?" if nearest else ""
        output.note(f"{name} is set, and there is no such setting{meant}")
    for words in useless:
        output.note(words)
    return 0


def effective(settings: Settings) -> list[Effective]:
    """Return every setting in the order of the table."""
    found = []
    for row in fields(settings):
        variable = str(row.metadata["variable"])
        source = variable if os.environ.get(variable) else "default"
        found.append(Effective(row.name, getattr(settings, row.name), source, variable))
    return found


def _shown(value: object) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _document(
    rows: list[Effective], roots: list[places.Root], unknown: dict[str, str], useless: list[str]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "settings": {
            row.name: {"value": row.value, "source": row.source, "variable": row.variable}
            for row in rows
        },
        "roots": [
            {"path": str(each.path), "source": each.source, "kind": each.kind, "users": each.users}
            for each in roots
        ],
        "unknown": {name: nearest or None for name, nearest in unknown.items()},
        "useless": useless,
    }
