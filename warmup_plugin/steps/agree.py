# SPDX-License-Identifier: Apache-2.0
"""Steps 1 and 2: the tables of the nodes, and the one that all ranks agree on.

Owns how a table gets from disk to every rank: the first rank of a node reads, digests are compared,
a body crosses once, and all ranks install the same bytes or all start without.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec

from warmup_plugin.cache.external import Borrowed
from warmup_plugin.cache.journal import Death
from warmup_plugin.cache.lazy_table import unread_table
from warmup_plugin.cache.manifest import Manifest, parse_manifest
from warmup_plugin.cache.merge import Part
from warmup_plugin.cache.table import Table, parse_table, render_table
from warmup_plugin.coordination.base import Word, Words
from warmup_plugin.errors import InstallError
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import decide_agree, decide_load
from warmup_plugin.steps.read import NO_LIMIT, Held


class Agreed(msgspec.Struct):
    """The table all ranks start from. ``word`` is the record of the meeting about it.

    On rank 0 alone, ``borrowed``: which of its entries are others'; ``loose``: the keys for which
    no manifest vouches, borrowed ones included. ``deaths``, on all ranks: tasks in which processes
    have died. ``is_held``: this rank need not write it, as its node has these very bytes or another
    rank writes them.
    """

    table: Table
    manifest: Manifest | None
    word: Word
    deaths: Mapping[str, Death] = msgspec.field(default_factory=dict)
    borrowed: Borrowed = msgspec.field(default_factory=Borrowed)
    loose: frozenset[str] = frozenset()
    is_held: bool = False

    @property
    def may_skip(self) -> bool:
        """Return whether this table, complete and ours, may spare the forward."""
        return bool(self.word["go"] == "one" and self.word["complete"] and self.word["trusted"])

    def distrust(self) -> None:
        """Take all entries for somebody else's: they are tried before they are used."""
        self.word = {**self.word, "trusted": False, "vouched": False}
        self.loose = frozenset(self.table.entries)

    @property
    def needs_healing(self) -> bool:
        """Return whether its files should be written anew although nothing is tuned."""
        return bool(self.word["go"] == "one" and not self.word["trusted"])


def agree(job: Job, held: Held) -> Agreed:
    """Step 2: one table for all ranks, installed on all of them; without one, an empty one."""
    with job.timed("agree"):
        deaths = {task: [death.label, death.journals] for task, death in held.deaths.items()}
        own = {**held.word(job), "mark": _leave_mark(job), "deaths": deaths}
        word = job.meet("agree", own, decide_agree)
        mark, found = word["mark"], word.get("deaths", {})
        job.warn(*word["warnings"])
        if word["go"] == "merge":
            held, word = _merge(job, held, word)
        agreed = Agreed(Table(job.stamp, {}), None, {"go": "none"})
        with job.failing_as_data():
            agreed, body = _fetch(job, held, word)
            job.installed.load(body, job.stamp, job.ops.pass_through, table=agreed.table)
        error, shared_disk = job.take_failure(), _has_leaders_disk(job, mark)
        loaded = job.meet("load", {"error": error, "shares_disk": shared_disk}, decide_load)
        _remove_mark(job, mark)
        if job.coordinator.rank in loaded["redundant"]:
            job.store = None  # rank 0 writes the directory of this node too
        if loaded["go"] == "empty":
            job.warn(f"starting without a table: {loaded['reason']}")
            agreed = Agreed(Table(job.stamp, {}), None, {"go": "none"})
            job.installed.load(render_table(agreed.table), job.stamp, job.ops.pass_through)
        elif job.leads:
            agreed.borrowed, agreed.loose = held.borrowed, held.loose
        agreed.is_held = job.store is None or held.table_sha256 == agreed.word.get("table", "")
        agreed.deaths = {task: Death(label, tuple(names)) for task, (label, names) in found.items()}
        return agreed


def _leave_mark(job: Job) -> str:
    """Show the other nodes this node's directory, on rank 0; they may have the same one."""
    if not job.leads or job.store is None or len(job.word["writers"]) == 1:
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


def _merge(job: Job, held: Held, word: Word) -> tuple[Held, Word]:
    """Merge the different tables of several nodes on rank 0."""
    if job.coordinator.rank in word["want"]:
        job.coordinator.put(held.table_bytes)
        job.coordinator.put(held.manifest_bytes)
    union = held

    def lead(words: Words) -> Word:
        nonlocal union
        found = [_part(job, words[rank], rank) for rank in word["want"]]
        parts = [part for part in found if part is not None]
        union = Held.union(parts, [], is_whole=False)
        return {"go": "one", "from": 0, **union.word(job)}

    agreed = job.meet("merge", held.word(job), lead)
    union.borrowed = held.borrowed
    return union, agreed


def _part(job: Job, word: Word, rank: int) -> Part | None:
    table = parse_table(job.coordinator.get(word["table"]), limit=NO_LIMIT)
    if not isinstance(table, Table):
        return None
    body = job.coordinator.get(word["manifest"]) if word["manifest"] else b""
    manifest = parse_manifest(body, limit=NO_LIMIT)
    return Part(table, manifest if isinstance(manifest, Manifest) else None, (rank, 0, 0))


def _fetch(job: Job, held: Held, word: Word) -> tuple[Agreed, bytes]:
    """Return the agreed table and its bytes: rank ``from``'s, whoever else has read a file."""
    if word["go"] == "none":
        empty = Table(job.stamp, {})
        return Agreed(empty, None, word), render_table(empty)
    if job.coordinator.rank == word["from"]:
        _offer(job, held, word)
    if held.table is not None and held.table_sha256 == word["table"]:
        return Agreed(held.table, held.manifest, word), held.table_bytes
    body = job.coordinator.get(word["table"])
    table = unread_table(body) if word["vouched"] else parse_table(body, limit=NO_LIMIT)
    if not isinstance(table, Table):
        raise InstallError(f"the agreed table cannot be read: {table.reason}")
    return Agreed(table, fetch_manifest(job, word["manifest"]) if job.leads else None, word), body


def _offer(job: Job, held: Held, word: Word) -> None:
    """Send what others lack: a rank without the table, a writer without its manifest."""
    lacking = {*range(job.coordinator.size)} - {*word.get("held_by", ())}
    if lacking:
        job.coordinator.put(held.table_bytes, held.table_sha256)
    if not lacking.isdisjoint(job.word["writers"]):
        job.coordinator.put(held.manifest_bytes)


def fetch_manifest(job: Job, sha256: str) -> Manifest | None:
    """Return a manifest that some rank has offered; None for an empty digest."""
    found = parse_manifest(job.coordinator.get(sha256), limit=NO_LIMIT) if sha256 else None
    return found if isinstance(found, Manifest) else None
