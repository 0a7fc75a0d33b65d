# SPDX-License-Identifier: Apache-2.0
"""Step 5, tune: this rank's part of the plan.

Owns the tasks that this rank times: those that it draws for all ranks, and then its own, whose
winners no other rank takes. No rank waits for another here: each asks the store for the number of
its next task, and the heartbeat names the current one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence

from warmup_plugin.cache.gains import serving_ms
from warmup_plugin.cache.task_result import LASTING, Result
from warmup_plugin.observability.progress import Glance, counted
from warmup_plugin.observability.report_rows import Span
from warmup_plugin.planning import work_queue
from warmup_plugin.runtime.sigterm import Shutdown
from warmup_plugin.runtime.task_timeout import TaskLimit
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.work import FOR_EVER, Work
from warmup_plugin.topology import host_name
from warmup_plugin.tuner import compat, environment, replay
from warmup_plugin.tuner.counters import Time
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task


def tune(job: Job, survey: Survey, work: Work) -> str:
    """Step 5: time tasks for all ranks as long as one is left, then those of this rank alone.

    The tuner holds no entry that could answer one of its own: it is timed and stays in memory.
    Returns why this rank has not timed all that it should, or an empty string.
    """
    failure = _tune_shared(job, survey, work)
    own = work.plan.local.get(job.coordinator.rank, ())
    if not own or job.opened.require_agreement:
        return failure
    with job.failing_as_data() as failed:
        job.coordinator.confirm()
        job.installed.load_final({}, job.stamp, survey.shared_keys())
        _tune_own(job, survey, work, own)
    return failed.reason or failure


def tune_again(job: Job, survey: Survey, work: Work) -> str:
    """Step 5 once more, for the tasks whose winner no table can hold, as step 6 has found out.

    Returns why that has failed, or an empty string.
    """
    if not work.apart or job.opened.require_agreement:
        return ""
    with job.failing_as_data() as failed:
        _tune_own(job, survey, work, work.apart)
    return failed.reason


def _tune_shared(job: Job, survey: Survey, work: Work) -> str:
    """Time tasks that one rank tunes for all; return why not all of them, or an empty string.

    Each result is journalled as soon as it is known, so whatever ends this process loses the
    current task at most. A shutdown signal ends it after that task; so does the budget.
    """
    reach = work_queue.reach(work.plan.shared, job.coordinator.rank)
    if not reach:
        return ""
    shutdown = job.trace.shutdown = job.stack.enter_context(Shutdown(job.files.journal.leaves))
    drawn = work_queue.draw(
        work.plan.shared, job.coordinator.rank, job.coordinator.take,
        lambda: shutdown.is_requested or work.is_over,
    )  # fmt: skip
    tasks = ((survey.tasks[task], place) for task, place in drawn)
    try:
        with job.timed("tune"), job.failing_as_data() as failed:
            for task, outcome in _tune(job, tasks, work, reach, margin=job.opened.margin):
                if outcome.kind in LASTING:
                    result = result_of(outcome, job.coordinator.rank)
                    job.files.journal.found(task.op, task.keys, result, synced=False)
                else:
                    job.files.journal.leaves()
    finally:
        job.files.journal.leaves()
    if shutdown.is_requested:
        shutdown.leave()
    return failed.reason


def _tune_own(job: Job, survey: Survey, work: Work, names: Sequence[str]) -> None:
    """Time tasks that each rank tunes for itself; their winners stay in the tuner's memory."""
    own = [survey.tasks[name] for name in names]
    for task in (task for task in own if task.call is None):  # answered, and in a quarrel since
        work.outcomes[task.id] = replay.Outcome(task.id, reason=task.reason)
    with job.timed("tune"), Shutdown(lambda: None) as shutdown:
        tasks = (
            (task, place)
            for place, task in enumerate(own)
            if task.call is not None and not (shutdown.is_requested or work.is_over)
        )
        for task, outcome in _tune(job, tasks, work, len(names), margin=None):
            if outcome.kind == "failed":
                job.warn(f"{task.label}: no winner: {outcome.reason}; it serves the default")
    job.installed.keep_memory()


def _tune(
    job: Job, tasks: Iterator[tuple[Task, int]], work: Work, of: int, *, margin: float | None
) -> Iterator[tuple[Task, replay.Outcome]]:
    """Tune tasks, each drawn when the one before is done. ``margin``: of what is shared."""
    limit_s, is_shared = job.options.settings.task_limit_s, margin is not None
    current = _Current(job, of, margin)

    def give_up(task: Task) -> None:
        give_up_on(job, task, f"did not return within {limit_s:.0f} s", is_shared=is_shared)

    def begin(task: Task) -> None:
        limit.begins(task)
        current.begin(task, len(work.outcomes))

    with TaskLimit(limit_s, give_up) as limit, compat.telling_candidates(current.count):
        for outcome in replay.tune(
            current.drawn(tasks),
            job.seen,
            begin,
            empty=is_shared,
            margin=margin or 0.0,
            raced=functools.partial(_may_be_raced, job),
        ):
            work.outcomes[outcome.task] = outcome
            current.end(outcome)
            yield current.task, outcome


class _Current:
    """The task that this rank tunes now: what the job, the user and the journal hear of it.

    ``of``: the number of tasks that are tuned in this way; ``margin``: None for this rank alone.
    """

    task: Task

    def __init__(self, job: Job, of: int, margin: float | None) -> None:
        self._job, self._of, self._margin = job, of, margin
        self._place = 0
        #: Candidates known by now, and what is timed beside them.
        self._offered = self._besides = 0

    def drawn(self, tasks: Iterator[tuple[Task, int]]) -> Iterator[Task]:
        """Take one after the other."""
        for self.task, self._place in tasks:
            yield self.task

    def count(self, candidates: int) -> None:
        """Know of so many candidates more."""
        self._offered += candidates

    def begin(self, task: Task, done: int) -> None:
        """Tell that it begins, after so many others on this rank."""
        job, is_shared = self._job, self._margin is not None
        # The default is timed as well, and is no candidate that is offered.
        has_default = bool(self._margin) or task.recorded().options.memory_only_v2
        self._offered, self._besides = 0, int(has_default)
        job.progress.task(task.label, done, self._look, job.options.settings.task_limit_s)
        job.coordinator.note("tune", counted(task.label, done))
        if job.options.progress is not None:
            job.options.progress("tune", task.label, self._place, self._of)
        if is_shared:
            job.files.journal.begins(task.id, task.label)

    def end(self, outcome: replay.Outcome) -> None:
        """Tell what it has come to."""
        served = serving_ms(outcome.entry, outcome.ms, outcome.default_ms)
        self._job.progress.tuned(served, outcome.default_ms)
        timeline = self._job.trace.timeline
        timeline.append(Span(self.task.label, outcome.began, outcome.seconds))

    def _look(self) -> Glance:
        of = self._offered and self._offered + self._besides
        return _glance(self._job.seen.times, of)


def _may_be_raced(job: Job, task: Task) -> bool:
    """Where tuning leaves something behind, each measurement is made as FlashInfer makes it."""
    return job.opened.race and task.op not in job.ops.one_rank


def _glance(times: Sequence[Time], of: int) -> Glance:
    """Return how far a task is: what is timed, of what is known by now to be timed."""
    if not of:
        return Glance()
    of = max(of, len(times))
    finite = [ms for _, _, ms in times if ms < FOR_EVER]
    return Glance(min(len(times) + 1, of), of, min(finite, default=None))


def give_up_on(job: Job, task: Task, reason: str, *, is_shared: bool = True) -> None:
    """Take leave of the others from another thread: this rank's own is stuck for ever.

    A task that all share is known as a default from then on: no start can afford to wait again.
    """
    job.coordinator.abandon(f"{task.label}: {reason}")
    if is_shared:
        outcome = replay.Outcome(task.id, reason=reason)
        job.files.journal.found(task.op, task.keys, result_of(outcome, job.coordinator.rank))
    job.coordinator.close()


def result_of(outcome: replay.Outcome, rank: int) -> Result:
    """Return an outcome with where and when it was found out."""
    race = outcome.race
    return Result(
        task=outcome.task, kind=outcome.kind, winner=outcome.winner, entry=outcome.entry,
        reason=outcome.reason, ms=outcome.ms, default_ms=outcome.default_ms,
        rank=rank, host=host_name(), at=float(int(time.time())), samples=outcome.samples,
        candidates=outcome.candidates, gpu=str(environment.gpu().get("name", "")),
        seconds=outcome.seconds,
        tied=len(race.tied) if race else None, confidence=race.confidence if race else None,
    )  # fmt: skip
