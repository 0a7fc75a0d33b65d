# SPDX-License-Identifier: Apache-2.0
"""The plan of a session as a value: which rank tunes which task. `plan.py` makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec


class Queue(NamedTuple):
    """Tasks that any of these ranks can tune, in the order in which they are taken."""

    ranks: tuple[int, ...]
    tasks: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """Who does what.

    ``shared``: the tasks that one rank tunes for all, in queues; a rank takes from those it is in,
    one after the other. ``local``: rank -> tasks it tunes for itself, not stored. ``held``: tasks
    that need no tuning because an entry answers them: of a twin on another rank, of an old file, or
    (``resumed``, among them) of a start that did not finish.
    """

    shared: tuple[Queue, ...] = ()
    local: Mapping[int, tuple[str, ...]] = msgspec.field(default_factory=dict)
    held: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()

    @property
    def tasks(self) -> Iterator[str]:
        """The tasks that one rank tunes for all."""
        return (name for queue in self.shared for name in queue.tasks)
