# SPDX-License-Identifier: Apache-2.0
"""Step 6, share: one table in every tuner.

Owns the way of results to rank 0, and of the merged table's bytes to all ranks and into their
tuners. A table that one rank cannot install is taken out by all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.manifest import Manifest, render_manifest
from warmup_plugin.cache.table import Table, parse_table, render_table
from warmup_plugin.cache.task_result import Result
from warmup_plugin.coordination.decisions import SHARE, ShareDecision
from warmup_plugin.coordination.votes import ShareVote
from warmup_plugin.errors import InstallError
from warmup_plugin.planning.assignment import Plan
from warmup_plugin.planning.codec import pack_results, unpack_results
from warmup_plugin.planning.merge_results import Settled, settle
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes
from warmup_plugin.steps.tune import result_of
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner import environment
from warmup_plugin.tuner.survey import Survey

_NO_LIMIT = 1 << 40


def share(
    job: Job, agreed: Agreed, survey: Survey, work: Work, failure: str
) -> tuple[CachedTable, str]:
    """Step 6: rank 0's merged table reaches every rank as bytes, and those are installed.

    ``failure``: why this rank has not tuned all that it should. Returns the table, and what of that
    has not been told, or why the table is not installed here; an empty string for neither.
    """
    with job.timed("share"):
        shared = agreed.cached
        if work.is_new and job.shares:
            shared, failure = _exchange(job, agreed, survey, work, failure), ""
        with job.failing_as_data() as failed:
            install_shared(job, survey, work, shared)
        return shared, failed.reason or failure


def _exchange(job: Job, agreed: Agreed, survey: Survey, work: Work, failure: str) -> CachedTable:
    """Send this rank's results to rank 0; return the table that it makes of all."""
    results = [result_of(outcome, job.coordinator.rank) for outcome in work.outcomes.values()]
    body = pack_results(results, {task: place for place, task in enumerate(work.plan.tasks)})
    vote = ShareVote(results=job.coordinator.put(body), error=failure)
    found = job.coordinator.meet(SHARE, vote, lambda votes: _merged(job, agreed, work, votes))
    job.warn(*(f"rank {rank} did not tune: {error}" for rank, error in found.errors.items()))
    _take_over(job, survey, work, found)
    table = parse_table(job.coordinator.get(found.table), limit=_NO_LIMIT)
    if not isinstance(table, Table):
        raise InstallError(f"the shared table cannot be read: {table.reason}")
    work.manifest = found.manifest
    return CachedTable(table)


def _merged(job: Job, agreed: Agreed, work: Work, votes: Votes[ShareVote]) -> ShareDecision:
    """Make one table of all ranks' results, on rank 0."""
    bodies = dict.fromkeys(vote.results for vote in votes.values())
    tasks = list(work.plan.tasks)
    found = [unpack_results(job.coordinator.get(body), tasks) for body in bodies]
    results = [result for some in found for result in some]
    settled = _settle(agreed, work, results)
    manifest = Manifest(
        identity=job.identity.digest, tasks=settled.tasks, complete=settled.complete,
        generation=work.base.generation,
        engine=job.options.engine[0], engine_version=job.options.engine[1],
        inventory=digest("\n".join(sorted(settled.tasks)).encode()),
    )  # fmt: skip
    return ShareDecision(
        go="install",
        table=job.coordinator.put(render_table(settled.table)),
        manifest=job.coordinator.put(render_manifest(manifest)),
        left=_spans(work.plan.tasks, settled.tasks),
        failed={r.task: r.reason for r in results if r.kind == "failed"},
        apart={r.task: r.reason for r in results if r.kind == "unshared"},
        errors={rank: vote.error for rank, vote in votes.items() if vote.error},
    )


def _take_over(job: Job, survey: Survey, work: Work, found: ShareDecision) -> None:
    """Know on every rank which tasks the table does not answer, and say so."""
    work.failed, apart = found.failed, found.apart
    survey.unshare(apart)
    work.apart = tuple(name for name in apart if name in survey.tasks)
    if work.failed:
        job.warn(_tell_failed(survey, work))
    work.left = _left(work.plan, found.left) - work.failed.keys() - apart.keys()
    if work.left:
        done = f"{len(work.left)} of {len(list(work.plan.tasks))} tasks are left to the next start"
        job.warn(done + (f": budget of {job.opened.budget_s:g} s" if work.is_over else ""))


def _tell_failed(survey: Survey, work: Work) -> str:
    """Return the one warning about all tasks that have no winner for the time being."""
    first, reason = next(iter(work.failed.items()))
    number = f"{len(work.failed)} of {len(list(work.plan.tasks))} tasks have no winner"
    return (
        f"{number}, the first {label_of(survey, first)}: {reason}; they serve FlashInfer's default "
        "and are tuned again at the next start"
    )


def _settle(agreed: Agreed, work: Work, results: list[Result]) -> Settled:
    manifest = work.base.manifest
    labels = {item.id: item.label for lot in work.lots for item in lot.items}
    work.costs = {labels[r.task]: round(r.seconds, 6) for r in results if r.task in labels}
    driver = environment.driver()
    blocked = {task: driver for task, death in agreed.deaths.items() if death.is_blocked}
    known = manifest.blocked if manifest else {}
    blocked |= {task: since for task, since in known.items() if since == driver}
    return settle(
        _base(agreed, work), manifest.tasks if manifest else {}, work.lots, results,
        suspects=agreed.deaths, blocked=blocked,
    )  # fmt: skip


def _spans(tasks: Iterable[str], settled: Collection[str]) -> list[tuple[int, int]]:
    """Return the tasks that are not settled as few spans of places: they lie at queues' ends."""
    spans: list[tuple[int, int]] = []
    for place, task in enumerate(tasks):
        if task not in settled:
            begins = spans.pop()[0] if spans and spans[-1][1] == place else place
            spans.append((begins, place + 1))
    return spans


def _left(plan: Plan, spans: Sequence[tuple[int, int]]) -> frozenset[str]:
    tasks = list(plan.tasks) if spans else []
    return frozenset(task for begin, end in spans for task in tasks[begin:end])


def _base(agreed: Agreed, work: Work) -> Table:
    """Return the agreed table without what was borrowed and answers nothing here."""
    asked = {key for lot in work.lots for item in lot.items for key in item.keys}
    unasked = agreed.borrowed.entries.keys() - asked
    table = work.base.table
    kept = {key: entry for key, entry in table.entries.items() if key not in unasked}
    return Table(table.stamp, kept, table.records)


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


def install_shared(
    job: Job, survey: Survey, work: Work, shared: CachedTable, dropped: Collection[str] = ()
) -> None:
    """Leave in the tuner this rank's entries of the table, and what others had loaded."""
    # A loaded entry answers each known task, and never two (`Survey` tells them apart).
    if not work.is_new and job.installed.only(survey.tally().number("known")):
        return
    own = survey.shared_keys()
    if all(name in survey.tasks for name in dropped):  # else: which keys are another rank's?
        own |= _met_elsewhere(survey, shared.table)
    job.coordinator.confirm()
    tasks = (survey.tasks[name] for name in dropped if name in survey.tasks)
    kept = own - {key for task in tasks for key in task.keys}
    entries = {key: shared.table.entries[key] for key in kept if key in shared.table.entries}
    job.installed.load_final(entries, job.stamp, own)


def label_of(survey: Survey, name: str) -> str:
    return survey.tasks[name].label if name in survey.tasks else f"task {name[:8]}"
