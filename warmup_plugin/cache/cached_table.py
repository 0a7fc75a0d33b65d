# SPDX-License-Identifier: Apache-2.0
"""One table as a value: its entries, its manifest, where both are from, and what is verified.

Owns that value, which everything passes on that reads, merges, agrees on or publishes a table. It
never changes: what makes another table of it returns a new one. Beside it, what became of writing
one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec

from warmup_plugin.cache.manifest import Manifest, render_manifest
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.runtime.safe_json import digest

Source = tuple[int, int, int]


class CachedTable(msgspec.Struct, frozen=True):
    """A table and its manifest, if a valid one is with it.

    ``source``: the (tp, pp, dp) of its name. ``path``: the table's file. The bytes are those that
    both were read from, and ``sha256`` is that of the table's; empty where they are not from one
    file. ``conflicts``: of a union, the tasks, and keys outside any, on which its parts disagreed.
    """

    table: Table
    manifest: Manifest | None = None
    source: Source = (0, 0, 0)
    table_bytes: bytes = b""
    manifest_bytes: bytes = b""
    sha256: str = ""
    path: str = ""
    conflicts: int = 0

    @property
    def generation(self) -> int:
        """How often this table has been written, 0 where no manifest says so."""
        return self.manifest.generation if self.manifest else 0

    @property
    def unverified(self) -> frozenset[str]:
        """The keys whose entries no manifest verifies."""
        return frozenset(self.table.entries if self.manifest is None else self.manifest.loose)

    @property
    def is_verified(self) -> bool:
        """Whether a manifest verifies every entry."""
        return self.manifest is not None and not self.manifest.loose

    def key_of(self, keys: Iterable[str]) -> str | None:
        """Return the first of a task's file keys that has an entry."""
        return next((key for key in keys if key in self.table.entries), None)

    def entry_of(self, keys: Iterable[str]) -> Entry | None:
        """Return the entry under that key: the winner of the task."""
        key = self.key_of(keys)
        return None if key is None else self.table.entries[key]

    def changed(self, table: Table, manifest: Manifest | None) -> Self:
        """Return it with other content, which is in no file yet."""
        return msgspec.structs.replace(
            self, table=table, manifest=manifest, table_bytes=b"", manifest_bytes=b"", sha256="",
            path="",
        )  # fmt: skip

    def rendered(self) -> Self:
        """Return it with bytes and sha256: those that were read, or else of what it says now."""
        if self.manifest is not None and self.sha256:
            return self
        table = render_table(self.table)
        return msgspec.structs.replace(
            self, table_bytes=table, sha256=digest(table),
            manifest_bytes=render_manifest(self.manifest) if self.manifest else b"",
        )  # fmt: skip


class Published(msgspec.Struct, frozen=True):
    """The table as it now stands on disk; `written` is false where it stood there already."""

    path: Path
    sha256: str
    bytes: int
    generation: int
    written: bool


class NotPublished(msgspec.Struct, frozen=True):
    """Why nothing was written."""

    reason: str
