# SPDX-License-Identifier: Apache-2.0
"""File keys of FlashInfer, taken apart without evaluating them: real ones hold ``torch.bfloat16``.

Owns the rule by which two keys are of one place in the table: the same op at the same shapes,
whichever runner has won there.
"""

from __future__ import annotations


def fields_of(key: str) -> list[str]:
    """Return the source text of a key's fields: op, runner class, shapes, extras."""
    fields, depth, start, is_quoted = [], 0, 1, False
    for at, letter in enumerate(key):
        if letter == "'":
            is_quoted = not is_quoted
        if is_quoted:
            continue
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            fields.append(key[start:at].strip())
            start = at + 1
    return fields


def op_of(key: str) -> str:
    return fields_of(key)[0].strip("'")


def runner_of(key: str) -> str:
    return fields_of(key)[1].strip("'")


def place_of(key: str) -> tuple[str, str]:
    """Return op and shapes, with -1 for what is no size of a place."""
    op, _, shapes, *_ = fields_of(key)
    return op, shapes
