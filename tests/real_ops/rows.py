# SPDX-License-Identifier: Apache-2.0
"""Which rows of the matrix are run where; README.md has the reasoning.

Owns the selection: case x GPU x release x context x margin. A row is one comparison.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.real_ops import tables

MAIN, NEXT = "0.7.2.post1", "0.7.4"
RELEASES = (MAIN, NEXT)
CONTEXTS = ("plain", "vllm", "sglang")
SHIPPED = 0.03
MARGINS = (0.0, SHIPPED)
#: All combinations, for a night: hours on two cores.
EVERYTHING = bool(os.environ.get("WARMUP_REAL_OPS_ALL"))
PAIRS = tuple((context, margin) for context in CONTEXTS for margin in MARGINS)


@dataclass(frozen=True)
class Row:
    case: str
    on: str
    release: str
    context: str
    margin: float
    race: bool = False

    def __str__(self) -> str:
        margin = f"margin {self.margin:g}" + ("-race" if self.race else "")
        return f"{self.case}-{self.release}-{self.on}-{self.context}-{margin}".replace(" ", "_")


def rows_of(name: str, on: tuple[str, ...], releases: tuple[str, ...], number: int) -> list[Row]:
    """Return a case's rows, ``number`` being its place among the cases.

    On the first GPU of the case and its first release, every context, with margins in turn; all
    pairs of context and margin where `EVERYTHING`. On each other pair of GPU and release, one pair
    of context and margin, which turns with case, GPU and release.
    """
    rows = []
    turn = number
    first = (releases or RELEASES)[0]
    for release in releases or RELEASES:
        for gpu in on:
            turn += 1
            if EVERYTHING:
                pairs = list(PAIRS)
            elif release == first and gpu == on[0]:
                pairs = [(c, MARGINS[(number + n) % 2]) for n, c in enumerate(CONTEXTS)]
            else:
                pairs = [PAIRS[turn % len(PAIRS)]]
            rows += [Row(name, gpu, release, context, margin) for context, margin in pairs]
    return rows


def raced_rows(name: str, on: tuple[str, ...], releases: tuple[str, ...], number: int) -> list[Row]:
    """Return the rows of a case in which its candidates race.

    Each release and GPU, by turns in another context, with no margin: nothing but the race may
    choose otherwise.
    """
    pairs = [(release, gpu) for release in releases or RELEASES for gpu in on]
    return [
        Row(name, gpu, release, CONTEXTS[(number + n) % len(CONTEXTS)], 0.0, race=True)
        for n, (release, gpu) in enumerate(pairs)
    ]


def for_a_change(rows: list[Row], number: int) -> set[Row]:
    """Return those of a case's rows that a change must pass: the smallest, and one of the newest.

    That is a row on the newest release that has the op; by turns of the cases on another GPU, in
    another context, with the other margin.
    """
    newest = max((row.release for row in rows), key=RELEASES.index)
    of_it = [row for row in rows if row.release == newest]
    return {*smallest(rows, number), of_it[number % len(of_it)]}


def smallest(rows: list[Row], number: int) -> set[Row]:
    """Return those of a case's rows that run with the other tests: one for each runner class.

    A row on each GPU where the table of runner classes names the case.
    """
    pairs = set(tables.reached(MAIN, "runner").values())
    found: dict[str, Row] = {}
    for row in rows[number % len(CONTEXTS) :] + rows[: number % len(CONTEXTS)]:
        if row.release == MAIN and (row.case, row.on) in pairs:
            found.setdefault(row.on, row)
    return set(found.values())
