# SPDX-License-Identifier: Apache-2.0
"""Steps 6, 7 and 9: one table in every tuner, built, and certified.

Owns the way of results to rank 0, of the merged table's bytes to all ranks and into their tuners,
and the question to every tuner what it serves now. Whatever fails on one rank is a word to the
others: a winner that cannot be built is dropped by all, a table that cannot be installed by one is
taken out by all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

import msgspec

from warmup_plugin.cache.manifest import Manifest, render_manifest
from warmup_plugin.cache.table import Entry, Table, digest, parse_table, render_table
from warmup_plugin.coordination.base import Word, Words
from warmup_plugin.errors import InstallError, RankLostError
from warmup_plugin.planning.codec import pack_results, unpack_results
from warmup_plugin.planning.merge_results import Result, Settled, fallen_with, settle
from warmup_plugin.planning.plan import Plan
from warmup_plugin.runtime.sigterm import Shutdown, TaskLimit
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import decide_certify, decide_ready
from warmup_plugin.steps.rank_stats import collect, row_of
from warmup_plugin.steps.tune import Work, give_up_on, result_of, tune_own
from warmup_plugin.tuner import environment, replay
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task
from warmup_plugin.tuner.task_summary import Tally, answer_key

_NO_LIMIT = 1 << 40


class Shared(msgspec.Struct):
    """The table in force and the sha256 of its manifest (empty where nothing is stored)."""

    table: Table
    manifest: str

    def key_of(self, task: Task) -> str | None:
        """Return the key under which the task's winner stands."""
        return next((key for key in task.keys if key in self.table.entries), None)

    def entry_of(self, task: Task) -> Entry | None:
        """Return the task's winner."""
        key = self.key_of(task)
        return None if key is None else self.table.entries[key]


def share(job: Job, agreed: Agreed, survey: Survey, work: Work) -> Shared:
    """Step 6: rank 0's merged table reaches every rank as bytes, and those are installed."""
    with job.timed("share"):
        shared = Shared(agreed.table, agreed.word.get("manifest", ""))
        if work.is_new and job.shares:
            shared = _exchange(job, agreed, survey, work)
        with job.failing_as_data():
            _install(job, survey, work, shared)
        return shared


def _exchange(job: Job, agreed: Agreed, survey: Survey, work: Work) -> Shared:
    results = [result_of(outcome, job.meeting.rank) for outcome in work.outcomes.values()]
    body = pack_results(results, {task: place for place, task in enumerate(work.plan.tasks)})
    word = {"results": job.meeting.put(body), "error": job.failure}

    def lead(words: Words) -> Word:
        bodies = dict.fromkeys(word["results"] for word in words.values())
        tasks = list(work.plan.tasks)
        found = [unpack_results(job.meeting.get(body), tasks) for body in bodies]
        results = [result for some in found for result in some]
        settled = _settle(agreed, work, results)
        manifest = Manifest(
            identity=job.identity.digest, tasks=settled.tasks, complete=settled.complete,
            generation=agreed.manifest.generation if agreed.manifest else 0,
            engine=job.options.engine[0], engine_version=job.options.engine[1],
            inventory=digest("\n".join(sorted(settled.tasks)).encode()),
        )  # fmt: skip
        return {
            "table": job.meeting.put(render_table(settled.table)),
            "manifest": job.meeting.put(render_manifest(manifest)),
            "left": _spans(work.plan.tasks, settled.tasks),
            "failed": {r.task: r.reason for r in results if r.kind == "failed"},
            "apart": {r.task: r.reason for r in results if r.kind == "unshared"},
            "errors": {str(rank): word["error"] for rank, word in words.items() if word["error"]},
        }

    record = job.meet("share", word, lead)
    job.warn(*(f"rank {rank} did not tune: {error}" for rank, error in record["errors"].items()))
    job.failure = ""
    work.failed, apart = record["failed"], record["apart"]
    survey.unshare(apart)
    _tune_apart(job, survey, work, apart)
    if work.failed:
        job.warn(_tell_failed(survey, work))
    work.left = _left(work.plan, record["left"]) - work.failed.keys() - apart.keys()
    if work.left:
        done = f"{len(work.left)} of {len(list(work.plan.tasks))} tasks are left to the next start"
        job.warn(done + (f": budget of {job.word['budget_s']:g} s" if work.is_over else ""))
    table = parse_table(job.meeting.get(record["table"]), limit=_NO_LIMIT)
    if not isinstance(table, Table):
        raise InstallError(f"the shared table cannot be read: {table.reason}")
    return Shared(table, record["manifest"])


def _tune_apart(job: Job, survey: Survey, work: Work, apart: Collection[str]) -> None:
    """Leave to this rank what no table can hold: it is tuned in step 7, by each rank for itself."""
    rank, local = job.meeting.rank, work.plan.local
    own = (*local.get(rank, ()), *(name for name in apart if name in survey.tasks))
    work.plan = msgspec.structs.replace(work.plan, local={**local, rank: own})


def _tell_failed(survey: Survey, work: Work) -> str:
    """Return the one warning about all tasks that have no winner for the time being."""
    first, reason = next(iter(work.failed.items()))
    number = f"{len(work.failed)} of {len(list(work.plan.tasks))} tasks have no winner"
    return (
        f"{number}, the first {_label(survey, first)}: {reason}; they serve FlashInfer's default "
        "and are tuned again at the next start"
    )


def _settle(agreed: Agreed, work: Work, results: list[Result]) -> Settled:
    records = dict(agreed.manifest.tasks) if agreed.manifest else {}
    labels = {item.id: item.label for lot in work.lots for item in lot.items}
    work.costs = {labels[r.task]: round(r.seconds, 6) for r in results if r.task in labels}
    driver = environment.driver()
    blocked = {task: driver for task, death in agreed.deaths.items() if death.is_blocked}
    blocked |= {t: d for t, d in (agreed.manifest.blocked if agreed.manifest else {}).items()
                if d == driver}  # fmt: skip
    return settle(
        _base(agreed, work), records, work.lots, results, suspects=agreed.deaths, blocked=blocked
    )


def _spans(tasks: Iterable[str], settled: Collection[str]) -> list[list[int]]:
    """Return the tasks that are not settled as few spans of places: they lie at queues' ends."""
    spans: list[list[int]] = []
    for place, task in enumerate(tasks):
        if task not in settled:
            if spans and spans[-1][1] == place:
                spans[-1][1] += 1
            else:
                spans.append([place, place + 1])
    return spans


def _left(plan: Plan, spans: Sequence[Sequence[int]]) -> frozenset[str]:
    tasks = list(plan.tasks) if spans else []
    return frozenset(task for begin, end in spans for task in tasks[begin:end])


def _base(agreed: Agreed, work: Work) -> Table:
    """Return the agreed table without what was borrowed and answers nothing here."""
    asked = {key for lot in work.lots for item in lot.items for key in item.keys}
    unasked = agreed.borrowed.entries.keys() - asked
    kept = {key: entry for key, entry in agreed.table.entries.items() if key not in unasked}
    return Table(agreed.table.stamp, kept, agreed.table.records)


def _own_keys(survey: Survey) -> set[str]:
    return {key for t in survey.tasks.values() if t.state != "unshared" for key in t.keys}


def _met_elsewhere(survey: Survey, table: Table) -> set[str]:
    """Return the keys of this rank's ops at sizes that perhaps only other ranks have met.

    What it serves there one day must be what they serve: ranks may have been given other buckets. A
    rank without a token has met no op and takes them all.
    """
    ops = {task.op for task in survey.tasks.values()}
    met, skipped = (tuple(f"({op!r}, " for op in some) for some in (ops, survey.skipped))
    unshared = {key for t in survey.tasks.values() if t.state == "unshared" for key in t.keys}
    found = {key for key in table.entries if not ops or key.startswith(met)} - unshared
    return {key for key in found if not key.startswith(skipped)}


def _install(
    job: Job, survey: Survey, work: Work, shared: Shared, dropped: Collection[str] = ()
) -> None:
    """Leave in the tuner this rank's entries of the table, and what others had loaded."""
    # A loaded entry answers each known task, and never two (`Survey` tells them apart).
    if not work.is_new and job.installed.only(survey.tally().number("known")):
        return
    own = _own_keys(survey)
    if all(name in survey.tasks for name in dropped):  # else: which keys are another rank's?
        own |= _met_elsewhere(survey, shared.table)
    job.meeting.confirm()
    tasks = (survey.tasks[name] for name in dropped if name in survey.tasks)
    kept = own - {key for task in tasks for key in task.keys}
    entries = {key: shared.table.entries[key] for key in kept if key in shared.table.entries}
    job.installed.load_final(entries, job.stamp, own)


def prepare(job: Job, survey: Survey, work: Work, shared: Shared) -> None:
    """Step 7: build the winners that another rank tuned, then tune what only this rank can."""
    if not work.is_new:
        return
    with job.timed("prepare"):
        failed = _build(job, survey, work, shared) if job.shares and not job.failure else {}
        told = {name: f"{type(error).__name__}: {error}"[:400] for name, error in failed.items()}
        refused = [name for name, error in failed.items() if type(error) is replay.RefusedError]
        word = {"failed": told, "refused": refused, "error": job.failure}

        def lead(words: Words) -> Word:
            record = decide_ready(words)
            fallen = fallen_with(record["drop"], work.lots, shared.table.entries)
            drop = {name: reason for name, (_, reason) in fallen.items()}
            refused = [name for name, (first, _) in fallen.items() if first in record["refused"]]
            return {
                **record, "drop": record["drop"] | drop, "refused": record["refused"] + refused
            }  # fmt: skip

        record = job.meet("ready", word, lead)
        if record["go"] == "defaults":
            job.serve_defaults(record["reason"])
            return
        work.dropped, work.refused = record["drop"], frozenset(record["refused"])
        if work.dropped:
            job.warn(*(f"{_label(survey, n)}: default: {why}" for n, why in work.dropped.items()))
            with job.failing_as_data():
                _install(job, survey, work, shared, work.dropped)
        tune_own(job, survey, work)
        job.meet("built", {}, lambda _words: {"go": "on"})


def _label(survey: Survey, name: str) -> str:
    return survey.tasks[name].label if name in survey.tasks else f"task {name[:8]}"


def _build(job: Job, survey: Survey, work: Work, shared: Shared) -> dict[str, Exception]:
    """Run once every new winner of this rank as it will serve; return those that fail."""
    new = {*work.plan.tasks, *work.plan.held}
    failed: dict[str, Exception] = {}
    limit_s = job.options.settings.task_limit_s

    def give_up(task: Task) -> None:
        reason = f"its winner did not return within {limit_s:.0f} s"
        give_up_on(job, task, reason, is_shared=False)  # it may be this rank: the next start tunes

    # A winner may kill the process that runs it first: what is in hand is marked here as well.
    with TaskLimit(limit_s, give_up) as limit, Shutdown(job.journal.leaves):
        for name in sorted(new):
            task = survey.tasks.get(name)
            entry = shared.entry_of(task) if task is not None else None
            if task is None or entry is None or work.fit.get(name) == entry:
                continue
            if task.call is None:  # a table that is vouched for answers it here
                continue
            limit.begins(task)
            job.meeting.note("prepare", task.label)
            job.journal.begins(task.id, task.label, synced=False)
            try:
                # What was timed here ran at its bucket, not yet at the size that was asked for.
                tuned = work.outcomes.get(name)
                key = shared.key_of(task) or ""
                replay.prepare(task, entry, key, at_bucket=tuned is None or tuned.entry != entry)
            except Exception as error:  # noqa: BLE001  # whatever a runner raises: this winner is out
                failed[name] = error
        job.journal.leaves()
    return failed


def seal(job: Job, agreed: Agreed, survey: Survey) -> Word | None:
    """Return this rank's word for step 9 where the forward has left nothing to do; else None.

    Nothing to tune, install, heal, write or tell: what the survey has asked is what is served.
    """
    is_left = (
        survey.passed
        or survey.skipped
        or survey.unrecorded
        or agreed.deaths
        or agreed.needs_healing
    )
    if is_left or not (job.shares and survey.is_vouched and agreed.is_held):
        return None
    if not (job.installed.only(survey.tally().number("known")) and job.installed.is_intact()):
        return None
    work, shared = Work(), Shared(agreed.table, "")
    served, deviates = _ask(job, survey, work, shared)
    row = row_of(job, survey, work, shared.entry_of)
    word = {"served": served, "deviates": deviates[:8], "published": [], "row": row}
    return {**word, "leaves": job.leaves}


def certify(
    job: Job, survey: Survey | None, work: Work, shared: Shared, published: list[str],
    *, table_sha256: str = "",
) -> Word:  # fmt: skip
    """Step 9: all ranks serve what was agreed, or all serve FlashInfer's defaults.

    Without a survey (``on_hit=skip``) the answers are the table itself, of that sha256.
    """
    with job.timed("certify"):
        served, deviates = "", list[str]()
        with job.failing_as_data():
            if survey is None:
                entries = shared.table.entries
                if not (job.installed.only(len(entries)) and job.installed.is_intact()):
                    job.installed.load_final(entries, job.stamp, entries.keys())
                served = table_sha256
            elif job.shares:
                served, deviates = _ask(job, survey, work, shared)
        deviates += [job.failure] if job.failure else []
        word = {
            "served": served, "deviates": deviates[:8], "published": published,
            "row": row_of(job, survey, work, shared.entry_of), "apart": {}, "leaves": job.leaves,
        }  # fmt: skip
        if survey is not None and job.shares:
            with job.failing_as_data():  # what is served apart is told, no condition for serving
                word["apart"] = _tell_apart(survey)
            job.warn(*filter(None, [job.take_failure()]))

        def lead(words: Words) -> Word:
            collect(job, words)
            return decide_certify(words)

        record = job.meet("certify", word, lead)
        job.is_settled = True
        if record["go"] == "end":
            _end(job, record)
        if record["differ"]:
            job.warn(
                f"ranks serve different tactics for {len(record['differ'])} tasks that are in no "
                f"table: {', '.join(record['differ'][:8])}; WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 has "
                "them on FlashInfer's default everywhere"
            )
        if record["go"] == "defaults" and job.shares:
            job.serve_defaults(record["reason"])
            if job.store is not None:
                job.store.set_aside(job.options.ranks.coordinates, record["reason"])
        return record


def _end(job: Job, record: Word) -> NoReturn:
    """End the job on every rank, since one of them has been told to end."""
    if job.leaves:  # else the signal, given back, would end this process before the others are off
        job.meeting.close()
    raise RankLostError(record["rank"], record["reason"])


def _tell_apart(survey: Survey) -> dict[str, list[str]]:
    """Return label and answer of each task that this rank has tuned for itself, by id."""
    apart = (task for task in survey.tally().others if task.state == "unshared")
    return {task.id: [task.label, str(replay.served(task))] for task in apart}


def _ask(job: Job, survey: Survey, work: Work, shared: Shared) -> tuple[str, list[str]]:
    """Return the digest of what the tuner serves for this rank's tasks, and tasks that deviate.

    An empty string where it has none: an answer to no question certifies nothing.
    On a warm start the tuner was asked during the survey and holds exactly what it held then.
    """
    asked_already = not work.is_new and job.installed.is_intact()
    tally = survey.tally() if asked_already else Tally()
    answers, deviates = {a: [*ids] for a, ids in tally.served.items()}, [*tally.deviating]
    for task in tally.others if asked_already else survey.tasks.values():
        if task.state == "unshared":
            continue
        answer = task.served if asked_already else replay.served(task)
        entry = shared.entry_of(task) if task.id not in work.dropped else None
        if answer != (entry[:2] if entry else None):
            deviates.append(task.label)
        answers.setdefault(answer_key(answer), []).append(task.id)
    told = sorted([str(answer), *sorted(ids)] for answer, ids in answers.items())
    return digest(msgspec.json.encode(told)) if told else "", deviates
