# SPDX-License-Identifier: Apache-2.0
"""How one measurement of a race is made: its launches, and the delay before them. Pure.

Owns the lengths of the measurements of each round, made from FlashInfer's own.
"""

from __future__ import annotations

from typing import NamedTuple

#: A burst in the finals: so many times FlashInfer's launches, and no longer than this.
_LONGER, _BURST_MS = 4, 5.0
#: The host's launches must fit into the delay, with some to spare, or it is the host that is timed.
_SPARE = 1.25


class Counts(NamedTuple):
    """How one measurement is made: untimed launches, timed ones, milliseconds of delay before.

    ``each``: as many launches as one of ``repeat`` stands for, where a graph is replayed.
    """

    warmup: int
    repeat: int
    delay_ms: float
    each: int = 1

    def cost_ms(self, ms: float) -> float:
        """Return how long it keeps the device, of a candidate that takes ``ms``."""
        return self.delay_ms + self.launches * ms

    @property
    def launches(self) -> int:
        return self.warmup + self.timed

    @property
    def timed(self) -> int:
        return self.repeat * self.each


def first_counts(own: Counts) -> Counts:
    """Return how round 1 measures, ``own`` being FlashInfer's way."""
    return Counts(min(1, own.warmup), min(2, own.repeat), own.delay_ms / 5, own.each)


def last_counts(own: Counts, ms: float, host_ms: float = 0.0) -> Counts:
    """Return how the finals measure candidates that take ``ms``, and the host to launch them."""
    within = int(_BURST_MS / (ms * own.each))
    if host_ms > 0:
        within = min(within, int(own.delay_ms / (_SPARE * host_ms)))
    repeat = max(own.repeat, min(_LONGER * own.repeat, within))
    return Counts(min(1, own.warmup), repeat, own.delay_ms, own.each)
