# SPDX-License-Identifier: Apache-2.0
"""Whether a table, its manifest and its identity fit together: what a start would not use as it is.

Owns that list of faults, for `warmup-plugin verify` and for what comes from another host. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from warmup_plugin.cache.manifest import DEFAULTS, Manifest, TaskRecord
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.stamps import stamp_conflicts
from warmup_plugin.cache.table import Table
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss

#: Digits of a digest that are shown.
_SHORT: Final = 12
_MOST: Final = 3


def faults_of(
    table: Table | Miss,
    manifest: Manifest | Miss,
    identity: Identity | Miss,
    *,
    is_vouched: bool,
    named: str = "",
) -> Iterator[str]:
    """Yield what is wrong with a table, its manifest, its identity, or between them.

    ``is_vouched``: the manifest has the table's sha256. ``named``: the identity that its place
    names, empty where it names none.
    """
    if isinstance(table, Miss):
        yield table.reason
    if isinstance(manifest, Miss):
        yield f"manifest: {manifest.reason}"
    elif not is_vouched and isinstance(table, Table):
        yield "manifest: it vouches for a table with another sha256"
    if isinstance(identity, Miss):
        yield f"{IDENTITY_NAME}: {identity.reason}"
    else:
        yield from _identity_faults(table, manifest, identity, named)
    if isinstance(table, Table) and isinstance(manifest, Manifest):
        yield from _task_faults(table, manifest)


def _identity_faults(
    table: Table | Miss, manifest: Manifest | Miss, identity: Identity, named: str
) -> Iterator[str]:
    if named and named != identity.digest:
        yield f"{IDENTITY_NAME}: its digest is {identity.digest[:_SHORT]}, not the directory"
    if isinstance(manifest, Manifest) and manifest.identity != identity.digest:
        yield f"manifest: of identity {manifest.identity[:_SHORT]}"
    if isinstance(table, Table):
        stamp = identity.factors.get("stamp", {})
        for name, (theirs, ours) in stamp_conflicts(table.stamp, stamp).items():
            yield f"tuned with {name} {theirs}, the identity says {ours}"


def _task_faults(table: Table, manifest: Manifest) -> Iterator[str]:
    if manifest.tasks_miss:
        yield f"manifest: its tasks: {manifest.tasks_miss.reason}"
        return
    lacking = [task for task in manifest.tasks.values() if not _is_answered(table, task)]
    for task in lacking[:_MOST]:
        yield f"{task.op}: a task without its winner"
    if len(lacking) > _MOST:
        yield f"and {len(lacking) - _MOST} more tasks without their winners"


def _is_answered(table: Table, task: TaskRecord) -> bool:
    return task.outcome in DEFAULTS or any(
        key in table.entries for keys in task.keys for key in keys
    )
