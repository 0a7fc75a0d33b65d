# SPDX-License-Identifier: Apache-2.0
"""Step 3: the forward, run by all ranks at once and compared afterwards.

Owns what happens when a forward fails: where it fails on every rank at the same op, or on every
rank of a pipeline stage that alone has that op, the op cannot take the survey's answer and is
passed through in another run; else the rank raises its own error and the others a `ForwardError`
naming it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from warmup_plugin.cache.store import Store
from warmup_plugin.coordination.decisions import SURVEY, SurveyDecision
from warmup_plugin.coordination.rounds import Decide
from warmup_plugin.coordination.votes import SurveyVote
from warmup_plugin.errors import ForwardError, RankLostError
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.certify import seal
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes, decide_only_survey, decide_survey
from warmup_plugin.steps.rank_stats import collect
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.survey import Survey

#: What is said of a forward that gives this package nothing to do.
_EMPTY = "the forward called nothing that FlashInfer tunes, on any rank"
#: More ops than this that cannot take a default tactic: something else is wrong with the forward.
_MOST_RERUNS = 8


def run_survey(
    job: Job, agreed: Agreed, forward: Callable[[], object]
) -> tuple[Agreed, Survey, SurveyDecision]:
    """Run the forward as the survey; return what it asked for and what all ranks made of it.

    The agreed table is returned as it is after that: one whose tactic failed is not trusted.

    Raises what the forward raised, on its rank, and `ForwardError` on the others.
    """
    survey = _new_survey(job, agreed)
    for attempt in range(_MOST_RERUNS + 1):
        error = None
        try:
            with _recording(job, survey):
                forward()
        except Exception as raised:  # noqa: BLE001  # travels as data, and is raised again below
            error = raised
        decide = partial(decide_survey, last=attempt == _MOST_RERUNS)
        found = _compare(job, agreed, survey, error, attempt=attempt, decide=decide)
        if found.go != "rerun" or attempt == _MOST_RERUNS:
            break
        if found.distrust:
            agreed = agreed.distrusted()
            survey.distrust()
            job.warn(
                f"{found.op} failed in the forward ({found.reason}): stored tactics are "
                "tried apart before they are used"
            )
            continue
        why = "" if found.unrecorded else "cannot take a default tactic: "
        survey.pass_through(found.op, why + found.reason)
        job.warn(f"{found.op} is passed through: {found.reason}")
    _settle(job, survey, found, error)
    return agreed, survey, found


@contextlib.contextmanager
def surveying(job: Job, agreed: Agreed, tell: Callable[[SurveyDecision], None]) -> Iterator[Survey]:
    """Survey the body of a ``with`` statement, which cannot run again; ``tell`` the decision."""
    survey, error = _new_survey(job, agreed), None
    try:
        with _recording(job, survey):
            yield survey
    except Exception as raised:  # noqa: BLE001  # as above
        error = raised
    found = _compare(job, agreed, survey, error, decide=decide_only_survey)
    tell(found)
    _settle(job, survey, found, error)


def _new_survey(job: Job, agreed: Agreed) -> Survey:
    if job.fleet is not None and agreed.heading.vouched:  # else no stored tactic runs in a forward
        job.fleet.begins_to_serve(job)
    sample = job.fleet.sample if job.fleet is not None else None
    return Survey(
        compat.Keys(compat.probe()), job.ops, job.options.ranks,
        clone_bytes=job.options.settings.record_bytes,
        is_default=frozenset(agreed.heading.defaults).__contains__,
        restore=job.installed.restore,
        entries=job.installed.entries(agreed.cached.table),
        is_vouched=not agreed.heading.table or agreed.heading.vouched,
        passing=job.seen.passing_through,
        is_checked=sample.takes if sample is not None else lambda _task: False,
    )  # fmt: skip


@contextlib.contextmanager
def _recording(job: Job, survey: Survey) -> Iterator[None]:
    with (
        job.timed("survey"),
        job.in_forward(),
        job.options.tuning_context(),
        survey.intercept(),
    ):
        yield


def _compare(
    job: Job,
    agreed: Agreed,
    survey: Survey,
    error: Exception | None,
    *,
    attempt: int = 0,
    decide: Decide[SurveyVote, SurveyDecision] = decide_survey,
) -> SurveyDecision:
    tally = survey.tally()
    groups = (survey.tasks, survey.passed, survey.skipped, survey.unrecorded)
    vote = SurveyVote(
        error=f"{type(error).__name__}: {error}"[:1000] if error else "",
        last_answered=survey.last_answered, stage=job.options.ranks.pp_rank,
        unrecorded={**survey.unrecorded}, missing=tally.number("missing", "refused"),
        stored=survey.last_was_stored, unshared=tally.number("unshared"),
        skipped=sorted(survey.skipped), ops=[*tally.ops], asked=sum(map(len, groups)),
        heal=job.shares and agreed.needs_healing,
        sealed=None if error else seal(job, agreed, survey),
    )  # fmt: skip

    def lead(votes: Votes[SurveyVote]) -> SurveyDecision:
        found = decide(votes)
        if found.certified is not None:
            collect(job, {r: vote.sealed for r, vote in votes.items() if vote.sealed is not None})
        return found

    try:
        return job.coordinator.meet(SURVEY.again(attempt), vote, lead)
    except RankLostError as lost:
        _distrust_files(job, survey, str(lost))
        if error is not None:
            raise error from lost  # the others are stuck in the forward that this rank has left
        raise


def _distrust_files(job: Job, survey: Survey, reason: str) -> None:
    """Have the next start try stored tactics apart: one of them may have ended this forward."""
    if survey.has_used_stored and job.opened.mode == "on" and job.files.placement is not None:
        place = job.files.placement
        store = job.store or Store(place.directory, job.options.settings, root=place.root)
        store.disown(f"the forward it was used in failed: {reason}")


def _settle(job: Job, survey: Survey, found: SurveyDecision, error: Exception | None) -> None:
    """Do what the forwards have led to; raise where they have failed."""
    has_failed = found.go in ("abort", "rerun", "retry")
    if has_failed:
        _distrust_files(job, survey, found.reason)
    if error is not None:
        raise error
    if has_failed:
        raise ForwardError(f"rank {found.rank}: the forward failed: {found.reason}")
    job.trace.is_settled = found.certified is not None
    if found.is_empty:
        job.trace.reason = _EMPTY
        job.warn(f"{_EMPTY}: is it the right one, and has it run to its end?")
    for op in found.skipped:
        survey.skip(op)
    for op, reason in survey.unrecorded.items():
        job.warn(f"{op} is not tuned: a call of it cannot be recorded: {reason}")
    if ops := found.overruled:
        job.warn(f"{', '.join(ops)}: default on all ranks, as one rank's skip list has it")
    if not job.installed.is_intact():
        job.installed.restore()
    if survey.passed:
        job.installed.absorb(survey.passed)
