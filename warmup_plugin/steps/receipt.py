# SPDX-License-Identifier: Apache-2.0
"""The receipt of a session: what became of every task, told once.

Owns how the steps' results become a `WarmupReport`, its one log line on rank 0 and its file on the
first rank of each node.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Collection

from warmup_plugin import __version__
from warmup_plugin.rendezvous import Word
from warmup_plugin.report import Agreement, WarmupReport
from warmup_plugin.steps.job import Job, Options
from warmup_plugin.steps.share import Shared
from warmup_plugin.steps.tune import Work
from warmup_plugin.tuner import probe
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task

logger = logging.getLogger("warmup_plugin")


def off_report(options: Options) -> WarmupReport:
    """Return the receipt of a session that did not take place."""
    return WarmupReport(
        engine=options.engine[0], engine_version=options.engine[1], plugin_version=__version__,
        flashinfer_version="", rank=options.ranks.rank, world_size=options.ranks.world_size,
        mode="off", strategy=options.settings.strategy, agreement="off", reason="mode off",
    )  # fmt: skip


def make_report(
    job: Job,
    survey: Survey | None = None,
    work: Work | None = None,
    shared: Shared | None = None,
    certified: Word | None = None,
) -> WarmupReport:
    """Return this rank's receipt; rank 0 logs its line, the first rank of a node keeps it."""
    work, recorded = work or Work(), list(survey.tasks.values()) if survey else []
    adopted = frozenset(work.plan.held) - frozenset(work.plan.resumed)
    became = _tally(recorded, work, adopted, shared)
    options = job.options
    found = WarmupReport(
        engine=options.engine[0], engine_version=options.engine[1], plugin_version=__version__,
        flashinfer_version=probe.version(), rank=job.meeting.rank, world_size=job.meeting.size,
        mode=job.word["mode"], strategy=job.word["strategy"],
        agreement=_agreement(job), reason=job.word["reason"],
        certificate=(certified or {}).get("certificate", ""),
        identity=job.identity.digest,
        path=_path(job),
        published=tuple((certified or {}).get("published", ())),
        tasks=_count(became),
        ops={op: _count(became, op) for op in sorted({op for op, _ in became})},
        passed_through=dict(survey.passed) if survey else {},
        skipped_ops=tuple(sorted(survey.skipped)) if survey else (),
        unshared={task.label: task.reason for task in recorded if task.state == "unshared"},
        tactics_timed=job.seen.tactics_timed, inputs_synthesised=job.seen.inputs_synthesised,
        seconds=dict(job.seconds), costs=dict(work.costs), timeline=tuple(job.timeline),
        bytes_sent=job.meeting.bytes_sent, bytes_received=job.meeting.bytes_received,
        warnings=tuple(job.warnings), at=time.time(),
    )  # fmt: skip
    if job.leads:
        logger.info(found.line())
    if job.may_write and job.store is not None:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_rank{found.rank}.json"
        with job.failing_as_data():  # all ranks serve by now: nothing may end one of them
            job.store.write_report(json.dumps(found.to_json(), indent=1).encode(), name)
    return found


def _path(job: Job) -> str:
    """Return the table that this node's first rank writes, whichever rank asks."""
    if job.placement is None or not job.shares:
        return ""
    node = next(i for i, ranks in enumerate(job.word["nodes"]) if job.meeting.rank in ranks)
    return str(job.placement.table(*job.word["coordinates"][node]))


def _agreement(job: Job) -> Agreement:
    found: dict[str, Agreement] = {
        "share": "certified", "per_rank": "none", "unguarded": "unguarded", "defaults": "defaults",
    }  # fmt: skip
    return found[job.word["go"]]


def _tally(
    recorded: list[Task], work: Work, adopted: Collection[str], shared: Shared | None
) -> Counter[tuple[str, str]]:
    """Return how many tasks of which op became what."""
    if not work.is_new:  # ten thousand known ones are counted by the dozen
        became: Counter[tuple[str, str]] = Counter()
        for (op, state), number in Counter((task.op, task.state) for task in recorded).items():
            word = {"known": "from_cache", "unshared": "unshared"}.get(state, "default")
            became[op, word] += number
        return became
    return Counter((task.op, _became(task, work, adopted, shared)) for task in recorded)


def _became(task: Task, work: Work, adopted: Collection[str], shared: Shared | None) -> str:
    """Return what became of one task, in the words of the report."""
    outcome = work.outcomes.get(task.id)
    is_tuned = outcome is not None and outcome.kind == "tuned"
    has_entry = shared is not None and shared.entry_of(task) is not None
    words = {
        "unshared": "unshared" in (task.state, outcome.kind if outcome else ""),
        "default": task.id in work.dropped or (outcome is not None and not is_tuned),
        "tuned": is_tuned,
        "adopted": task.id in adopted,
        "left": task.id in work.left,
        "from_cache": task.state == "known",
        "received": has_entry,
    }
    return next((word for word, holds in words.items() if holds), "default")


def _count(became: Counter[tuple[str, str]], op: str | None = None) -> dict[str, int]:
    """Return how many tasks became what, of one op or of all."""
    counts = {"seen": 0, "from_cache": 0, "tuned": 0}
    for (of_op, word), number in became.items():
        if op in (None, of_op):
            counts["seen"] += number
            counts[word] = counts.get(word, 0) + number
    return counts
