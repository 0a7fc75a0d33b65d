# SPDX-License-Identifier: Apache-2.0
"""Before step 9, where it is asked for: some of the fleet's winners against FlashInfer's default.

Owns that check. Rank 0 makes it alone, while the others wait in the round of step 9 and in no
collective: later the calls and their inputs are gone, and the other ranks are in their next
forward. It changes nothing of what is served. What loses is told, and this start publishes nothing.
What fails in it costs the check alone.
"""

from __future__ import annotations

import time
from typing import Final

from msgspec.structs import replace

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.observability.report_rows import FleetCheck
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.fleet import Fleet
from warmup_plugin.topology import host_name
from warmup_plugin.tuner import device, environment, spot_check
from warmup_plugin.tuner.counters import is_measurement
from warmup_plugin.tuner.survey import Survey
from warmup_plugin.tuner.task import Task

#: After so long no further entry is begun, seconds.
_LONGEST_S: Final = 5.0


def check_fleet(job: Job, fleet: Fleet, survey: Survey, shared: CachedTable) -> None:
    """Time what the survey has kept for it; rank 0's receipt and log say what lost."""
    assert fleet.sample is not None
    if not job.shares:
        return
    with job.timed("check"), job.failing_as_data() as failed:
        until = time.monotonic() + _LONGEST_S
        for name in fleet.sample.tasks:
            task = survey.tasks.get(name)  # the op may have been passed through since
            if time.monotonic() < until and task is not None and task.state == "known":
                job.coordinator.note("check", task.label)
                row = _checked(job, task, shared)
                fleet.checks.append(row)
                if row.is_slower:
                    job.warn(f"fleet {fleet.url}: {_said(row)}")
    if failed.reason:
        job.warn(f"the fleet's winners are not checked: {failed.reason}")


def _checked(job: Job, task: Task, shared: CachedTable) -> FleetCheck:
    """Return what an entry has come to; what it raises is its reason."""
    key = shared.key_of(task.keys) or ""
    entry, row = shared.table.entries.get(key), FleetCheck(task=task.id, op=task.op, bucket=task.at)
    if entry is None:
        return replace(row, reason="the table has no entry of it any more")
    row = replace(
        row, runner=entry.runner, tactic=str(entry.tactic), host=host_name(),
        gpu=str(environment.gpu().get("name", "")),
    )  # fmt: skip
    try:
        ms, default_ms = spot_check.time_both(task, entry, key, job.seen)
    except Exception as error:  # noqa: BLE001  # whatever a runner raises: this one is not timed
        device.clear_error()
        return replace(row, reason=f"{type(error).__name__}: {error}"[:400])
    if not (is_measurement(ms) and is_measurement(default_ms)):
        return replace(row, reason=f"{ms!r} and {default_ms!r} ms are no measurements")
    is_slower = default_ms < ms * (1 - job.opened.margin)
    return replace(row, ms=ms, default_ms=default_ms, is_slower=is_slower)


def _said(row: FleetCheck) -> str:
    gpu = f" ({row.gpu})" if row.gpu else ""
    return (
        f"{row.op} @ {row.bucket}: its winner, tactic {row.tactic} of {row.runner}, takes "
        f"{row.ms:.4g} ms, FlashInfer's default {row.default_ms:.4g} ms, on {row.host}{gpu}; this "
        "start serves the table and does not publish it"
    )
