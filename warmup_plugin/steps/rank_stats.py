# SPDX-License-Identifier: Apache-2.0
"""What each rank tells rank 0 about itself for the job's receipt.

Owns these rows: when each step and each wait began and how long it took, on this rank's own clock,
counted from the moment its first meeting was over. That moment is about the same on all ranks, so
rows can be laid beside each other without comparing clocks. They travel with the last meeting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from warmup_plugin.cache.gains import serving_ms
from warmup_plugin.coordination.votes import CertifyVote, RankRow
from warmup_plugin.observability.report_rows import RankStats, Wait, Winner
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.work import Work
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task

if TYPE_CHECKING:
    from warmup_plugin.tuner.race.rules import Verdict
    from warmup_plugin.tuner.replay import Outcome

#: Shorter waits are not told: every meeting has its last.
WAIT_S = 0.01
#: Times are told to this many decimal places of a second.
_PLACES = 5


#: A name, its begin and its seconds.
Timed = tuple[str, float, float]
#: From a task's file keys to its winner in the table in force, None where it has none.
EntryOf = Callable[[Iterable[str]], object]


def row_of(job: Job, survey: Survey | None, work: Work, entry_of: EntryOf) -> RankRow:
    """Return this rank's row, with the winners that it has tuned."""
    return RankRow(
        rank=job.coordinator.rank,
        steps=_rounded(job.trace.spans),
        waits=_rounded(job.coordinator.waits, job.zero),
        tactics_timed=job.seen.tactics_timed,
        passed_through_tactics=job.seen.passed_through,
        inputs_synthesised=job.seen.inputs_synthesised,
        bytes_sent=job.coordinator.bytes_sent,
        bytes_received=job.coordinator.bytes_received,
        ops=by_op(what_became(survey, work, entry_of)),
        winners=winners_of(job, survey, work),
    )


def winners_of(job: Job, survey: Survey | None, work: Work) -> list[Winner]:
    """Return a row for each task that this rank has tuned, in the order it did."""
    tasks = survey.tasks if survey else {}
    found = []
    for outcome in work.outcomes.values():
        task = tasks[outcome.task]
        winner = Winner(
            task=outcome.task,
            op=task.op,
            bucket="x".join(map(str, task.buckets)),
            rank=job.coordinator.rank,
            began=round(outcome.began - job.zero, _PLACES),
            seconds=round(outcome.seconds, _PLACES),
            runner=outcome.entry.runner if outcome.entry else "",
            ms=serving_ms(outcome.entry, outcome.ms, outcome.default_ms),
            default_ms=outcome.default_ms,
            reason=outcome.reason,
        )
        found.append(_of_race(winner, outcome.race) if outcome.race is not None else winner)
    return found


def _of_race(winner: Winner, race: Verdict) -> Winner:
    """Return a winner with what its race took and how sure that is of it."""
    return replace(
        winner,
        launches=race.launches,
        device_ms=round(race.device_ms, 3),
        share=round(race.share, 4),
        noise=round(race.noise, 5),
        confidence=round(race.confidence, 4),
        tied=len(race.tied),
    )


def raced(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return what all races of this rank took, beside what sweeps would have; nothing without."""
    races = [outcome.race for outcome in outcomes if outcome.race is not None]
    if not races:
        return {}
    return {
        "tasks": len(races),
        "launches": sum(race.launches for race in races),
        "device_s": round(sum(race.device_ms for race in races) / 1000, 6),
        "sweep_s": round(sum(race.sweep_ms for race in races) / 1000, 6),
    }


def collect(job: Job, votes: Mapping[int, CertifyVote]) -> None:
    """Keep every rank's row on rank 0, which decides about ``votes``."""
    for rank in sorted(votes):
        row = votes[rank].row
        job.trace.winners += row.winners
        job.trace.rows.append(msgspec.convert(row, RankStats, from_attributes=True))


def what_became(
    survey: Survey | None, work: Work, entry_of: EntryOf | None
) -> Counter[tuple[str, str]]:
    """Return how many of this rank's tasks became what, by op and the report's words."""
    found: Counter[tuple[str, str]] = Counter()
    if survey is None:
        return found
    if not work.is_new:  # ten thousand known ones are counted by the dozen
        for (op, state), number in survey.tally().states.items():
            word = {"known": "from_cache", "unshared": "unshared"}.get(state, "default")
            found[op, word] += number
        return found
    adopted, tasks = frozenset(work.plan.held) - frozenset(work.plan.resumed), survey.tasks.values()
    return Counter((task.op, _became(task, work, adopted, entry_of)) for task in tasks)


def _became(task: Task, work: Work, adopted: Collection[str], entry_of: EntryOf | None) -> str:
    """Return what became of one task."""
    outcome = work.outcomes.get(task.id)
    is_tuned = outcome is not None and outcome.kind == "tuned"
    words = {
        "unshared": "unshared" in (task.state, outcome.kind if outcome else ""),
        "failed": task.id in work.failed or (outcome is not None and outcome.kind == "failed"),
        "default": task.id in work.dropped or (outcome is not None and not is_tuned),
        "tuned": is_tuned,
        "adopted": task.id in adopted,
        "left": task.id in work.left,
        "from_cache": task.state == "known",
    }
    found = next((word for word, holds in words.items() if holds), "")
    return found or ("received" if entry_of is not None and entry_of(task.keys) else "default")


def by_op(became: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return the counts of each op."""
    return {op: count(became, op) for op in sorted({op for op, _ in became})}


def count(became: Counter[tuple[str, str]], op: str | None = None) -> dict[str, int]:
    """Return how many tasks became what, of one op or of all."""
    counts = {"seen": 0, "from_cache": 0, "tuned": 0}
    for (of_op, word), number in became.items():
        if op in (None, of_op):
            counts["seen"] += number
            counts[word] = counts.get(word, 0) + number
    return counts


def waited(rows: Iterable[RankStats]) -> list[Wait]:
    """Return who waited for whom: at each meeting, for the rank that came last."""
    came: dict[str, dict[int, float]] = {}
    for row in rows:
        for held, began, _ in row.waits:
            came.setdefault(held, {})[row.rank] = began
    found = []
    for held, at in came.items():
        last = max(at, key=lambda rank: at[rank])
        late = {rank: at[last] - began for rank, began in at.items() if at[last] - began > WAIT_S}
        if late:
            seconds = round(max(late.values()), 4)
            found.append(Wait(held, tuple(sorted(late)), last, seconds))
    return found


def _rounded(spans: Iterable[Timed], zero: float = 0.0) -> list[Timed]:
    """Return spans whose begins count from ``zero``, with few decimal places."""
    return [(name, round(at - zero, _PLACES), round(s, _PLACES)) for name, at, s in spans]
