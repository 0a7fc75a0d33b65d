# SPDX-License-Identifier: Apache-2.0
"""Step 8: the table's file.

Owns who writes it (the first rank of each node) and when (where the node does not have it yet). A
table that cannot be stored is a warning, never an error: the next start tunes again.
"""

from __future__ import annotations

from warmup_plugin.cache.cached_table import CachedTable, NotPublished, Published
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.table import Entry
from warmup_plugin.planning.merge_results import without
from warmup_plugin.steps.agree import Agreed, fetch_manifest
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.read import Held
from warmup_plugin.steps.resume import tidy
from warmup_plugin.steps.work import Work


def publish(job: Job, held: Held, agreed: Agreed, shared: CachedTable, work: Work) -> list[str]:
    """Write the agreed table on the first rank of a node; return the paths written."""
    store = job.store
    if store is None or not job.shares or job.opened.mode != "on":
        return []
    node_has_it = held.cached is not None and held.sha256 == agreed.heading.table
    sha256 = work.manifest if work.is_new else agreed.heading.manifest
    if not work.is_new and (node_has_it or not sha256):
        return []
    with job.timed("publish"):
        manifest = fetch_manifest(job, sha256)
        if manifest is None:
            return []
        table, thrown_out = shared.table, _thrown_out(shared, manifest, work)
        if work.dropped:
            # Somebody else's entry was no good, or something was in the way of building a winner.
            again = {*work.plan.held} - {*work.plan.resumed} | work.dropped.keys() - work.refused
            table, manifest = without(table, manifest, work.dropped, again=again)
        job.coordinator.confirm()
        done: Published | NotPublished = NotPublished("")
        with job.failing_as_data() as failed:
            done = store.publish(
                job.options.ranks.coordinates, table, manifest, job.identity, thrown_out=thrown_out
            )
        if isinstance(done, Published):
            tidy(job, store, manifest)
            return [str(done.path)] if done.written else []
        text = f"the table is not stored: {failed.reason or done.reason}"
        if not failed.reason:
            job.trace.logged.add(text)  # by the store, unless an earlier trouble has been
        job.warn(text)
        return []


def _thrown_out(shared: CachedTable, manifest: Manifest, work: Work) -> dict[str, Entry]:
    """Return the entries that nobody vouched for and that are no good: the file may hold them."""
    dropped = work.dropped.keys() & {*work.plan.held}
    keys = {key for name in dropped for keys in manifest.tasks[name].keys for key in keys}
    return {key: shared.table.entries[key] for key in keys & shared.table.entries.keys()}
