# SPDX-License-Identifier: Apache-2.0
"""Steps 1 and 2: the tables of the nodes, and the one that all ranks agree on.

Owns how a table gets from disk to every rank: the first rank of a node reads, digests are compared,
a body crosses once, and all ranks install the same bytes or all start without.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.borrowed import Borrowed
from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.lazy_table import unread_table
from warmup_plugin.cache.manifest import Manifest, parse_manifest
from warmup_plugin.cache.table import Table, parse_table
from warmup_plugin.coordination.decisions import AGREE, LOAD, MERGE, AgreeDecision
from warmup_plugin.coordination.votes import (
    NO_HEADING,
    AgreeVote,
    Heading,
    LoadVote,
    MergeVote,
)
from warmup_plugin.errors import InstallError
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes, decide_agree, decide_load, heading_of
from warmup_plugin.steps.read import NO_LIMIT, Held

if TYPE_CHECKING:
    from warmup_plugin.cache.journal import Death  # noqa: TC004  # of a struct that is never decoded


class Agreed(msgspec.Struct, frozen=True):
    """The table all ranks start from. ``heading``: what all of them know of it.

    On rank 0 alone ``cached`` has its manifest; ``borrowed``: which of its entries are others';
    ``loose``: the keys of entries that no rank has run in its forward, since no manifest verifies
    them. ``deaths``, on all ranks: tasks in which processes have died. ``is_held``: this rank need
    not write it, as its node has these very bytes or another rank writes them.
    """

    cached: CachedTable
    heading: Heading = NO_HEADING
    deaths: Mapping[str, Death] = msgspec.field(default_factory=dict)
    borrowed: Borrowed = msgspec.field(default_factory=Borrowed)
    loose: frozenset[str] = frozenset()
    is_held: bool = False

    @property
    def may_skip(self) -> bool:
        """Return whether this table, complete and ours, may spare the forward."""
        return self.heading.complete and self.heading.trusted

    def distrusted(self) -> Agreed:
        """Return it with all entries taken for somebody else's: they are tried before use."""
        heading = replace(self.heading, trusted=False, vouched=False)
        return replace(self, heading=heading, loose=frozenset(self.cached.table.entries))

    @property
    def needs_healing(self) -> bool:
        """Return whether its files should be written anew although nothing is tuned."""
        return bool(self.heading.table) and not self.heading.trusted


def agree(job: Job, held: Held) -> Agreed:
    """Step 2: one table for all ranks, installed on all of them; without one, an empty one."""
    with job.timed("agree"):
        deaths = {t: (death.label, [*death.journals]) for t, death in held.deaths.items()}
        own = AgreeVote(
            **msgspec.structs.asdict(held.vote(job)), mark=_leave_mark(job), deaths=deaths
        )
        decision = job.coordinator.meet(AGREE, own, decide_agree)
        mark, found = decision.mark, decision.deaths
        job.warn(*decision.warnings)
        if decision.go == "merge":
            held, decision = _merge(job, held, decision)
        nothing = agreed = Agreed(CachedTable(Table(job.stamp, {})).rendered())
        with job.failing_as_data() as failed:
            if decision.heading is not None:
                agreed = Agreed(_fetch(job, held, decision, decision.heading), decision.heading)
            _load(job, agreed)
        own_load = LoadVote(error=failed.reason, shares_disk=_has_leaders_disk(job, mark))
        loaded = job.coordinator.meet(LOAD, own_load, decide_load)
        _remove_mark(job, mark)
        if job.coordinator.rank in loaded.redundant:
            job.trace.is_redundant = True
        if loaded.go == "empty":
            job.warn(f"starting without a table: {loaded.reason}")
            agreed = nothing
            _load(job, agreed)
        elif job.leads:
            loose = held.cached.unverified if held.cached else frozenset[str]()
            agreed = replace(agreed, borrowed=held.borrowed, loose=loose)
        return replace(
            agreed,
            is_held=job.store is None or held.sha256 == agreed.heading.table,
            deaths=_deaths(found) if found else {},
        )


def _deaths(found: Mapping[str, tuple[str, list[str]]]) -> dict[str, Death]:
    from warmup_plugin.cache.journal import Death  # few starts hear of one

    return {task: Death(label, tuple(names)) for task, (label, names) in found.items()}


def _load(job: Job, agreed: Agreed) -> None:
    cached = agreed.cached
    job.installed.load(
        cached.table_bytes, job.stamp, job.ops.pass_through, table=cached.table
    )  # fmt: skip


def _leave_mark(job: Job) -> str:
    """Show the other nodes this node's directory, on rank 0; they may have the same one."""
    if not job.leads or job.store is None or len(job.opened.writers) == 1:
        return ""
    name = secrets.token_hex(8)
    job.stack.callback(job.store.remove_mark, name)  # in case that the others are not met again
    return name if job.store.leave_mark(name) else ""


def _has_leaders_disk(job: Job, mark: str) -> bool:
    """Return whether this node's directory is rank 0's, of another node."""
    return bool(mark) and not job.leads and job.store is not None and job.store.sees_mark(mark)


def _remove_mark(job: Job, name: str) -> None:
    if job.leads and name and job.store is not None:
        job.store.remove_mark(name)


def _merge(job: Job, held: Held, decision: AgreeDecision) -> tuple[Held, AgreeDecision]:
    """Merge the different tables of several nodes on rank 0."""
    if job.coordinator.rank in decision.want:
        _offer(job, held, held_by=())
    union = held

    def lead(votes: Votes[MergeVote]) -> AgreeDecision:
        nonlocal union
        found = [_part(job, votes[rank], rank) for rank in decision.want]
        parts = [part for part in found if part is not None]
        union = Held(borrowed=held.borrowed).union(parts, is_whole=False)
        return AgreeDecision(go="one", heading=heading_of(union.vote(job)))

    agreed = job.coordinator.meet(MERGE, held.vote(job), lead)
    return union, agreed


def _part(job: Job, vote: Heading, rank: int) -> CachedTable | None:
    table = parse_table(job.coordinator.get(vote.table), limit=NO_LIMIT)
    if not isinstance(table, Table):
        return None
    body = job.coordinator.get(vote.manifest) if vote.manifest else b""
    manifest = parse_manifest(body, limit=NO_LIMIT)
    return CachedTable(table, manifest if isinstance(manifest, Manifest) else None, (rank, 0, 0))


def _fetch(job: Job, held: Held, decision: AgreeDecision, heading: Heading) -> CachedTable:
    """Return the agreed table with its bytes: rank ``source``'s, whoever else has read a file."""
    if job.coordinator.rank == decision.source:
        _offer(job, held, decision.held_by)
    if held.cached is not None and held.sha256 == heading.table:
        return held.cached
    body = job.coordinator.get(heading.table)
    table = unread_table(body) if heading.vouched else parse_table(body, limit=NO_LIMIT)
    if not isinstance(table, Table):
        raise InstallError(f"the agreed table cannot be read: {table.reason}")
    manifest = fetch_manifest(job, heading.manifest) if job.leads else None
    return CachedTable(table, manifest, table_bytes=body, sha256=heading.table)


def _offer(job: Job, held: Held, held_by: Collection[int]) -> None:
    """Send what others lack: a rank without the table, a writer without its manifest."""
    assert held.cached is not None, "only a rank that has read a table is asked for it"
    lacking = {*range(job.coordinator.size)} - {*held_by}
    if lacking:
        job.coordinator.put(held.cached.table_bytes, held.sha256)
    if not lacking.isdisjoint(job.opened.writers):
        job.coordinator.put(held.cached.manifest_bytes)


def fetch_manifest(job: Job, sha256: str) -> Manifest | None:
    """Return a manifest that some rank has offered; None for an empty digest."""
    found = parse_manifest(job.coordinator.get(sha256), limit=NO_LIMIT) if sha256 else None
    return found if isinstance(found, Manifest) else None
