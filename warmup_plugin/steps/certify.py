# SPDX-License-Identifier: Apache-2.0
"""Step 9, certify: the tuner is asked what it now serves for every task; all answers must be equal.

Where they are not, every rank drops our entries and serves the defaults of FlashInfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.coordination.decisions import CERTIFY, CertifyDecision
from warmup_plugin.coordination.votes import CertifyVote
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes, decide_certify
from warmup_plugin.steps.rank_stats import collect, row_of
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task_summary import Answer, Tally, answer_key

if TYPE_CHECKING:
    from warmup_plugin.tuner.task import Task

#: A file key is told by as many digits of its sha256 as a task's id has.
_NAME_DIGITS = 32


def seal(job: Job, agreed: Agreed, survey: Survey) -> CertifyVote | None:
    """Return this rank's vote of step 9 where the forward has left nothing to do; else None.

    Nothing to tune, install, heal, write or tell: what the survey has asked is what is served.
    """
    is_left = (
        survey.passed
        or survey.skipped
        or survey.unrecorded
        or agreed.deaths
        or agreed.needs_healing
        or (job.fleet is not None and job.fleet.has_sample)
    )
    if is_left or not (job.shares and survey.is_vouched and agreed.is_held):
        return None
    if not (job.installed.only(survey.tally().number("known")) and job.installed.is_intact()):
        return None
    work, shared = Work(), agreed.cached
    served, deviates = _ask(job, survey, work, shared)
    return CertifyVote(
        served=served, deviates=deviates[:8], published=[],
        row=row_of(job, survey, work, shared.entry_of), apart={}, leaves=job.leaves,
    )  # fmt: skip


def certify(
    job: Job, survey: Survey | None, work: Work, shared: CachedTable, published: list[str],
    *, table_sha256: str = "", failure: str = "",
) -> CertifyDecision:  # fmt: skip
    """Step 9: all ranks serve what was agreed, or all serve FlashInfer's defaults.

    Without a survey (``on_hit=skip``) the answers are the table itself, of that sha256.
    ``failure``: why the table is not in force on this rank.
    """
    if survey is not None and job.fleet is not None and job.fleet.has_sample:
        from warmup_plugin.steps.spot_check import check_fleet  # only where it is asked for

        check_fleet(job, job.fleet, survey, shared)
    with job.timed("certify"):
        served, deviates = _serving(job, survey, work, shared, table_sha256)
        deviates += [failure] if failure else []
        vote = CertifyVote(
            served=served, deviates=deviates[:8], published=published,
            row=row_of(job, survey, work, shared.entry_of),
            apart=_apart(job, survey) if survey is not None and job.shares else {},
            leaves=job.leaves,
        )  # fmt: skip

        def lead(votes: Votes[CertifyVote]) -> CertifyDecision:
            collect(job, votes)
            return decide_certify(votes)

        found = job.coordinator.meet(CERTIFY, vote, lead)
        job.trace.is_settled = True
        if found.go == "end":
            _end(job, found)
        if found.differ:
            job.warn(
                f"ranks serve different tactics for {len(found.differ)} tasks that are in no "
                f"table: {', '.join(found.differ[:8])}; WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 has "
                "them on FlashInfer's default everywhere"
            )
        if found.go == "defaults" and job.shares:
            job.serve_defaults(found.reason)
            if job.store is not None:
                job.store.set_aside(job.options.ranks.coordinates, found.reason)
        return found


def _serving(
    job: Job, survey: Survey | None, work: Work, shared: CachedTable, table_sha256: str
) -> tuple[str, list[str]]:
    """Ask the tuner what it serves; return the digest, and tasks that deviate or the error."""
    with job.failing_as_data() as failed:
        if survey is None:
            entries = shared.table.entries
            if not (job.installed.only(len(entries)) and job.installed.is_intact()):
                job.installed.load_final(entries, job.stamp, entries.keys())
            return table_sha256, []
        return _ask(job, survey, work, shared) if job.shares else ("", [])
    return "", [failed.reason]


def _apart(job: Job, survey: Survey) -> dict[str, tuple[str, str]]:
    """Return what is served apart: that is told, and no condition for serving."""
    with job.failing_as_data() as failed:
        return _tell_apart(survey)
    job.warn(failed.reason)
    return {}


def _end(job: Job, found: CertifyDecision) -> NoReturn:
    """End the job on every rank, since one of them has been told to end."""
    if job.leaves:  # else the signal, given back, would end this process before the others are off
        job.coordinator.close()
    raise RankLostError(found.rank, found.reason)


def _tell_apart(survey: Survey) -> dict[str, tuple[str, str]]:
    """Return label and answer of each task that this rank has tuned for itself.

    By its id and by each of its file keys: a rank whose list of runners is another one has another
    task, and answers the same calls. Several answers of one key are one text.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    for task in (task for task in survey.tally().others if task.state == "unshared"):
        answer = str(_served(task))
        for name in (task.id, *(digest(key.encode())[:_NAME_DIGITS] for key in task.keys)):
            found.setdefault(name, (task.label, set()))[1].add(answer)
    return {name: (label, " or ".join(sorted(of))) for name, (label, of) in found.items()}


def _served(task: Task) -> Answer:
    from warmup_plugin.tuner.build import served  # a warm start has asked in its forward

    return served(task)


def _ask(job: Job, survey: Survey, work: Work, shared: CachedTable) -> tuple[str, list[str]]:
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
        answer = task.served if asked_already else _served(task)
        entry = shared.entry_of(task.keys) if task.id not in work.dropped else None
        if answer != (entry[:2] if entry else None):
            deviates.append(task.label)
        answers.setdefault(answer_key(answer), []).append(task.id)
    told = sorted([str(answer), *sorted(ids)] for answer, ids in answers.items())
    return digest(msgspec.json.encode(told)) if told else "", deviates
