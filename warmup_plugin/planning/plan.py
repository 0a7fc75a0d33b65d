# SPDX-License-Identifier: Apache-2.0
"""Step 4: who tunes which task. Pure functions of the inventories; no torch, no clock, no disk.

Owns the strategies. Tasks are told apart by id, never by the order in which a rank met them:
stages, layer types and idle ranks make that order differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from warmup_plugin.planning.assignment import Plan, Queue
from warmup_plugin.planning.inventory import Item, Lots, each_its_own, find_refused, find_unshared
from warmup_plugin.settings import Strategy

#: How long a task may take, in any unit: it orders, and never decides.
Cost = Callable[[Item], float]


def make_plan(
    lots: Lots,
    strategy: Strategy,
    *,
    answered: Collection[str] = (),
    time_nothing: bool = False,
    cost: Cost = lambda _item: 0.0,
    last: Collection[str] = (),
    one_rank: Collection[str] = (),
) -> Plan:
    """Assign every task that no entry answers.

    ``answered``: tasks that an entry has come to answer since they were surveyed. With
    ``time_nothing`` (mode replay) nothing is assigned and what is missing serves FlashInfer's
    default. ``last``: tasks in which a process has died, tuned after all others. ``one_rank``: ops
    that strategy `sharded` leaves to the lowest rank that has them.
    """
    holders: dict[str, set[int]] = {}
    states: dict[str, set[str]] = {}
    items: dict[str, Item] = {}
    held: dict[str, None] = {}
    for ranks, inventory in sorted(lots, key=lambda lot: lot.ranks):
        for item in inventory:
            items.setdefault(item.id, item)
            if item.state != "known":  # of what an entry answers, no call is kept to be tuned
                holders.setdefault(item.id, set()).update(ranks)
            states.setdefault(item.id, set()).add(item.state)
            if item.adopt:
                held[item.id] = None
    unshared = find_unshared(lots)
    refused = find_refused(lots)
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
        return Plan(local=each_its_own(lots, {*tuned, *unshared}))

    def ranks_of(name: str) -> tuple[int, ...]:
        is_one = strategy == "leader" or items[name].op in one_rank
        return (min(holders[name]),) if is_one else ranks_in_order(frozenset(holders[name]))

    ranks_in_order = functools.cache(lambda ranks: tuple(sorted(ranks)))
    tuned, costs = _bucket_by_bucket(tuned, items, {name: cost(items[name]) for name in tuned})
    queues = make_queues({name: ranks_of(name) for name in tuned}, costs, last)
    return Plan(queues, each_its_own(lots, unshared), tuple(held))


def _bucket_by_bucket(
    names: Sequence[str], items: Mapping[str, Item], costs: Mapping[str, float]
) -> tuple[list[str], dict[str, float]]:
    """Put the tasks of a bucket beside each other, in the order in which they were met, and alike.

    So FlashInfer tunes them: what it finds for the one may answer the next.
    """
    buckets: dict[str, list[str]] = {}
    for name in names:
        buckets.setdefault(items[name].owner, []).append(name)
    ordered = [sorted(b, key=lambda name: items[name].met) for b in buckets.values()]
    highest = {name: max(costs[n] for n in bucket) for bucket in ordered for name in bucket}
    return [name for bucket in ordered for name in bucket], highest


def make_queues(
    holders: Mapping[str, tuple[int, ...]], costs: Mapping[str, float], last: Collection[str]
) -> tuple[Queue, ...]:
    """Return one queue for each set of ranks, costliest task first; those of ``last`` follow.

    Tasks of few ranks stand before those of many: the many can wait for any of theirs.
    """
    found: dict[tuple[bool, tuple[int, ...]], list[str]] = {}
    for name, ranks in holders.items():
        found.setdefault((name in last, ranks), []).append(name)
    ordered = sorted(found.items(), key=lambda row: (row[0][0], len(row[0][1]), row[0][1]))
    return tuple(
        Queue(ranks, tuple(sorted(names, key=lambda name: -costs[name])))
        for (_, ranks), names in ordered
    )
