# SPDX-License-Identifier: Apache-2.0
"""Between steps 3 and 4: stored tactics that nobody vouches for are run once, apart, before use.

Owns that trial. Entries that were borrowed, edited by hand, or whose forward has failed, did not
run in the forward, where one that a runner refuses would leave the other ranks in a collective.
Each rank runs its own here, in no collective, and says which it cannot use: these are tuned anew on
all ranks alike. One that never returns ends this process and is known as a default from then on;
what is in hand is marked in the journal, since a tactic may end the process by itself.
"""

from __future__ import annotations

from warmup_plugin.cache.table import Entry
from warmup_plugin.runtime.sigterm import Shutdown
from warmup_plugin.runtime.task_timeout import TaskLimit
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.tune import give_up_on
from warmup_plugin.tuner import build
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task


def try_stored(job: Job, agreed: Agreed, survey: Survey) -> dict[str, Entry]:
    """Run what no manifest vouches for; return the tasks whose entry is fit, with that entry.

    The others become ``refused``, with the reason.
    """
    fit: dict[str, Entry] = {}
    if survey.is_vouched or not job.shares:
        return fit
    limit_s = job.options.settings.task_limit_s

    def give_up(task: Task) -> None:
        give_up_on(job, task, f"a stored tactic did not return within {limit_s:.0f} s")

    guard = Shutdown(job.files.journal.leaves)
    with job.timed("try"), TaskLimit(limit_s, give_up) as limit, guard:
        for task in survey.tasks.values():
            key = _stored(task, agreed, survey)
            entry = agreed.cached.table.entries.get(key)
            if entry is None or task.id in agreed.deaths:
                continue
            limit.begins(task)
            job.coordinator.note("try", task.label)
            job.files.journal.begins(task.id, task.label, synced=False)
            try:
                build.prepare(task, entry, key if key in task.keys else "")
            except Exception as error:  # noqa: BLE001  # whatever a runner raises: not this tactic
                survey.adopted.pop(task.id, None)
                task.state = "refused"
                task.reason = f"{type(error).__name__}: {error}"[:400]
            else:
                fit[task.id] = entry
        job.files.journal.leaves()
    return fit


def _stored(task: Task, agreed: Agreed, survey: Survey) -> str:
    """Return the key of the entry that would answer a task, or an empty string."""
    if task.id in survey.adopted:
        return survey.adopted[task.id]
    held = (key for key in task.keys if key in agreed.cached.table.entries)
    return next(held, "") if task.state == "known" else ""
