# SPDX-License-Identifier: Apache-2.0
"""Step 7, prepare: each rank builds the winners that it did not tune, by running each once.

Nothing is timed. The round that follows is the bounded barrier of all strategies. A winner that one
rank cannot build is dropped by all.
"""

from __future__ import annotations

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.coordination.decisions import READY, ReadyDecision
from warmup_plugin.coordination.votes import ReadyVote
from warmup_plugin.planning.merge_results import fallen_with
from warmup_plugin.runtime.sigterm import Shutdown
from warmup_plugin.runtime.task_timeout import TaskLimit
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes, decide_ready
from warmup_plugin.steps.share import install_shared, label_of
from warmup_plugin.steps.tune import give_up_on
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner import build
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task


def prepare(job: Job, survey: Survey, work: Work, shared: CachedTable, failure: str) -> str:
    """Step 7: build the winners that another rank tuned; go on when every rank has.

    ``failure``: why this rank could not do its part in steps 5 and 6. Returns why it cannot in this
    one, or an empty string.
    """
    if not work.is_new:
        return failure
    with job.timed("prepare"):
        failed = _build(job, survey, work, shared) if job.shares and not failure else {}
        told = {name: f"{type(error).__name__}: {error}"[:400] for name, error in failed.items()}
        refused = [name for name, error in failed.items() if type(error) is build.RefusedError]
        vote = ReadyVote(failed=told, refused=refused, error=failure)

        def lead(votes: Votes[ReadyVote]) -> ReadyDecision:
            found = decide_ready(votes)
            fallen = fallen_with(found.drop, work.lots, shared.table.entries)
            drop = {name: reason for name, (_, reason) in fallen.items()}
            refused = [name for name, (first, _) in fallen.items() if first in found.refused]
            return msgspec.structs.replace(
                found, drop=found.drop | drop, refused=found.refused + refused
            )

        found = job.coordinator.meet(READY, vote, lead)
        if found.go == "defaults":
            job.serve_defaults(found.reason)
            return failure
        work.dropped, work.refused = found.drop, frozenset(found.refused)
        if not work.dropped:
            return ""
        job.warn(*(f"{label_of(survey, n)}: default: {why}" for n, why in work.dropped.items()))
        with job.failing_as_data() as installing:
            install_shared(job, survey, work, shared, work.dropped)
        return installing.reason


def _build(job: Job, survey: Survey, work: Work, shared: CachedTable) -> dict[str, Exception]:
    """Run once every new winner of this rank as it will serve; return those that fail."""
    new = {*work.plan.tasks, *work.plan.held}
    failed: dict[str, Exception] = {}
    limit_s = job.options.settings.task_limit_s

    def give_up(task: Task) -> None:
        reason = f"its winner did not return within {limit_s:.0f} s"
        give_up_on(job, task, reason, is_shared=False)  # it may be this rank: the next start tunes

    # A winner may kill the process that runs it first: what is in hand is marked here as well.
    with TaskLimit(limit_s, give_up) as limit, Shutdown(job.files.journal.leaves):
        for name in sorted(new):
            task = survey.tasks.get(name)
            entry = shared.entry_of(task.keys) if task is not None else None
            if task is None or entry is None or work.fit.get(name) == entry:
                continue
            if task.call is None:  # a table that is vouched for answers it here
                continue
            limit.begins(task)
            job.coordinator.note("prepare", task.label)
            job.files.journal.begins(task.id, task.label, synced=False)
            try:
                # What was timed here ran at its bucket, not yet at the size that was asked for.
                tuned = work.outcomes.get(name)
                key = shared.key_of(task.keys) or ""
                build.prepare(task, entry, key, at_bucket=tuned is None or tuned.entry != entry)
            except Exception as error:  # noqa: BLE001  # whatever a runner raises: this winner is out
                failed[name] = error
        job.files.journal.leaves()
    return failed
