# SPDX-License-Identifier: Apache-2.0
"""Whether the agreed table answers a task that the survey has met.

Owns that rule: which entry of the table is the task's, whether FlashInfer would serve it and the
runner still offers it, and whether an old file's entry can mean the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from warmup_plugin.cache.table import Entry, canonical_tactic
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.counters import OUT_OF_MEMORY
from warmup_plugin.tuner.intercepted_call import Asked, shapes_of
from warmup_plugin.tuner.task import Task
from warmup_plugin.tuner.task_summary import Answer
from warmup_plugin.tuner.tuner_state import LoadedEntries


class TableAnswers:
    """The answers of ``entries``, the agreed table's, which the tuner holds.

    ``is_default``: whether the task of an id is known to serve FlashInfer's default. ``adopted``:
    task id -> key of the old file's entry that answers it.
    """

    def __init__(
        self,
        tuner: Any,
        keys: compat.Keys,
        entries: Mapping[str, Entry] | LoadedEntries,
        is_default: Callable[[str], bool],
    ) -> None:
        self.adopted: dict[str, str] = {}
        self._tuner, self._keys, self._entries = tuner, keys, entries
        self._is_default = is_default
        self._answers: dict[Answer, Answer] = {}

    def judge(self, task: Task, asked: Asked, profile: Any) -> None:
        """Set the task's state: whether the table answers it, by FlashInfer's rule while tuning."""
        found, index, tactic = compat.look_up(
            self._tuner, task.op, asked.runners, task.shapes, asked.config, inputs=asked.inputs
        )
        entries = self._entries
        stored = [
            (at, entry) for at, key in enumerate(task.keys)
            if (entry := entries.get(key)) is not None
        ]  # fmt: skip
        place, held = stored[0] if len(stored) == 1 else (0, None)
        if held is not None and not compat.is_measured_as(asked.config, held.policy):
            held = None
        offers = None if held is None else _offers(task, asked, place, held)
        if held is not None and offers is False:
            task.state = "refused"
            task.reason = f"{held.runner} does not offer tactic {held.tactic!r}"
        elif held is not None and (found or offers or asked.named[place][1].follows_batch):
            task.state = "known"
            # FlashInfer asks with the inputs at hand: their size is not the task's, which a runner
            # that can tell may refuse, and one whose key follows the batch looks elsewhere.
            runner = type(asked.runners[index]).__name__
            served = (runner, canonical_tactic(tactic)) if found else held[:2]
            task.is_agreed = served == held[:2]
            # Few answers differ; of equal ones one is kept, but to a dictionary True is 1.
            is_plain = type(served[1]) is int
            task.served = self._answers.setdefault(served, served) if is_plain else served
        elif self._is_default(task.id):
            task.state = "default"
        elif _may_adopt(asked):
            legacy = [self._keys.legacy_key(task.op, name, profile) for name, _ in asked.named]
            old_keys = [
                old
                for new, old in zip(task.keys, legacy, strict=True)
                if new != old and old in entries
            ]
            if len(old_keys) == 1:
                self.adopted[task.id] = old_keys[0]


def _offers(task: Task, asked: Asked, place: int, entry: Entry) -> bool | None:
    """Return whether an entry's runner still offers its tactic; None where it cannot tell.

    ``place``: of the entry's key among the task's.
    """
    runner = asked.runners[asked.places[place]]
    if type(runner).__name__ != entry.runner or not hasattr(runner, "validate_tactic"):
        return None
    inputs = asked.inputs
    if shapes_of(inputs) != task.shapes:  # what it says of another size is no answer
        try:
            inputs = asked.at(task.shapes)
        except OUT_OF_MEMORY:  # nothing speaks against it; FlashInfer asks again when it serves
            return True
    return compat.accepts(runner, inputs, entry.tactic)


def _may_adopt(asked: Asked) -> bool:
    """Return whether an old file's entry, without extras and policy, can mean this call."""
    has_extras = any(extras.real for _, extras in asked.named)
    return not has_extras and compat.is_measured_as(asked.config, None)
