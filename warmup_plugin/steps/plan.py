# SPDX-License-Identifier: Apache-2.0
"""Step 4, plan: from the inventories of all ranks, who tunes what.

Owns the work of this rank, `Work`; each rank sends a digest of its inventory first and the whole
only where rank 0 does not have it yet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping

import msgspec

from warmup_plugin.cache.journal import Death
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.coordination.decisions import PLAN, PlanDecision, SurveyDecision
from warmup_plugin.coordination.votes import PlanVote
from warmup_plugin.errors import SessionError
from warmup_plugin.planning.assignment import Plan
from warmup_plugin.planning.codec import pack_items, packed, unpack_items, unpacked
from warmup_plugin.planning.cost_model import Costs
from warmup_plugin.planning.inventory import Item, Lot, Lots, find_refused
from warmup_plugin.planning.plan import make_plan
from warmup_plugin.planning.timing_history import seconds_by_label
from warmup_plugin.settings import REPLAYS, Strategy
from warmup_plugin.steps import require_complete
from warmup_plugin.steps.agree import Agreed
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.decisions import Votes
from warmup_plugin.steps.single_flight import Turns, answered, grow
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner.survey import Survey

#: Most refusals that a log is told of; the report counts them all.
_MOST_SAID = 8


def make_work(job: Job, agreed: Agreed, survey: Survey, surveyed: SurveyDecision) -> Work:
    """Step 4: rank 0 assigns what no entry answers; every rank gets the whole plan.

    Where another engine tunes for this directory or for the fleet, all ranks hear of it, rank 0
    waits for it, and one more round plans what is left to do.
    """
    _tell_deaths(job, agreed.deaths)
    if surveyed.go == "warm":
        return Work()
    work, turns = Work(is_new=True, base=agreed.cached), Turns()
    with job.timed("plan"):
        own = PlanVote(inventory=[job.coordinator.put(b) for b in _inventories(job, survey)])

        def lead(votes: Votes[PlanVote]) -> PlanDecision:
            work.lots = _lots(job, agreed, votes)
            return _decide(job, agreed, work, turns)

        found = job.coordinator.meet(PLAN, own, lead)
        if found.go != "wait":
            return _taken_up(job, survey, work, found)
    with job.timed("wait"):
        rounds = itertools.count(1)
        while found.go == "wait":
            if job.leads:
                turns.await_next(job, found.reason, work.plan)
            found = job.coordinator.meet(
                PLAN.again(next(rounds)), own, lambda _votes: _decide(job, agreed, work, turns)
            )
        return _taken_up(job, survey, work, found)


def _decide(job: Job, agreed: Agreed, work: Work, turns: Turns) -> PlanDecision:
    """Make the plan on rank 0, unless another engine is to be waited for."""
    work.plan = _assign(job, agreed, work, answered=turns.answered)
    if work.plan.shared:
        if holder := turns.next(job):
            return PlanDecision(go="wait", reason=holder)
        if grow(job, work):
            turns.answered = frozenset(answered(work) - agreed.deaths.keys())
            work.plan = _assign(job, agreed, work, answered=turns.answered)
    if work.plan.shared and (holder := turns.next_in_fleet(job)):
        return PlanDecision(go="wait", reason=holder)
    loose = _unvouched(agreed, work.lots)
    manifest = work.base.manifest
    resumed = loose & manifest.tasks.keys() if loose and manifest else ()
    work.plan = msgspec.structs.replace(
        work.plan, held=(*work.plan.held, *loose), resumed=tuple(resumed)
    )
    reason = require_complete.judge(job, work.lots)
    return PlanDecision(
        go="refuse" if reason else "tune", reason=reason,
        plan=job.coordinator.put(packed(msgspec.to_builtins(work.plan, str_keys=True))),
        refused=list(find_refused(work.lots).values())[:_MOST_SAID],
    )  # fmt: skip


def _taken_up(job: Job, survey: Survey, work: Work, found: PlanDecision) -> Work:
    """Do on every rank what the plan asks for before a task is tuned; return the work."""
    if found.go == "refuse":
        raise SessionError(found.reason)
    if job.fleet is not None:
        job.fleet.has_served()  # from here on the journal names the task in which a process dies
    if job.opened.budget_s:
        work.until = time.monotonic() + job.opened.budget_s
    if not job.leads:
        body = unpacked(job.coordinator.get(found.plan))
        work.plan = msgspec.convert(body, Plan, str_keys=True)
    job.warn(*(f"a stored tactic is refused: {why}" for why in found.refused))
    if job.shares:
        apart = work.plan.local.get(job.coordinator.rank, ())
        survey.unshare(dict.fromkeys(apart, "another rank's task has one of its file keys"))
    _follow(job, work.plan)
    return work


def _tell_deaths(job: Job, deaths: Mapping[str, Death]) -> None:
    """Say which tasks have cost processes, at every start that finds it so."""
    for death in deaths.values():
        if death.is_blocked:
            died = f"{death.label}: {len(death.journals)} processes have died in it"
            job.warn(f"{died}; it serves its default until `warmup-plugin retry` lifts that")
        else:
            job.warn(f"{death.label}: a process has died in it; it is tuned last")


def _follow(job: Job, plan: Plan) -> None:
    """Tell how far all ranks are, until the session ends."""
    total = sum(1 for _ in plan.tasks) + sum(map(len, plan.local.values()))
    job.progress.plan(total)
    if total and job.progress.listens:
        job.coordinator.follow(job.progress.heard)
        job.stack.callback(job.coordinator.follow, None)


def _inventories(job: Job, survey: Survey) -> list[bytes]:
    """Return this rank's tasks in two bodies: those all of its stage have, and those with twins.

    The keys of twins differ by rank; apart from them a thousand ranks have one body in common.
    """
    alike, twins = list[Item](), list[Item]()
    for item in inventory(survey):
        (twins if _has_twins(job, item.op) else alike).append(item)
    return [pack_items(items) for items in (alike, twins) if items]


def _has_twins(job: Job, op: str) -> bool:
    """Return whether keys of an op may differ by rank; not along an axis of one rank."""
    axes = (name.removesuffix("_rank") for name in job.ops.twin_fields.get(op, {}).values())
    return any(getattr(job.options.ranks, f"{axis}_size", 2) > 1 for axis in axes)


def inventory(survey: Survey) -> list[Item]:
    """Return this rank's tasks, in one order on all ranks."""
    tasks = sorted(survey.tasks.values(), key=lambda task: (task.op, task.keys, task.id))
    adopted = survey.adopted
    return [
        Item(
            t.id, t.op, t.keys, t.state, adopted.get(t.id, ""), t.reason, t.at, t.bucket_id, t.met
        )
        for t in tasks
    ]  # fmt: skip


def _lots(job: Job, agreed: Agreed, votes: Votes[PlanVote]) -> list[Lot]:
    ranks: dict[str, list[int]] = {}
    for rank, vote in votes.items():
        for body in vote.inventory:
            ranks.setdefault(body, []).append(rank)
    return [
        Lot(
            tuple(found),
            [_judged(item, agreed) for item in unpack_items(job.coordinator.get(body))],
        )
        for body, found in ranks.items()
    ]


def _judged(item: Item, agreed: Agreed) -> Item:
    """Return an item by what rank 0 knows besides.

    A borrowed entry answers the task it was tuned for and no other; nothing answers a task in which
    a process has died.
    """
    death, borrowed = agreed.deaths.get(item.id), agreed.borrowed
    if death is not None and item.state != "unshared":
        state = "default" if death.is_blocked else "missing"
        reason = f"{len(death.journals)} processes have died in it" if death.is_blocked else ""
        return item._replace(state=state, adopt="", reason=reason)
    if item.state == "known" and borrowed.misleads(item.id, item.keys):
        return item._replace(state="missing")
    if item.state == "missing" and not item.adopt:
        return item._replace(adopt=borrowed.pick(item.id, item.keys))
    return item


def _assign(job: Job, agreed: Agreed, work: Work, *, answered: Collection[str] = ()) -> Plan:
    """Return the plan; ``answered``: tasks that an entry has come to answer since the survey."""
    strategy: Strategy = job.opened.strategy if job.shares else "per_rank"
    return make_plan(
        work.lots, strategy, cost=_costs(job, work.base.manifest), last=agreed.deaths,
        time_nothing=job.opened.mode in REPLAYS or job.trace.go == "defaults",
        one_rank=job.ops.one_rank, answered=answered,
    )  # fmt: skip


def _costs(job: Job, manifest: Manifest | None) -> Costs:
    """Gather what is known of how long tasks take, here and in sibling identities."""
    if job.files.directory is None:
        return Costs()
    candidates: dict[str, int] = {}
    for record in manifest.tasks.values() if manifest else ():
        candidates[record.op] = max(record.candidates or 0, candidates.get(record.op, 0))
    limit = job.options.settings.table_bytes
    known = {op: count for op, count in candidates.items() if count}
    return Costs(seconds_by_label(job.files.directory, limit), known)


def _unvouched(agreed: Agreed, lots: Lots) -> set[str]:
    """Return the tasks that entries answer that no manifest vouches for: all ranks try them."""
    items = (item for lot in lots for item in lot.items if item.state == "known")
    return {item.id for item in items if not agreed.loose.isdisjoint(item.keys)}
