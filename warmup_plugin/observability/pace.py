# SPDX-License-Identifier: Apache-2.0
"""How far a job is with its tasks, how long the rest will take, and what it has gained so far.

Owns the sums: how many tasks each rank has done, and each winner's time against the default's.
"""

from __future__ import annotations

from collections.abc import Callable

from warmup_plugin.cache.gains import gain, mean_gain


class Pace:
    """The job's counts, as one rank has heard of them. One thread at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.total = 0
        self._clock = clock
        self._began: float | None = None
        self._done: dict[int, int] = {}
        self._gains: list[float] = []
        #: How much of this rank's current task is done, and how much of it is done at once.
        self._share, self._unit = 0.0, 1.0
        #: When a task or a part of one was done last.
        self._moved = 0.0

    def begin(self, total: int) -> None:
        """So many tasks are to be tuned by all ranks together, from now on."""
        self.total, self._began = total, self._clock()
        self._moved = self._began

    def note(self, rank: int, done: int) -> None:
        """A rank has done so many tasks."""
        if done != self._done.get(rank, 0):
            self._done[rank], self._moved = done, self._clock()

    def reach(self, share: float = 0.0, unit: float = 1.0) -> None:
        """A share of this rank's current task is done; the next ``unit`` of it is done at once."""
        if (share, unit) != (self._share, self._unit):
            self._share, self._unit, self._moved = share, unit, self._clock()

    def complete(self, rank: int) -> None:
        """All tasks are done; ``rank`` counts them for all."""
        self._done = {rank: self.total}

    def tuned(self, ms: float | None, default_ms: float | None) -> None:
        """A task is tuned: its winner's time and FlashInfer's default's, where both are known."""
        if (found := gain(ms, default_ms)) is not None:
            self._gains.append(found)

    def counts(self) -> tuple[int, int]:
        """Return how many tasks are done, and of how many."""
        return min(sum(self._done.values()), self.total), self.total

    def left_s(self) -> float | None:
        """Return how long the rest will take at the job's pace so far; None where that is unknown.

        The time counts down while a unit takes as long as those before it, and grows after that.
        """
        whole, total = self.counts()
        done = whole + self._share
        if not done or self._began is None:
            return None
        now = self._clock()
        rest, since = max(total - done, 0.0), now - self._moved
        as_before = (self._moved - self._began) / done * rest - since
        overdue = (now - self._began) / (done + self._unit) * (rest - self._unit)
        return round(max(as_before, overdue, 0.0), 1) or None

    def over_default(self) -> float | None:
        """Return the geometric mean of default over winner, of this rank's tasks."""
        found = mean_gain(self._gains)
        return None if found is None else round(found, 3)


def duration(seconds: float) -> str:
    """Return a time for people: its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
