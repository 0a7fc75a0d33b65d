# SPDX-License-Identifier: Apache-2.0
"""The directory that holds the directories of all identities, looked at from outside.

Owns what can be said of an identity in a line. Changes nothing; what is not there or cannot be read
is empty, or has its reason in the words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.paths import IDENTITY_NAME, parse_table_name
from warmup_plugin.cli.load import TableFile, factors_in_words, read_identity, read_table
from warmup_plugin.runtime.safe_json import Miss

#: Of an identity's name.
DIGITS = 64
_IDENTITY = re.compile(f"[0-9a-f]{{{DIGITS}}}")


@dataclass(frozen=True)
class Found:
    """An identity that has a directory: what it stands for and the tables in it."""

    identity: str
    words: str
    tables: tuple[TableFile, ...]

    @property
    def num_entries(self) -> int:
        """Return the number of entries of the largest table: each node has its own copy.

        A table with a fault has none that a start takes.
        """
        tables = [t.table for t in self.tables if not t.has_fault]
        return max((len(t.entries) for t in tables if not isinstance(t, Miss)), default=0)

    @property
    def state(self) -> str:
        """Return how much the tables are worth, in a word."""
        if not self.tables:
            return "empty"
        if any(table.has_fault for table in self.tables):
            return "has faults"
        manifests = [t.manifest for t in self.tables if isinstance(t.manifest, Manifest)]
        if not manifests:
            return "no manifest"
        return "complete" if any(m.complete for m in manifests) else "incomplete"

    @property
    def changed(self) -> float:
        """Return when the newest table was written, unix seconds."""
        return max((_changed(table.path) for table in self.tables), default=0.0)


def identities_on(shelf: Path) -> list[str]:
    """Return the identities that have a directory there."""
    return [name for name in _names(shelf) if _IDENTITY.fullmatch(name)]


def look(directory: Path, limit: int) -> Found:
    """Look into the directory of one identity."""
    identity = read_identity(directory / IDENTITY_NAME, limit)
    if isinstance(identity, Miss):
        words = f"? ({IDENTITY_NAME}: {identity.reason})"
    else:
        words = factors_in_words(identity.factors)
    names = [name for name in _names(directory) if parse_table_name(name)]
    tables = tuple(read_table(directory / name, limit) for name in names)
    return Found(directory.name, words, tables)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError:
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
