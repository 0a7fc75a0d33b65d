# SPDX-License-Identifier: Apache-2.0
"""The receipt of a session: what became of every task, told once.

Owns how the steps' results become a `WarmupReport`, its one log line on rank 0 and its file on the
first rank of each node.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from warmup_plugin import __version__
from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.coordination.decisions import CertifyDecision
from warmup_plugin.observability.report import Agreement, WarmupReport
from warmup_plugin.runtime.process_info import own_card
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.options import Options
from warmup_plugin.steps.rank_stats import by_op, count, raced, waited, what_became
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task

logger = logging.getLogger("warmup_plugin")


def off_report(options: Options) -> WarmupReport:
    """Return the receipt of a session that did not take place."""
    return WarmupReport(
        engine=options.engine[0], engine_version=options.engine[1], plugin_version=__version__,
        flashinfer_version="", rank=options.ranks.rank, world_size=options.ranks.world_size,
        mode="off", strategy=options.settings.strategy, agreement="off", reason="mode off",
    )  # fmt: skip


def make_report(
    job: Job,
    survey: Survey | None = None,
    work: Work | None = None,
    shared: CachedTable | None = None,
    certified: CertifyDecision | None = None,
) -> WarmupReport:
    """Return this rank's receipt; rank 0 logs its line, the first rank of a node keeps it."""
    work, certified = work or Work(), certified or CertifyDecision(go="")
    if strangers := job.coordinator.strangers:
        job.warn(strangers)
    found = _receipt(job, survey, work, shared, certified)
    if job.fleet is not None:
        with job.failing_as_data():
            fleet = job.fleet.told(job, found.agreement, is_warm=found.is_warm)
            found = msgspec.structs.replace(found, fleet=fleet)
    job.progress.end("ready")
    if job.leads:
        logger.info(found.line())
    job.figures.end(found)
    if job.may_write and job.store is not None:
        name = f"{_stamp(found.at)}_rank{found.rank}.json"
        with job.failing_as_data():  # all ranks serve by now: nothing may end one of them
            body = msgspec.json.format(_encoded(found.to_json()), indent=1)
            job.store.write_report(body, name)
    return found


def _receipt(
    job: Job,
    survey: Survey | None,
    work: Work,
    shared: CachedTable | None,
    certified: CertifyDecision,
) -> WarmupReport:
    """Return what all the steps have come to on this rank."""
    recorded = _not_known(survey, work) if survey else ()
    became = what_became(survey, work, shared.entry_of if shared else None)
    options, coordinator, seen, trace = job.options, job.coordinator, job.seen, job.trace
    return WarmupReport(
        engine=options.engine[0], engine_version=options.engine[1], plugin_version=__version__,
        flashinfer_version=compat.version(), rank=coordinator.rank, world_size=coordinator.size,
        mode=job.opened.mode, strategy=job.opened.strategy,
        agreement=_agreement(job, certified), differing=tuple(certified.differ),
        reason=trace.reason, certificate=certified.certificate, identity=job.identity.digest,
        path=_path(job), published=tuple(certified.published),
        tasks=count(became), ops=by_op(became),
        passed_through=dict(survey.passed) if survey else {},
        skipped_ops=tuple(sorted(survey.skipped)) if survey else (),
        unshared={task.label: task.reason for task in recorded if task.state == "unshared"},
        tactics_timed=seen.tactics_timed, passed_through_tactics=seen.passed_through,
        inputs_synthesised=seen.inputs_synthesised,
        passed_through_inputs=seen.passed_through_inputs,
        seconds=dict(trace.seconds), costs=dict(work.costs), timeline=tuple(trace.timeline),
        race=raced(work.outcomes.values()),
        bytes_sent=coordinator.bytes_sent, bytes_received=coordinator.bytes_received,
        met_on=coordinator.way, warnings=tuple(trace.warnings), at=time.time(),
        read=tuple(trace.read), adopted_from=_adopted_from(job, work),
        ranks=tuple(trace.rows), winners=tuple(trace.winners),
        waited=(*trace.waited, *waited(trace.rows)), process=own_card(),
        factors=job.identity.factors if job.leads else {},
    )  # fmt: skip


def _not_known(survey: Survey, work: Work) -> Iterable[Task]:
    """Return the tasks that may have been found to be unshared."""
    return survey.tasks.values() if work.is_new else survey.tally().others


def _stamp(at: float) -> str:
    """Return a time of day for a file's name; two starts within a second have two names."""
    thousandths = int(at * 1000) % 1000
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(at))}.{thousandths:03d}Z"


def _adopted_from(job: Job, work: Work) -> dict[str, int]:
    """Return how many of the job's tasks each other table answers; known to rank 0."""
    held = set(work.plan.held)
    tasks = {item.id: item.keys for lot in work.lots for item in lot.items}
    found: Counter[str] = Counter()
    for name in held & tasks.keys():
        lenders = [job.trace.lenders[key] for key in tasks[name] if key in job.trace.lenders]
        found[lenders[0] if lenders else "entries of this table that no manifest vouched for"] += 1
    return dict(found)


def _path(job: Job) -> str:
    """Return the table that this node's first rank writes, whichever rank asks."""
    if job.files.placement is None or not job.shares:
        return ""
    node = next(i for i, ranks in enumerate(job.opened.nodes) if job.coordinator.rank in ranks)
    return str(job.files.placement.table(*job.opened.coordinates[node]))


def _agreement(job: Job, certified: CertifyDecision) -> Agreement:
    if job.trace.go == "share" and certified.differ:
        return "partial"
    found: dict[str, Agreement] = {
        "share": "certified", "per_rank": "none", "unguarded": "unguarded", "defaults": "defaults",
    }  # fmt: skip
    return found[job.trace.go]


def _encoded(document: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # a path of bytes that are no text
        from warmup_plugin.coordination import messages  # a lone rank has no other use for it

        return messages.text(document).encode()
