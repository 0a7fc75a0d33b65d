# SPDX-License-Identifier: Apache-2.0
"""Single functions of an engine, taken out of files that cannot be imported here.

The files of the engines' web servers import much that their test environments lack. A function is
compiled from its source as it stands there, and finds in ``names`` what the file would give it.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def take(package: str, file: str, *functions: str, **names: Any) -> dict[str, Any]:
    """Return these functions of a file of an installed package, without their decorators."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in tree.body if isinstance(node, kinds) and node.name in functions]
    assert {node.name for node in found} == set(functions), f"not all of them in {path}"
    for node in found:
        node.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    module = ast.Module(body=[*future, *found], type_ignores=[])
    exec(compile(module, str(path), "exec"), names)  # noqa: S102  # the engine's own code, unchanged
    return names
