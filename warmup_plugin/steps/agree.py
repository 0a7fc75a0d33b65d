# SPDX-License-Identifier: Apache-2.0
"""Steps 1 and 2: the tables of the nodes, and the one that all ranks agree on.

Owns how a table gets from disk to every rank: the first rank of a node reads, digests are compared,
a body crosses once, and all ranks install the same bytes or all start without.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import msgspec

from warmup_plugin.cache.external import Borrowed, borrow
from warmup_plugin.cache.journal import Death
from warmup_plugin.cache.lazy_table import unread_table
from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.merge import Part, give_way, merge
from warmup_plugin.cache.store import Store, told
from warmup_plugin.cache.table import Entry, Table, digest, parse_table, render_table
from warmup_plugin.coordination.base import Word, Words
from warmup_plugin.errors import InstallError
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import decide_agree, decide_load
from warmup_plugin.steps.resume import known_defaults, resume

_NO_LIMIT = 1 << 40  # these bytes were checked against their limits when they were read


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
    def union(cls, parts: list[Part], warnings: list[str], *, is_whole: bool) -> Held:
        """Return the union of several tables."""
        merged = merge(parts)
        if merged.conflicts:
            warnings = [*warnings, f"tables differ in {merged.conflicts} tasks"]
        found = cls(merged.table, merged.manifest, merged.loose, warnings, is_whole)
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

    def word(self, job: Job) -> Word:
        """Return what the other ranks need to know of it.

        A manifest that no other node can lack needs no name: to hash one of ten thousand tasks
        takes as long as a good part of the rest.
        """
        engine, is_named = job.options.engine, len(job.word["writers"]) > 1
        manifest = self.manifest
        return {
            "table": self.table_sha256,
            "manifest": digest(self.manifest_bytes) if manifest and is_named else "",
            "defaults": known_defaults(manifest) if manifest else [],
            "complete": self.is_complete(engine),
            "trusted": manifest is not None and not self.loose and self.is_whole,
            "vouched": manifest is not None and not self.loose,
            "warnings": self.warnings,
        }


def read(job: Job) -> Held:
    """Step 1: read this node's tables, on the node's first rank; nothing on the others.

    Rank 0 also borrows, where its own table does not say that it is complete.
    """
    with job.timed("read"):
        if job.store is None:
            job.meeting.expect()
            return Held()
        with job.failing_as_data():
            return _read(job, job.store)
        return Held(warnings=[f"no table is read: {job.take_failure()}"])


def _read(job: Job, store: Store) -> Held:
    reading = store.read(job.stamp, identity=job.identity.digest, seen=_early_offer(job))
    job.logged |= {f"rank {job.meeting.rank}: {text}" for text in reading.warnings}
    job.read = told(reading)
    warnings = [*reading.warnings, *(f"{p}: {miss.reason}" for p, miss in reading.misses)]
    held, resumed = Held(warnings=warnings), resume(job, store)
    reading.parts += resumed.parts
    if reading.parts:
        # With a journal beside them the tables are written anew, which takes it away.
        is_whole = not reading.misses and not resumed.parts
        held = Held.union(reading.parts, warnings, is_whole=is_whole)
    kept = job.installed.others if job.options.keep_loaded else {}
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
    is_lacking = job.leads and len(job.word["writers"]) < job.meeting.size

    def offer(table: bytes, sha256: str) -> None:
        nonlocal is_lacking
        if is_lacking:
            is_lacking = False
            job.meeting.offer(table, sha256)

    return offer


def _with_borrowed(job: Job, held: Held, own: list[Part], kept: Mapping[str, Entry]) -> Held:
    """Add what others answer, under keys that this table does not have; ``kept`` comes first."""
    options, claimed = job.options, set(held.table.entries if held.table else ())
    for record in (held.manifest.tasks if held.manifest else {}).values():
        claimed.update(key for keys in record.keys for key in keys)
    place, layers = job.placement, job.store.layers if job.store else ()
    usable = [job.directory] if job.directory else []
    shelves, root = [*usable, *layers], place.root if place else None
    found = borrow(
        shelves, options.others, job.stamp, options.settings, root=root, kept=kept,
        switches=job.identity.factors["switches"],
    )  # fmt: skip
    found = found.without(claimed)
    if not found.entries:
        return held
    job.lenders = found.lenders
    lent = Part(Table(job.stamp, found.entries), None, (0, 0, 0))
    union = Held.union([*own, lent], held.warnings, is_whole=held.is_whole)
    union.borrowed, union.deaths = found, held.deaths
    return union


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
        if job.meeting.rank in loaded["redundant"]:
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
    if job.meeting.rank in word["want"]:
        job.meeting.put(held.table_bytes)
        job.meeting.put(held.manifest_bytes)
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
    table = parse_table(job.meeting.get(word["table"]), limit=_NO_LIMIT)
    if not isinstance(table, Table):
        return None
    body = job.meeting.get(word["manifest"]) if word["manifest"] else b""
    manifest = parse_manifest(body, limit=_NO_LIMIT)
    return Part(table, manifest if isinstance(manifest, Manifest) else None, (rank, 0, 0))


def _fetch(job: Job, held: Held, word: Word) -> tuple[Agreed, bytes]:
    """Return the agreed table and its bytes: rank ``from``'s, whoever else has read a file."""
    if word["go"] == "none":
        empty = Table(job.stamp, {})
        return Agreed(empty, None, word), render_table(empty)
    if job.meeting.rank == word["from"]:
        _offer(job, held, word)
    if held.table is not None and held.table_sha256 == word["table"]:
        return Agreed(held.table, held.manifest, word), held.table_bytes
    body = job.meeting.get(word["table"])
    table = unread_table(body) if word["vouched"] else parse_table(body, limit=_NO_LIMIT)
    if not isinstance(table, Table):
        raise InstallError(f"the agreed table cannot be read: {table.reason}")
    return Agreed(table, fetch_manifest(job, word["manifest"]) if job.leads else None, word), body


def _offer(job: Job, held: Held, word: Word) -> None:
    """Send what others lack: a rank without the table, a writer without its manifest."""
    lacking = {*range(job.meeting.size)} - {*word.get("held_by", ())}
    if lacking:
        job.meeting.put(held.table_bytes, held.table_sha256)
    if not lacking.isdisjoint(job.word["writers"]):
        job.meeting.put(held.manifest_bytes)


def fetch_manifest(job: Job, sha256: str) -> Manifest | None:
    """Return a manifest that some rank has offered; None for an empty digest."""
    found = parse_manifest(job.meeting.get(sha256), limit=_NO_LIMIT) if sha256 else None
    return found if isinstance(found, Manifest) else None
