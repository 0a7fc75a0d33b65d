# SPDX-License-Identifier: Apache-2.0
"""Which rank tunes a task: the one that takes it first.

Owns how a rank draws from the plan's queues, of which each place is given to one rank. So a rank
that is slow takes less, and what it has not taken goes to others by itself. A task that a rank has
begun is never given to a second rank: the job cannot go on before the first one is back from it, or
is given up and the session with it. Pure but for `take`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from warmup_plugin.planning.assignment import Queue


class Drawn(NamedTuple):
    """A task that this rank is to tune; so many of its queues' tasks were taken before it."""

    task: str
    place: int


def draw(
    queues: Sequence[Queue], rank: int, take: Callable[[str], int], is_over: Callable[[], bool]
) -> Iterator[Drawn]:
    """Yield the tasks that fall to this rank, each as it is asked for, until none is left.

    ``take``: counts one more for a queue of that name, and returns how many there were before, in
    the whole job. ``is_over`` is asked before: what is taken is tuned.
    """
    before = 0
    for number, queue in enumerate(queues):
        if rank not in queue.ranks:
            continue
        while not is_over() and (place := take(f"queue{number}")) < len(queue.tasks):
            yield Drawn(queue.tasks[place], before + place)
        before += len(queue.tasks)


def reach(queues: Sequence[Queue], rank: int) -> int:
    """Return how many tasks this rank may be given."""
    return sum(len(queue.tasks) for queue in queues if rank in queue.ranks)
