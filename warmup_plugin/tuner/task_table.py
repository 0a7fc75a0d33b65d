# SPDX-License-Identifier: Apache-2.0
"""The tasks of a survey by id, in the order met.

Owns how they are kept. On a warm start there are ten thousand that the agreed table answers, of
which no caller asks for one: those stand in columns, added up as they come, and become tasks when
a caller reads any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, ValuesView

import msgspec
from msgspec.structs import astuple

from warmup_plugin.cache.table import Tactic
from warmup_plugin.tuner.task import Switches, Task
from warmup_plugin.tuner.task_summary import Tally, answer_key, tally_of


class Known(msgspec.Struct, frozen=True):
    """A task that the agreed table answers as it says; of use to no replay."""

    id: str
    op: str
    keys: tuple[str, ...]
    buckets: tuple[int, ...]
    served: tuple[str, Tactic]


class Register(Mapping[str, Task]):
    """Tasks by id. To look at one, but through `held`, makes tasks of all that are known."""

    def __init__(self) -> None:
        #: A task, or the switches of one that stands in the columns.
        self._tasks: dict[str, Task | Sequence[Switches]] = {}
        self._columns: tuple[list[object], ...] = ()
        self._answered: dict[object, list[str]] = {}
        self.clear()

    def add(self, task: Task) -> None:
        """Take in a task."""
        self._tasks[task.id] = task

    def add_known(self, known: Known, switches: Sequence[Switches]) -> None:
        """Take in a task that the agreed table answers as it says."""
        self._tasks[known.id] = switches
        for column, value in zip(self._columns, astuple(known), strict=True):
            column.append(value)
        key = answer_key(known.served)
        if (ids := self._answered.get(key)) is None:
            ids = self._answered[key] = []
        ids.append(known.id)

    def held(self, name: str) -> Task | None:
        """Return a task that is kept whole; None for one that the agreed table answers."""
        found = self._tasks.get(name)
        return found if isinstance(found, Task) else None

    def switches_of(self, name: str) -> Sequence[Switches]:
        """Return the switches of a task's runners."""
        found = self._tasks[name]
        return found.switches if isinstance(found, Task) else found

    def tally(self) -> Tally:
        """Return what all tasks add up to."""
        is_mixed = len(self._tasks) > len(self._columns[0])
        tasks = self._tasks.values() if is_mixed else ()
        found = tally_of(task for task in tasks if isinstance(task, Task))
        for op, number in Counter(self._columns[1]).items():
            found.states[str(op), "known"] += number
        for answer, ids in self._answered.items():
            found.served.setdefault(answer, []).extend(ids)
        return found

    def clear(self) -> None:
        """Forget all tasks."""
        self._tasks.clear()
        self._columns = tuple([] for _ in Known.__struct_fields__)
        self._answered.clear()

    def _unfolded(self) -> dict[str, Task]:
        if self._answered:
            for row in zip(*self._columns, strict=True):
                known = Known(*row)
                self._tasks[known.id] = _task_of(known, self.switches_of(known.id))
            self._columns = tuple([] for _ in Known.__struct_fields__)
            self._answered.clear()
        return self._tasks  # type: ignore[return-value]  # no row is left folded

    def __getitem__(self, name: str) -> Task:
        return self._unfolded()[name]

    def __delitem__(self, name: str) -> None:
        del self._unfolded()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def values(self) -> ValuesView[Task]:
        """Return the tasks themselves."""
        return self._unfolded().values()


def _task_of(known: Known, switches: Sequence[Switches]) -> Task:
    return Task(
        known.id, known.op, known.keys, (), known.buckets, None, "known",
        served=known.served, is_agreed=True, switches=switches,
    )  # fmt: skip
