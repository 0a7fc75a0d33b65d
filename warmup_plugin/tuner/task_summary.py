# SPDX-License-Identifier: Apache-2.0
"""What the tasks of a survey add up to.

Owns the one pass over all tasks that a warm start makes: ten thousand of them lie all over the
memory, and each further look at all costs a millisecond or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from warmup_plugin.cache.table import Tactic
from warmup_plugin.tuner.task import State, Task

#: What the tuner serves, (runner class, tactic); None for FlashInfer's default.
Answer = tuple[str, Tactic] | None


class Tally(msgspec.Struct):
    """Tasks by op and state; the known ones by what the tuner serves for them.

    ``served``: answer -> ids of the tasks it answers. ``deviating``: labels of those for which the
    tuner serves another tactic than the table says. ``others``: the tasks that are not known.
    """

    states: Counter[tuple[str, State]] = msgspec.field(default_factory=Counter)
    served: dict[object, list[str]] = msgspec.field(default_factory=dict)
    deviating: list[str] = msgspec.field(default_factory=list)
    others: list[Task] = msgspec.field(default_factory=list)

    def number(self, *states: State) -> int:
        """Return how many tasks are in one of these states."""
        return sum(number for (_, state), number in self.states.items() if state in states)

    @property
    def ops(self) -> list[str]:
        """The ops of all tasks."""
        return sorted({op for op, _ in self.states})


def answer_key(answer: Answer) -> object:
    """Return an answer as a key: to a dictionary `True` and 1 are one tactic."""
    return answer if answer is None or type(answer[1]) is int else repr(answer)


def tally_of(tasks: Iterable[Task]) -> Tally:
    """Count tasks, looking at each once."""
    found, known = Tally(), Counter[str]()
    served = found.served
    for task in tasks:
        if task.state != "known":
            found.states[task.op, task.state] += 1
            found.others.append(task)
            continue
        known[task.op] += 1
        if not task.is_agreed:
            found.deviating.append(task.label)
        key = answer_key(task.served)
        try:
            served[key].append(task.id)
        except KeyError:
            served[key] = [task.id]
    found.states.update({(op, "known"): number for op, number in known.items()})
    return found
