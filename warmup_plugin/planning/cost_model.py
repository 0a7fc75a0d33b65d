# SPDX-License-Identifier: Apache-2.0
"""How long tuning a task may take: what orders the queues, and decides nothing.

Owns the guess. Best is what an earlier start has measured for the same op at the same buckets; then
the same op at others, by the ratio of the sizes; then the number of candidates the op was tuned
with elsewhere, times the size. A wrong guess costs balance at the end of the queue, nothing more.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from warmup_plugin.planning.inventory import Item

#: An op that nobody has tuned yet: so many candidates, so long for each at size 1, seconds.
_CANDIDATES = 16
_SECONDS = 1e-3
#: Launching and capturing a kernel takes as long as computing so many rows, roughly.
_ROWS = 256.0


def size_of(at: str) -> float:
    """Return the size of a label's buckets, ``64`` or ``8x16``; 1 where there are none."""
    size = 1.0
    for part in at.split("x"):
        size *= int(part) if part.isascii() and part.isdigit() else 1
    return size


@dataclass
class Costs:
    """What is known: seconds by task label, and candidates by op."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gather what was measured by op."""
        self._of_op: dict[str, list[tuple[float, float]]] = {}
        for label, seconds in self.seconds.items():
            op, _, at = label.rpartition(" @ ")
            self._of_op.setdefault(op, []).append((size_of(at), seconds))

    def __call__(self, item: Item) -> float:
        """Return the seconds that this task may take."""
        if (known := self.seconds.get(item.label)) is not None:
            return known
        rows = _ROWS + size_of(item.at)
        if measured := self._of_op.get(item.op):
            return rows * median(seconds / (_ROWS + size) for size, seconds in measured)
        return self.candidates.get(item.op, _CANDIDATES) * _SECONDS * rows / _ROWS
