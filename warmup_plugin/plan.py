# SPDX-License-Identifier: Apache-2.0
"""Step 4: who tunes which task. Pure functions of the inventories; no torch, no clock, no disk.

Owns the strategies. Tasks are told apart by id, never by the order in which a rank met them:
stages, layer types and idle ranks make that order differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from warmup_plugin.settings import Strategy


class Item(NamedTuple):
    """One task of one rank's inventory, as it crosses ranks.

    ``state``: known, default, unstable, missing, refused or unshared. ``adopt``: the key of an old
    file's entry that answers the task, or an empty string.
    """

    id: str
    op: str
    keys: tuple[str, ...]
    state: str
    adopt: str = ""
    reason: str = ""

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Item:
        """Return the item of a JSON row."""
        name, op, keys, state, adopt, reason = row
        return cls(name, op, tuple(keys), state, adopt, reason)


Inventory = Sequence[Item]


@dataclass(frozen=True)
class Plan:
    """Who does what.

    ``shared``: rank -> tasks it tunes for all. ``local``: rank -> tasks it tunes for itself, not
    stored. ``held``: tasks that need no tuning because an entry answers them: of a twin on another
    rank, or of an old file.
    """

    shared: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    local: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    held: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "shared": {str(rank): list(ids) for rank, ids in self.shared.items()},
            "local": {str(rank): list(ids) for rank, ids in self.local.items()},
            "held": list(self.held),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan of JSON values."""
        return cls(
            {int(rank): tuple(ids) for rank, ids in data["shared"].items()},
            {int(rank): tuple(ids) for rank, ids in data["local"].items()},
            tuple(data["held"]),
        )


def make_plan(
    inventories: Mapping[int, Inventory],
    strategy: Strategy,
    *,
    answered: Collection[str] = (),
    time_nothing: bool = False,
) -> Plan:
    """Assign every task that no entry answers.

    ``inventories``: rank -> its tasks. ``answered``: tasks that an entry has come to answer since
    they were surveyed. With ``time_nothing`` (mode replay) nothing is assigned and
    what is missing serves FlashInfer's default.
    """
    holders: dict[str, list[int]] = {}
    states: dict[str, set[str]] = {}
    held: dict[str, None] = {}
    for rank in sorted(inventories):
        for item in inventories[rank]:
            if item.state != "known":  # of what an entry answers, no call is kept to be tuned
                holders.setdefault(item.id, []).append(rank)
            states.setdefault(item.id, set()).add(item.state)
            if item.adopt:
                held[item.id] = None
    unshared = find_unshared(inventories)
    refused = find_refused(inventories)
    known = {name for name, found in states.items() if "known" in found} - unshared - refused.keys()
    lacking = (n for n, found in states.items() if "missing" in found or n in refused)
    missing = [name for name in lacking if name not in unshared]
    held.update(dict.fromkeys(name for name in missing if name in known or name in answered))
    for name in unshared | refused.keys():
        held.pop(name, None)
    if time_nothing:
        return Plan(held=tuple(held))
    tuned = [name for name in missing if name not in held]
    if strategy == "per_rank":
        return Plan(local=_each_its_own(inventories, {*tuned, *unshared}))
    return Plan(_to_lowest(tuned, holders), _each_its_own(inventories, unshared), tuple(held))


def find_refused(inventories: Mapping[int, Inventory]) -> dict[str, str]:
    """Return the tasks whose entry some rank cannot use, with the reason: no rank uses it then."""
    found: dict[str, str] = {}
    for rank in sorted(inventories):
        for item in inventories[rank]:
            if item.state == "refused":
                found.setdefault(item.id, f"{item.op}: rank {rank}: {item.reason}")
    return found


def find_unshared(inventories: Mapping[int, Inventory]) -> set[str]:
    """Return the tasks that must not be shared: a rank says so, or a key is another task's too.

    Stages may use one key with two runner lists without any rank seeing both.
    """
    items = [item for inventory in inventories.values() for item in inventory]
    found = {item.id for item in items if item.state == "unshared"}
    owners: dict[str, str] = {}
    for item in items:
        for key in item.keys:
            owner = owners.setdefault(key, item.id)
            if owner != item.id:
                found |= {owner, item.id}
    return found


def _to_lowest(
    names: Sequence[str], holders: Mapping[str, list[int]]
) -> dict[int, tuple[str, ...]]:
    """Give each task to the lowest rank that has it: rank 0 unless it is another stage's."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(holders[name][0], []).append(name)
    return {rank: tuple(ids) for rank, ids in found.items()}


def _each_its_own(
    inventories: Mapping[int, Inventory], names: set[str]
) -> dict[int, tuple[str, ...]]:
    own = {
        rank: tuple(item.id for item in items if item.id in names)
        for rank, items in inventories.items()
    }
    return {rank: ids for rank, ids in own.items() if ids}
