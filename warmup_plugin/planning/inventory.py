# SPDX-License-Identifier: Apache-2.0
"""What each rank has to tune: its tasks in brief, and those of all ranks grouped by file key. Pure.

Owns which tasks the file of FlashInfer cannot hold for all ranks, and which ranks cannot share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One task of one rank's inventory, as it crosses ranks.

    ``state``: known, default, missing, refused or unshared. ``adopt``: the key of an old file's
    entry that answers the task, or an empty string. ``at``: its buckets, as in its label.
    ``bucket_id``, ``met``: see `Task`.
    """

    id: str
    op: str
    keys: tuple[str, ...]
    state: str
    adopt: str = ""
    reason: str = ""
    at: str = ""
    bucket_id: str = ""
    met: int = 0

    @property
    def owner(self) -> str:
        """Return what its file keys belong to."""
        return self.bucket_id or self.id

    def to_row(self) -> list[Any]:
        """Return JSON values, but for the id; most tasks are their whole bucket."""
        return [*self[1:]] if self.bucket_id else [*self[1:-2]]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Item:
        """Return the item of a JSON row."""
        name, op, keys, *rest = row
        return cls(name, op, tuple(keys), *rest)

    @property
    def label(self) -> str:
        """Return a short name for people, as `Task.label`."""
        return f"{self.op} @ {self.at}"


Inventory = Sequence[Item]


class Lot(NamedTuple):
    """Tasks that several ranks have alike: what a thousand ranks say equally is looked at once."""

    ranks: tuple[int, ...]
    items: Inventory


Lots = Sequence[Lot]


def find_refused(lots: Lots) -> dict[str, str]:
    """Return the tasks whose entry some rank cannot use, with the reason: no rank uses it then."""
    found: dict[str, str] = {}
    for lot in sorted(lots, key=lambda lot: lot.ranks):
        for item in lot.items:
            if item.state == "refused":
                found.setdefault(item.id, f"{item.op}: rank {lot.ranks[0]}: {item.reason}")
    return found


def find_unshared(lots: Lots) -> set[str]:
    """Return the tasks that must not be shared: a rank says so, or a key is another task's too.

    Stages may use one key with two runner lists without any rank seeing both. Tasks of one bucket
    are no others to each other: an entry under a key of theirs answers them all.
    """
    found: set[str] = set()
    owners: dict[str, str] = {}
    in_quarrel: set[str] = set()
    for item in (item for lot in lots for item in lot.items):
        if item.state == "unshared":
            found.add(item.id)
        for key in item.keys:
            owner = owners.setdefault(key, item.owner)
            if owner != item.owner:
                in_quarrel |= {owner, item.owner}
    if in_quarrel:
        found |= {item.id for lot in lots for item in lot.items if item.owner in in_quarrel}
    return found


def each_its_own(lots: Lots, names: set[str]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for ranks, items in lots:
        ids = tuple(item.id for item in items if item.id in names)
        for rank in ranks if ids else ():
            found[rank] = (*found.get(rank, ()), *ids)
    return dict(sorted(found.items()))
