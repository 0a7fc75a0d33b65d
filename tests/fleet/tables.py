# SPDX-License-Identifier: Apache-2.0
"""Small tables of one identity, as a host would have them: for tests that start no engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from warmup_plugin.cache.cached_table import Published
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.fleet.lease import SCHEMA, Lease
from warmup_plugin.fleet.pointer import Whose
from warmup_plugin.identity import Identity
from warmup_plugin.settings import Settings

STAMP: Final = {"flashinfer_version": "0.7.2.post1", "gpu": "none"}
IDENTITY: Final = Identity.of(model="small", dtype="bfloat16", stamp=STAMP)
WHOSE: Final = Whose("0.7.2.post1", "cpu", IDENTITY.digest)
LIMIT: Final = 1 << 20


def key(name: str) -> str:
    """Return the file key of a task."""
    return f"('op', 'Runner', '{name}')"


def lease_of(
    holder: str, *, identity: str = IDENTITY.digest, schema: int = SCHEMA, beat_s: float = 5.0
) -> Lease:
    """Return a lease as another host has written it once."""
    token = secrets.token_hex(8)
    return Lease(schema=schema, identity=identity, token=token, generation=1, holder=holder,
                 beat_s=beat_s)  # fmt: skip


def write(directory: Path, names: Iterable[str], *, tactic: int = 0, complete: bool = True) -> None:
    """Add tasks with a winner to a host's table."""
    names = list(names)
    tasks = {name: TaskRecord("op", ((key(name),),), "tuned", ms=1.0) for name in names}
    manifest = Manifest(identity=IDENTITY.digest, tasks=tasks, complete=complete, engine="e",
                        engine_version="1")  # fmt: skip
    entries = {key(name): Entry("Runner", tactic) for name in names}
    done = Store(directory, Settings(mode="on")).publish(
        (0, 0, 0), Table(STAMP, entries), manifest, IDENTITY
    )
    assert isinstance(done, Published), done
