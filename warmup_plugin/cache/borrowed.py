# SPDX-License-Identifier: Apache-2.0
"""Entries of others as a value: which there are, whose they are, and which tasks they may answer.

Owns what a borrowed entry may answer; `external.py` reads them. Pure: a warm start has the value,
empty, and reads none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.table import Entry, Table


class Borrowed(msgspec.Struct):
    """Entries by key. ``owners``: the tasks a key's entry may answer; none named is any task.

    ``lenders``: the file or folder that a key's entry is from.
    """

    entries: dict[str, Entry] = msgspec.field(default_factory=dict)
    owners: dict[str, frozenset[str]] = msgspec.field(default_factory=dict)
    lenders: dict[str, str] = msgspec.field(default_factory=dict)

    def take_sibling(self, table: Table, manifest: Manifest, lender: str = "") -> None:
        """Take the winners of tasks that are not here yet."""
        known = frozenset().union(*self.owners.values())
        for task, record in manifest.tasks.items():
            keys = {key for keys in record.keys for key in keys}
            if task in known or not keys.isdisjoint(self.entries):
                continue
            for key in keys & table.entries.keys():
                self.entries[key], self.owners[key] = table.entries[key], frozenset({task})
                self.lenders[key] = lender

    def take_engine(self, table: Table, lender: str = "") -> None:
        """Take an engine's entries: of the same calls, without a word about whose they are."""
        for key, entry in table.entries.items():
            if key not in self.entries:
                self.entries[key], self.owners[key] = entry, frozenset()
                self.lenders[key] = lender

    def without(self, keys: Collection[str]) -> Borrowed:
        """Return what is not under these keys."""
        kept = [key for key in self.entries if key not in keys]
        held: tuple[dict[str, Any], ...] = (self.entries, self.owners, self.lenders)
        return Borrowed(*({key: each[key] for key in kept if key in each} for each in held))

    def answers(self, task: str, keys: Iterable[str]) -> bool:
        """Return whether a task is answered from here and may be."""
        owners = [self.owners[key] for key in keys if key in self.owners]
        return bool(owners) and all(not named or task in named for named in owners)

    def pick(self, task: str, keys: Collection[str]) -> str:
        """Return the key to go by where several answer a task, else nothing; the first read wins.

        So it is where the stages of an engine's pipeline have chosen differently.
        """
        found = [key for key in self.entries if key in keys]
        return found[0] if len(found) > 1 and self.answers(task, keys) else ""

    def misleads(self, task: str, keys: Iterable[str]) -> bool:
        """Return whether an entry from here stands under a key of a task it was not tuned for."""
        owners = [self.owners[key] for key in keys if key in self.owners]
        return any(named and task not in named for named in owners)
