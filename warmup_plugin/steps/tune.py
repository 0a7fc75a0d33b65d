# SPDX-License-Identifier: Apache-2.0
"""Steps 4 and 5: the plan, and this rank's part of it.

Owns how inventories reach rank 0 and the plan comes back. While `tune` runs nothing crosses ranks;
the others watch the heartbeat, which names the task in hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from warmup_plugin.plan import Inventory, Item, Plan, make_plan
from warmup_plugin.rendezvous import Word, Words
from warmup_plugin.steps.job import Job
from warmup_plugin.tuner import replay
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task


@dataclass
class Work:
    """What is to be done in this session and what this rank has done of it.

    ``is_new`` is false on a warm start: every task is answered and the plan is empty. Rank 0 keeps
    the ``inventories``.
    """

    is_new: bool = False
    plan: Plan = field(default_factory=Plan)
    inventories: Mapping[int, Inventory] = field(default_factory=dict)
    outcomes: dict[str, replay.Outcome] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)


def make_work(job: Job, survey: Survey, surveyed: Word) -> Work:
    """Step 4: rank 0 assigns what no entry answers; every rank gets the whole plan."""
    if surveyed["go"] == "warm":
        return Work()
    with job.timed("plan"):
        work = Work(is_new=True)
        own = job.meeting.put(json.dumps(_inventory(survey)).encode())

        def lead(words: Words) -> Word:
            bodies = {word["inventory"] for word in words.values()}
            items = {name: _items(job.meeting.get(name)) for name in bodies}
            work.inventories = {rank: items[word["inventory"]] for rank, word in words.items()}
            plan = make_plan(
                work.inventories,
                "leader" if job.shares else "per_rank",
                time_nothing=job.word["mode"] == "replay" or job.word["go"] == "defaults",
            )
            return {"plan": job.meeting.put(json.dumps(plan.to_json()).encode())}

        record = job.meeting.meet("plan", {"inventory": own}, lead)
        work.plan = Plan.from_json(json.loads(job.meeting.get(record["plan"])))
        return work


def _inventory(survey: Survey) -> list[Item]:
    tasks = sorted(survey.tasks.values(), key=lambda task: task.id)
    adopted = survey.adopted
    return [Item(t.id, t.op, t.keys, t.state, adopted.get(t.id, ""), t.reason) for t in tasks]


def _items(body: bytes) -> list[Item]:
    return [Item.from_json(row) for row in json.loads(body)]


def tune(job: Job, survey: Survey, work: Work) -> None:
    """Step 5: time the tasks this rank tunes for all."""
    names = work.plan.shared.get(job.meeting.rank, ())
    if not names:
        return
    with job.timed("tune"):
        try:
            work.outcomes = _tune(job, [survey.tasks[name] for name in names], empty=True)
        except Exception as error:  # noqa: BLE001  # the others wait for a word; this is it
            job.failure = f"{type(error).__name__}: {error}"


def tune_own(job: Job, survey: Survey, work: Work) -> None:
    """Time the tasks this rank tunes for itself, and keep their winners in the tuner's memory."""
    names = work.plan.local.get(job.meeting.rank, ())
    if not names or job.options.settings.require_agreement:
        return
    tasks = [survey.tasks[name] for name in names]
    work.outcomes |= _tune(job, tasks, empty=False)


def _tune(job: Job, tasks: Sequence[Task], *, empty: bool) -> dict[str, replay.Outcome]:
    done = 0

    def on_task(task: Task) -> None:
        nonlocal done
        job.meeting.note("tune", task.label)
        if job.options.progress is not None:
            job.options.progress("tune", task.label, done, len(tasks))
        done += 1

    outcomes = replay.tune(tasks, job.seen, on_task, empty=empty)
    labels = {task.id: task.label for task in tasks}
    job.timeline += [(labels[o.task], o.began, o.seconds) for o in outcomes.values()]
    return outcomes
