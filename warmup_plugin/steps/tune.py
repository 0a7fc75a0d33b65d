# SPDX-License-Identifier: Apache-2.0
"""Steps 4 and 5: the plan, and this rank's part of it.

Owns how inventories reach rank 0 and the plan comes back. While `tune` runs nothing crosses ranks;
the others watch the heartbeat, which names the task in hand.
"""

from __future__ import annotations

import functools
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from warmup_plugin.borrow import Borrowed
from warmup_plugin.errors import RankLostError
from warmup_plugin.manifest import Manifest
from warmup_plugin.plan import Inventory, Item, Plan, find_refused, make_plan
from warmup_plugin.progress import counted
from warmup_plugin.rendezvous import Word, Words
from warmup_plugin.settings import REPLAYS
from warmup_plugin.settle import Result, settle
from warmup_plugin.shutdown import Shutdown, TaskLimit
from warmup_plugin.steps import complete
from warmup_plugin.steps.job import Job
from warmup_plugin.steps.replica import answered, take_turn
from warmup_plugin.steps.tables import Agreed
from warmup_plugin.store import Store
from warmup_plugin.table import Entry, Table
from warmup_plugin.tuner import replay
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task

#: Most refusals that a log is told of; the report counts them all.
_MOST_SAID = 8


@dataclass
class Work:
    """What is to be done in this session and what this rank has done of it.

    ``is_new`` is false on a warm start: every task is answered and the plan is empty. Rank 0 keeps
    the ``inventories``. ``fit``: tasks whose stored entry has been tried on this rank.
    """

    is_new: bool = False
    plan: Plan = field(default_factory=Plan)
    inventories: dict[int, Inventory] = field(default_factory=dict)
    outcomes: dict[str, replay.Outcome] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    fit: Mapping[str, Entry] = field(default_factory=dict)


def make_work(job: Job, agreed: Agreed, survey: Survey, surveyed: Word) -> Work:
    """Step 4: rank 0 assigns what no entry answers; every rank gets the whole plan.

    Where another engine tunes the same on this directory, rank 0 waits for it and adopts.
    """
    if surveyed["go"] == "warm":
        return Work()
    with job.timed("plan"):
        work = Work(is_new=True)
        own = job.meeting.put(json.dumps(inventory(survey)).encode())

        def lead(words: Words) -> Word:
            bodies = {word["inventory"] for word in words.values()}
            items = {name: _items(job.meeting.get(name), agreed) for name in bodies}
            work.inventories = {rank: items[word["inventory"]] for rank, word in words.items()}
            plan = _assign(job, agreed, work.inventories)
            refused = list(find_refused(work.inventories).values())
            body = json.dumps(plan.to_json()).encode()
            refusal = complete.judge(job, work.inventories)
            return {"plan": job.meeting.put(body), "refused": refused[:_MOST_SAID], **refusal}

        record = job.meeting.meet("plan", {"inventory": own}, lead)
        complete.obey(record)
        work.plan = Plan.from_json(json.loads(job.meeting.get(record["plan"])))
        job.warn(*(f"a stored tactic is refused: {why}" for why in record["refused"]))
        if job.shares:
            survey.unshare(work.plan.local.get(job.meeting.rank, ()))
        _follow(job, work.plan)
        return work


def _follow(job: Job, plan: Plan) -> None:
    """Tell how far all ranks are, until the session ends."""
    total = sum(len(names) for names in (*plan.shared.values(), *plan.local.values()))
    job.progress.plan(total)
    if total and job.progress.listens:
        job.meeting.follow(job.progress.heard)
        job.stack.callback(job.meeting.follow, None)


def _assign(job: Job, agreed: Agreed, inventories: dict[int, Inventory]) -> Plan:
    plan = make_plan(
        inventories,
        "leader" if job.shares else "per_rank",
        time_nothing=job.word["mode"] in REPLAYS or job.word["go"] == "defaults",
    )
    if plan.shared and take_turn(job, agreed):
        plan = make_plan(inventories, "leader", answered=answered(agreed, inventories))
    return replace(plan, held=(*plan.held, *_unvouched(agreed, inventories)))


def _unvouched(agreed: Agreed, inventories: dict[int, Inventory]) -> set[str]:
    """Return the tasks that entries answer that no manifest vouches for: all ranks try them."""
    items = (item for found in inventories.values() for item in found if item.state == "known")
    return {item.id for item in items if not agreed.loose.isdisjoint(item.keys)}


def inventory(survey: Survey) -> list[Item]:
    """Return this rank's tasks as they cross ranks."""
    tasks = sorted(survey.tasks.values(), key=lambda task: task.id)
    adopted = survey.adopted
    return [Item(t.id, t.op, t.keys, t.state, adopted.get(t.id, ""), t.reason) for t in tasks]


def _items(body: bytes, agreed: Agreed) -> list[Item]:
    """Return an inventory; a borrowed entry answers the task it was tuned for and no other."""
    return [_judged(Item.from_json(row), agreed.borrowed) for row in json.loads(body)]


def _judged(item: Item, borrowed: Borrowed) -> Item:
    if item.state == "known" and borrowed.misleads(item.id, item.keys):
        return item._replace(state="missing")
    if item.state == "missing" and not item.adopt:
        return item._replace(adopt=borrowed.pick(item.id, item.keys))
    return item


def tune(job: Job, survey: Survey, work: Work) -> None:
    """Step 5: time the tasks this rank tunes for all.

    A shutdown signal ends it after the task in hand; what is tuned by then is kept. So it is by
    whatever else ends this session before it has a table.
    """
    names = work.plan.shared.get(job.meeting.rank, ())
    if not names:
        return
    keep = functools.partial(rescue, job, survey, work)
    job.stack.push(functools.partial(_keep_if_ended, job, keep))
    shutdown = job.stack.enter_context(Shutdown(keep))
    with job.timed("tune"), job.failing_as_data():
        _tune(job, [survey.tasks[name] for name in names], work, shutdown, keep)
    if shutdown.is_requested:
        shutdown.leave()


def _keep_if_ended(
    job: Job, keep: Callable[[], None], _kind: object, error: BaseException | None, _trace: object
) -> None:
    """Keep what is tuned if the user or the loss of another rank ends the session.

    Not once its winners have been run on the other ranks: one of them may be what killed a rank.
    Nor if rank 0 is lost: this rank cannot know then whether it has been given up itself.
    """
    is_loss = isinstance(error, RankLostError) and error.rank not in (0, job.meeting.rank)
    is_interrupt = error is not None and not isinstance(error, Exception)
    if (is_loss or is_interrupt) and "prepare" not in job.seconds:
        keep()


def tune_own(job: Job, survey: Survey, work: Work) -> None:
    """Time the tasks this rank tunes for itself, and keep their winners in the tuner's memory."""
    names = work.plan.local.get(job.meeting.rank, ())
    if not names or job.word["require_agreement"]:
        return
    tasks = [survey.tasks[name] for name in names]
    for task in (task for task in tasks if task.call is None):  # answered, and in a quarrel since
        work.outcomes[task.id] = replay.Outcome(task.id, reason=task.reason)
    with Shutdown(lambda: None) as shutdown:
        _tune(job, [task for task in tasks if task.call is not None], work, shutdown)


def _tune(
    job: Job,
    tasks: Sequence[Task],
    work: Work,
    shutdown: Shutdown,
    keep: Callable[[], None] | None = None,
) -> None:
    """Time the tasks, for all ranks where there is something to ``keep``, else for this one."""
    done, limit_s = 0, job.options.settings.task_limit_s

    def give_up(task: Task) -> None:
        reason = f"did not return within {limit_s:.0f} s"
        work.outcomes[task.id] = replay.Outcome(task.id, reason=reason)
        leave(job, f"{task.label} {reason}", keep)

    def on_task(task: Task) -> None:
        nonlocal done
        limit.begins(task)
        job.progress.task(task.label, len(work.outcomes))
        job.meeting.note("tune", counted(task.label, len(work.outcomes)))
        if job.options.progress is not None:
            job.options.progress("tune", task.label, done, len(tasks))
        done += 1

    labels = {task.id: task.label for task in tasks}
    stop = lambda: shutdown.is_requested  # noqa: E731  # the name says it
    with TaskLimit(limit_s, give_up) as limit:
        for outcome in replay.tune(tasks, job.seen, on_task, empty=keep is not None, stop=stop):
            work.outcomes[outcome.task] = outcome
            job.progress.tuned(outcome.ms, outcome.default_ms)
            job.timeline.append((labels[outcome.task], outcome.began, outcome.seconds))


def leave(job: Job, reason: str, keep: Callable[[], None] | None = None) -> None:
    """Take leave of the others from another thread: this rank's own is stuck for ever."""
    job.meeting.abandon(reason)
    if keep is not None:
        keep()
    job.meeting.close()


def rescue(job: Job, survey: Survey, work: Work) -> None:
    """Write what this rank has tuned so far, under its own name, before its process leaves.

    The next start finds it and tunes the rest. Nothing is asked of the other ranks, which may be
    gone already.
    """
    outcomes = list(work.outcomes.values())
    if not outcomes or not job.shares or job.word["mode"] != "on" or job.placement is None:
        return
    done = {outcome.task for outcome in outcomes}
    items = [item for item in inventory(survey) if item.id in done]
    results = [result_of(outcome, job.meeting.rank) for outcome in outcomes]
    settled = settle(Table(job.stamp, {}), {}, {job.meeting.rank: items}, results)
    manifest = Manifest(
        identity=job.identity.digest, tasks=settled.tasks, complete=False,
        engine=job.options.engine[0], engine_version=job.options.engine[1],
    )  # fmt: skip
    place = job.placement
    store = job.store or Store(place.directory, job.options.settings, root=place.root)
    store.publish(job.options.ranks.coordinates, settled.table, manifest, job.identity)


def result_of(outcome: replay.Outcome, rank: int) -> Result:
    """Return an outcome with where and when it was found out."""
    return Result(
        task=outcome.task, kind=outcome.kind, winner=outcome.winner, entry=outcome.entry,
        reason=outcome.reason, ms=outcome.ms, default_ms=outcome.default_ms,
        rank=rank, host=socket.gethostname(), at=time.time(),
    )  # fmt: skip
