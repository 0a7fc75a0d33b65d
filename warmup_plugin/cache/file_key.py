# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's file key, read for people: which op, at which shapes. Pure; raises nothing.

Owns no rule: nothing is decided by what is read here. A key of an unknown form is one field.
"""

from __future__ import annotations

import ast
from typing import Any

_SHAPES = 2  # a key is (op, runner, shapes, ...)


def fields_of(key: str) -> tuple[Any, ...]:
    """Return the fields of a file key; an unknown form is one field."""
    try:
        fields = ast.literal_eval(key)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        fields = None
    return fields if isinstance(fields, tuple) and fields else (key,)


def shapes_of(key: str) -> str:
    """Return the shapes of a file key, as 64x256 96x256; a question mark where it has none."""
    fields = fields_of(key)
    if len(fields) <= _SHAPES or not isinstance(fields[_SHAPES], tuple):
        return "?"
    return " ".join("x".join(map(str, shape)) for shape in fields[_SHAPES] if shape != (0,))
