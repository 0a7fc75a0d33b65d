# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide together: from every rank's vote to one decision for all. Pure.

Owns the rules of the rounds, one function each. What the fields mean stands where they are
declared, in `coordination/votes.py` and `coordination/decisions.py`. Rank 0 runs these; the others
obey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from warmup_plugin.coordination.decisions import (
    AgreeDecision,
    CertifyDecision,
    LoadDecision,
    ReadyDecision,
    SurveyDecision,
)
from warmup_plugin.coordination.votes import (
    AgreeVote,
    CertifyVote,
    Heading,
    LoadVote,
    ReadyVote,
    SurveyVote,
)

V = TypeVar("V")
#: The votes of all ranks, by rank.
Votes = Mapping[int, V]


def decide_agree(votes: Votes[AgreeVote]) -> AgreeDecision:
    """Decide which tables there are and whose bodies are needed.

    All nodes that have a table may have the same one; else they are merged.
    """
    held = {rank: vote for rank, vote in votes.items() if vote.table}
    warnings = [f"rank {rank}: {text}" for rank, vote in votes.items() for text in vote.warnings]
    found = AgreeDecision(
        go="none", mark=votes[0].mark, warnings=warnings, deaths=_deaths(votes)
    )  # fmt: skip
    if not held:
        return found
    want = {(held[r].table, held[r].manifest): r for r in sorted(held, reverse=True)}
    if len(want) > 1:
        return msgspec.structs.replace(found, go="merge", want=sorted(want.values()))
    source = min(held)
    return msgspec.structs.replace(
        found, go="one", source=source, held_by=sorted(held), heading=heading_of(held[source])
    )


def heading_of(vote: Heading) -> Heading:
    """Return what a vote says of its table alone."""
    return Heading(
        vote.table, vote.manifest, vote.defaults,
        complete=vote.complete, trusted=vote.trusted, vouched=vote.vouched,
    )  # fmt: skip


def _deaths(votes: Votes[AgreeVote]) -> dict[str, tuple[str, list[str]]]:
    """Return the union of what the nodes have read; they may have one disk or several."""
    found: dict[str, tuple[str, list[str]]] = {}
    for vote in votes.values():
        for task, (label, journals) in vote.deaths.items():
            before = found[task][1] if task in found else []
            found[task] = (label, sorted({*before, *journals}))
    return found


def decide_load(votes: Votes[LoadVote]) -> LoadDecision:
    """Decide whether FlashInfer has taken the agreed table on every rank."""
    redundant = [rank for rank, vote in votes.items() if vote.shares_disk]
    errors = [f"rank {rank}: {vote.error}" for rank, vote in votes.items() if vote.error]
    if errors:
        return LoadDecision(go="empty", reason=errors[0], redundant=redundant)
    return LoadDecision(go="loaded", redundant=redundant)


def decide_survey(votes: Votes[SurveyVote], *, last: bool = False) -> SurveyDecision:
    """Decide what follows from the forwards, in which no rank serves another tactic than the rest.

    A rerun follows where all ranks failed at one op, or all of some pipeline stages at one that no
    other stage calls: without stored tactics in the forward if it was served one, else with the op
    passed through. It is passed through as well where some rank could not record a call of it,
    unless this run was the ``last``. Ops that some rank's skip list takes out serve their default
    on all ranks, since ranks that differ in a tactic may deadlock. On a warm start where every rank
    has its vote of step 9 ready, this decision is the session's last.
    """
    skipped = sorted({op for vote in votes.values() for op in vote.skipped})
    recorded = {op for vote in votes.values() for op in vote.ops}
    found = SurveyDecision(go="warm", skipped=skipped, overruled=sorted(recorded & {*skipped}))
    errors = {rank: vote.error for rank, vote in votes.items() if vote.error}
    if errors:
        rank, op = min(errors), _to_blame(votes, {*errors})
        return msgspec.structs.replace(
            found, go="rerun" if op else "abort", op=op, rank=rank, reason=errors[rank],
            distrust=any(votes[rank].stored for rank in errors),
        )  # fmt: skip
    unrecorded = {op: why for vote in votes.values() for op, why in vote.unrecorded.items()}
    if unrecorded and not last:
        op = min(unrecorded)
        reason = f"a call of it cannot be recorded: {unrecorded[op]}"
        return msgspec.structs.replace(found, go="rerun", op=op, unrecorded=True, reason=reason)
    found = msgspec.structs.replace(found, is_empty=not any(v.asked for v in votes.values()))
    if any(vote.missing or vote.unshared or vote.heal for vote in votes.values()):
        return msgspec.structs.replace(found, go="plan")
    return msgspec.structs.replace(found, certified=_certified(votes))


def _to_blame(votes: Votes[SurveyVote], failing: set[int]) -> str:
    """Return the op at which a forward fails wherever it is called; empty: it is not an op's fault.

    By stages: an op that is passed through may tune in lock step with the other ranks of its own.
    """
    stages = {votes[rank].stage for rank in failing}
    ops = {votes[rank].last_answered for rank in failing}
    if len(ops) != 1 or any(votes[r].stage in stages for r in votes.keys() - failing):
        return ""
    (op,) = ops
    sound = [votes[rank] for rank in votes.keys() - failing]
    is_called = any(op == vote.last_answered or op in vote.ops for vote in sound)
    return "" if is_called else op


def _certified(votes: Votes[SurveyVote]) -> CertifyDecision | None:
    sealed = {rank: vote.sealed for rank, vote in votes.items() if vote.sealed is not None}
    found = decide_certify(sealed) if sealed.keys() == votes.keys() else None
    return found if found is not None and found.go == "serve" else None


def decide_only_survey(votes: Votes[SurveyVote]) -> SurveyDecision:
    """Decide as `decide_survey`, of a forward that cannot run again: a rerun is a retry then.

    A retry ends this session on every rank: another one may run the forward.
    """
    found = decide_survey(votes, last=True)
    return msgspec.structs.replace(found, go="retry") if found.go == "rerun" else found


def decide_ready(votes: Votes[ReadyVote]) -> ReadyDecision:
    """Decide which winners are dropped, and whether the table is in force everywhere.

    A winner that some rank cannot build is dropped with the reason of the first such rank.
    """
    errors = [f"rank {rank}: {vote.error}" for rank, vote in votes.items() if vote.error]
    if errors:
        return ReadyDecision(go="defaults", reason="; ".join(errors), drop={}, refused=[])
    drop: dict[str, str] = {}
    for rank, vote in votes.items():
        for name, reason in vote.failed.items():
            drop.setdefault(name, f"rank {rank}: {reason}")
    refused = sorted({name for vote in votes.values() for name in vote.refused})
    return ReadyDecision(go="serve", drop=drop, refused=refused)


def decide_certify(votes: Votes[CertifyVote]) -> CertifyDecision:
    """Decide whether all ranks serve what was agreed; nobody serves with a rank that leaves.

    A rank's digest covers its own tasks, and stages have different ones: the certificate is over
    the distinct digests, equal on every rank and at every start that serves the same. A rank that
    has no task has no digest; where no rank has one there is nothing to certify.
    """
    published = [path for vote in votes.values() for path in vote.published]
    leaving = [rank for rank, vote in votes.items() if vote.leaves]
    if leaving:
        rank = min(leaving)
        reason = votes[rank].leaves
        return CertifyDecision(go="end", reason=reason, rank=rank, published=published)
    deviates = {rank: vote.deviates for rank, vote in votes.items() if vote.deviates}
    if deviates:
        named = "; ".join(f"rank {rank}: {', '.join(tasks)}" for rank, tasks in deviates.items())
        reason = f"other tactics are served than agreed ({named})"
        return CertifyDecision(go="defaults", reason=reason, published=published)
    served = sorted({vote.served for vote in votes.values()} - {""})
    certificate = hashlib.sha256("".join(served).encode()).hexdigest() if served else ""
    return CertifyDecision(
        go="serve", certificate=certificate, published=published, differ=_differ(votes)
    )


def _differ(votes: Votes[CertifyVote]) -> list[str]:
    """Return the labels of the tasks that ranks tuned for themselves and serve differently."""
    answers: dict[str, dict[str, str]] = {}
    for vote in votes.values():
        for task, (label, answer) in vote.apart.items():
            answers.setdefault(task, {})[answer] = label
    return sorted(
        {label for found in answers.values() if len(found) > 1 for label in found.values()}
    )
