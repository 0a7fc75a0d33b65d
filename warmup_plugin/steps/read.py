# SPDX-License-Identifier: Apache-2.0
"""Step 1, read: the first rank of each node reads the tables of its node, and those of others.

Owns what is held of them before the ranks agree: `Held`, a table with the keys that nobody vouches
for. What cannot be used is a warning, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.external import Borrowed, borrow
from warmup_plugin.cache.journal import Death
from warmup_plugin.cache.manifest import Manifest, render_manifest
from warmup_plugin.cache.merge import give_way, merge
from warmup_plugin.cache.store import Store, told
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.coordination.votes import MergeVote
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.resume import known_defaults, resume

NO_LIMIT = 1 << 40  # these bytes were checked against their limits when they were read


class Held(msgspec.Struct):
    """What this rank has read: a table with its manifest, as values and as bytes.

    ``table_sha256`` is that of the bytes, empty without a table.
    """

    table: Table | None = None
    manifest: Manifest | None = None
    loose: frozenset[str] = frozenset()
    warnings: list[str] = msgspec.field(default_factory=list)
    is_whole: bool = True
    table_bytes: bytes = b""
    table_sha256: str = ""
    manifest_bytes: bytes = b""
    borrowed: Borrowed = msgspec.field(default_factory=Borrowed)
    deaths: Mapping[str, Death] = msgspec.field(default_factory=dict)

    @classmethod
    def union(cls, parts: list[CachedTable], warnings: list[str], *, is_whole: bool) -> Held:
        """Return the union of several tables."""
        merged = merge(parts)
        if merged.conflicts:
            warnings = [*warnings, f"tables differ in {merged.conflicts} tasks"]
        found = cls(merged.table, merged.manifest, merged.unverified, warnings, is_whole)
        whole = next((part for part in parts if part.table is merged.table), None)
        if whole is not None and whole.manifest is not None and whole.table_bytes:
            found.table_bytes, found.manifest_bytes = whole.table_bytes, whole.manifest_bytes
            found.table_sha256 = whole.manifest.table_sha256  # compared when they were read
        else:
            found.table_bytes = render_table(merged.table)
            found.table_sha256 = digest(found.table_bytes)
            found.manifest_bytes = render_manifest(merged.manifest) if merged.manifest else b""
        return found

    def is_complete(self, engine: tuple[str, str]) -> bool:
        """Return whether the table answers all that this engine asked for last."""
        found = self.manifest
        return bool(found and found.complete and (found.engine, found.engine_version) == engine)

    def vote(self, job: Job) -> MergeVote:
        """Return what the other ranks need to know of it.

        A manifest that no other node can lack needs no name: to hash one of ten thousand tasks
        takes as long as a good part of the rest.
        """
        engine, is_named = job.options.engine, len(job.opened.writers) > 1
        manifest = self.manifest
        return MergeVote(
            table=self.table_sha256,
            manifest=digest(self.manifest_bytes) if manifest and is_named else "",
            defaults=known_defaults(manifest) if manifest else [],
            complete=self.is_complete(engine),
            trusted=manifest is not None and not self.loose and self.is_whole,
            vouched=manifest is not None and not self.loose,
            warnings=self.warnings,
        )


def read(job: Job) -> Held:
    """Step 1: read this node's tables, on the node's first rank; nothing on the others.

    Rank 0 also borrows, where its own table does not say that it is complete.
    """
    with job.timed("read"):
        if job.fleet is not None:
            job.fleet.ask(job)
        if job.store is None:
            job.coordinator.expect()
            return Held()
        with job.failing_as_data():
            return _read(job, job.store)
        return Held(warnings=[f"no table is read: {job.take_failure()}"])


def _read(job: Job, store: Store) -> Held:
    reading = store.read(job.stamp, identity=job.identity.digest, seen=_early_offer(job))
    job.logged |= {f"rank {job.coordinator.rank}: {text}" for text in reading.warnings}
    job.read = told(reading)
    warnings = [*reading.warnings, *(f"{p}: {miss.reason}" for p, miss in reading.misses)]
    held, resumed = Held(warnings=warnings), resume(job, store)
    reading.parts += resumed.parts
    if reading.parts:
        # With a journal beside them the tables are written anew, which takes it away.
        is_whole = not reading.misses and not resumed.parts
        held = Held.union(reading.parts, warnings, is_whole=is_whole)
    kept = job.installed.others if job.options.keep_existing else {}
    parts = reading.parts
    if kept and job.leads:
        parts = [give_way(part, kept) for part in reading.parts]
        if any(part is not before for part, before in zip(parts, reading.parts, strict=True)):
            held = Held.union(parts, warnings, is_whole=False)
    held.deaths = resumed.deaths
    if not job.leads or held.is_complete(job.options.engine):
        return held
    return _with_borrowed(job, held, parts, kept)


def _early_offer(job: Job) -> Callable[[bytes, str], None]:
    """Return what sends the first table that is read to ranks that read none, on rank 0."""
    is_lacking = job.leads and len(job.opened.writers) < job.coordinator.size

    def offer(table: bytes, sha256: str) -> None:
        nonlocal is_lacking
        if is_lacking:
            is_lacking = False
            job.coordinator.offer(table, sha256)

    return offer


def _with_borrowed(job: Job, held: Held, own: list[CachedTable], kept: Mapping[str, Entry]) -> Held:
    """Add what others answer, under keys that this table does not have; ``kept`` comes first."""
    options, claimed = job.options, set(held.table.entries if held.table else ())
    for record in (held.manifest.tasks if held.manifest else {}).values():
        claimed.update(key for keys in record.keys for key in keys)
    place, layers = job.placement, job.store.layers if job.store else ()
    usable = [job.directory] if job.directory else []
    shelves, root = [*usable, *layers], place.root if place else None
    found = borrow(
        shelves, options.extra_tables, job.stamp, options.settings, root=root, kept=kept,
        switches=job.identity.factors["switches"],
    )  # fmt: skip
    found = found.without(claimed)
    if not found.entries:
        return held
    job.lenders = found.lenders
    lent = CachedTable(Table(job.stamp, found.entries), None, (0, 0, 0))
    union = Held.union([*own, lent], held.warnings, is_whole=held.is_whole)
    union.borrowed, union.deaths = found, held.deaths
    return union
