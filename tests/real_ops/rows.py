# SPDX-License-Identifier: Apache-2.0
"""Which rows of the matrix are run where; README.md has the reasoning.

Owns the selection: case x GPU x release x context x margin. A row is one comparison of `compare.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAIN, NEXT = "0.7.2.post1", "0.7.4"
RELEASES = (MAIN, NEXT)
CONTEXTS = ("plain", "vllm", "sglang")
SHIPPED = 0.03
MARGINS = (0.0, SHIPPED)
PAIRS = tuple((context, margin) for context in CONTEXTS for margin in MARGINS)


#: Cases that between them reach every runner class that any case reaches.
SMALLEST: tuple[str, ...] = (
    "mm_fp4 trtllm 128x4",
)


@dataclass(frozen=True)
class Row:
    case: str
    on: str
    release: str
    context: str
    margin: float

    def __str__(self) -> str:
        margin = f"margin {self.margin:g}"
        return f"{self.case}-{self.release}-{self.on}-{self.context}-{margin}".replace(" ", "_")


def rows_of(name: str, on: tuple[str, ...], releases: tuple[str, ...], number: int) -> list[Row]:
    """Return a case's rows, ``number`` being its place among the cases.

    On the first GPU of the case and the main release, every context with every margin. On each
    other pair of GPU and release, one pair of context and margin, which turns with case, GPU and
    release: so any two values of two dimensions meet in many cases, and every case meets every GPU
    and release that has it.
    """
    rows = []
    turn = number
    for release in releases or RELEASES:
        for gpu in on:
            turn += 1
            if release == MAIN and gpu == on[0]:
                pairs = list(PAIRS)
            else:
                pairs = [PAIRS[turn % len(PAIRS)]]
            rows += [Row(name, gpu, release, context, margin) for context, margin in pairs]
    return rows


def smallest(name: str, on: tuple[str, ...], number: int) -> Row | None:
    """Return the one row of a case that runs with the other tests; None for most cases."""
    if name not in SMALLEST:
        return None
    context, margin = PAIRS[number % len(PAIRS)]
    return Row(name, on[0], MAIN, context, margin)
