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
    limit_s, in_hand = job.options.settings.task_limit_s, list[tuple[Task, int]]()
    is_shared = margin is not None

    def give_up(task: Task) -> None:
        give_up_on(job, task, f"did not return within {limit_s:.0f} s", is_shared=is_shared)

    def drawn() -> Iterator[Task]:
        for task, place in tasks:
            in_hand[:] = [(task, place)]
            yield task

    offered, besides = [0], [0]

    def count(candidates: int) -> None:
        offered[0] += candidates

    def look() -> Glance:
        return _glance(job.seen.times, offered[0] and offered[0] + besides[0])

    def on_task(task: Task) -> None:
        limit.begins(task)
        # The default is timed as well, and is no candidate that is offered.
        offered[0], besides[0] = 0, int(bool(margin) or task.recorded().options.memory_only_v2)
        job.progress.task(task.label, len(work.outcomes), look, limit_s)
        job.coordinator.note("tune", counted(task.label, len(work.outcomes)))
        if job.options.progress is not None:
            job.options.progress("tune", task.label, in_hand[0][1], of)
        if is_shared:
            job.files.journal.begins(task.id, task.label)

    with TaskLimit(limit_s, give_up) as limit, compat.telling_candidates(count):
        for outcome in replay.tune(
            drawn(),
            job.seen,
            on_task,
            empty=is_shared,
            margin=margin or 0.0,
            raced=functools.partial(_may_be_raced, job),
        ):
            task = in_hand[0][0]
            work.outcomes[outcome.task] = outcome
            served = serving_ms(outcome.entry, outcome.ms, outcome.default_ms)
            job.progress.tuned(served, outcome.default_ms)
            job.trace.timeline.append(Span(task.label, outcome.began, outcome.seconds))
            yield task, outcome


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
