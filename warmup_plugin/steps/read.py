# SPDX-License-Identifier: Apache-2.0
"""Step 1, read: the first rank of each node reads the tables of its node, and those of others.

Owns what is held of them before the ranks agree: `Held`, a table with the keys that nobody vouches
for. What cannot be used is a warning, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.borrowed import Borrowed
from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.store import Reading, Store
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.coordination.votes import MergeVote
from warmup_plugin.observability.report_rows import FileRead
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.steps.context import Job
from warmup_plugin.tuner import environment

if TYPE_CHECKING:
    from warmup_plugin.cache.journal import Death  # noqa: TC004  # of a struct that is never decoded

NO_LIMIT = 1 << 40  # these bytes were checked against their limits when they were read


class Held(msgspec.Struct, frozen=True):
    """What this rank has read: a table, if there is one, and what else the disk says.

    ``is_whole``: the files on disk are as they should be. ``borrowed``: which entries are others'.
    ``deaths``: tasks in which processes have died.
    """

    cached: CachedTable | None = None
    warnings: Sequence[str] = ()
    is_whole: bool = True
    borrowed: Borrowed = msgspec.field(default_factory=Borrowed)
    deaths: Mapping[str, Death] = msgspec.field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """That of the table's bytes, empty without a table."""
        return self.cached.sha256 if self.cached else ""

    def union(self, parts: list[CachedTable], *, is_whole: bool) -> Held:
        """Return it with the union of several tables for its table."""
        merged = _merged(parts).rendered()
        differ = [f"tables differ in {merged.conflicts} tasks"] if merged.conflicts else []
        return replace(self, cached=merged, warnings=(*self.warnings, *differ), is_whole=is_whole)

    def is_complete(self, engine: tuple[str, str]) -> bool:
        """Return whether the table answers all that this engine asked for last."""
        found = self.cached.manifest if self.cached else None
        return bool(found and found.complete and (found.engine, found.engine_version) == engine)

    def vote(self, job: Job) -> MergeVote:
        """Return what the other ranks need to know of it.

        A manifest that no other node can lack needs no name: to hash one of ten thousand tasks
        takes as long as a good part of the rest.
        """
        cached, is_named = self.cached, len(job.opened.writers) > 1
        manifest = cached.manifest if cached else None
        is_verified = cached is not None and cached.is_verified
        return MergeVote(
            table=self.sha256,
            manifest=digest(cached.manifest_bytes) if cached and manifest and is_named else "",
            defaults=known_defaults(manifest) if manifest else [],
            complete=self.is_complete(job.options.engine),
            trusted=is_verified and self.is_whole,
            vouched=is_verified,
            warnings=[*self.warnings],
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
        with job.failing_as_data() as failed:
            return _read(job, job.store)
        return Held(warnings=[f"no table is read: {failed.reason}"])


def _read(job: Job, store: Store) -> Held:
    reading = store.read(job.stamp, identity=job.identity.digest, seen=_early_offer(job))
    job.trace.logged |= {f"rank {job.coordinator.rank}: {text}" for text in reading.warnings}
    job.trace.read = rows_of(reading)
    misses = (f"{path}: {miss.reason}" for path, miss in reading.misses)
    resumed, deaths = _resumed(job, store)
    held = Held(warnings=(*reading.warnings, *misses), deaths=deaths)
    parts = [*reading.parts, *resumed]
    kept = job.installed.others if job.options.keep_existing else {}
    ours = _giving_way(parts, kept) if kept and job.leads else parts
    if parts:
        # With a journal beside them the tables are written anew, which takes it away.
        is_whole = not reading.misses and not resumed
        is_all = all(part is before for part, before in zip(ours, parts, strict=True))
        held = held.union(ours, is_whole=is_whole and is_all)
    if job.fleet is not None:
        job.fleet.has_read(job, parts, held.cached)
    if not job.leads or held.is_complete(job.options.engine):
        return held
    return _with_borrowed(job, held, ours, kept)


def _merged(parts: list[CachedTable]) -> CachedTable:
    if len(parts) == 1 and parts[0].manifest is not None:
        return parts[0]  # as it is, without what a warm start has no other use for
    from warmup_plugin.cache.merge import merge

    return merge(parts)


def _giving_way(parts: list[CachedTable], kept: Mapping[str, Entry]) -> list[CachedTable]:
    from warmup_plugin.cache.merge import give_way  # few sessions keep what is there

    return [give_way(part, kept) for part in parts]


def _resumed(job: Job, store: Store) -> tuple[list[CachedTable], Mapping[str, Death]]:
    """Return what starts that did not finish have tuned, and in which tasks they have died."""
    if not store.has_journals:
        return [], {}
    from warmup_plugin.steps.resume import resume

    found = resume(job, store)
    return found.parts, found.deaths


def known_defaults(manifest: Manifest) -> list[str]:
    """Return the tasks known to have no winner, but for those blocked under another driver."""
    blocked = manifest.blocked
    if not blocked:
        return list(manifest.known_defaults)
    driver = environment.driver()
    return [task for task in manifest.known_defaults if blocked.get(task, driver) == driver]


def rows_of(reading: Reading) -> list[FileRead]:
    """Return what became of each file, for the receipt."""
    rows = [
        FileRead(
            part.path,
            entries=len(part.table.entries),
            reason="" if part.manifest else "no manifest vouches for it",
            generation=part.generation if part.manifest else None,
            complete=bool(part.manifest and part.manifest.complete),
        )
        for part in reading.parts
    ]
    return rows + [FileRead(str(path), reason=miss.reason) for path, miss in reading.misses]


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
    cached, options = held.cached, job.options
    claimed = set(cached.table.entries if cached else ())
    for record in (cached.manifest.tasks if cached and cached.manifest else {}).values():
        claimed.update(key for keys in record.keys for key in keys)
    from warmup_plugin.cache.external import borrow  # a complete table borrows nothing

    place, layers = job.files.placement, job.store.layers if job.store else ()
    usable = [job.files.directory] if job.files.directory else []
    shelves, root = [*usable, *layers], place.root if place else None
    found = borrow(
        shelves, options.extra_tables, job.stamp, options.settings, root=root, kept=kept,
        switches=job.identity.factors["switches"],
    )  # fmt: skip
    found = found.without(claimed)
    if not found.entries:
        return held
    job.trace.lenders = found.lenders
    lent = CachedTable(Table(job.stamp, found.entries))
    return replace(held.union([*own, lent], is_whole=held.is_whole), borrowed=found)
