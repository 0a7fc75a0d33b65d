# SPDX-License-Identifier: Apache-2.0
"""Mode ``require-complete``: a start whose table lacks something ends before it has tuned anything.

Owns what counts as missing, the words for it, and that every rank raises the same `SessionError`.
Tasks that are tuned by each rank for itself at every start are no table's, and do not count.
"""

from __future__ import annotations

from typing import Final

from warmup_plugin.cache.file_key import shapes_of
from warmup_plugin.coordination.base import Word
from warmup_plugin.errors import SessionError
from warmup_plugin.planning.inventory import Lots
from warmup_plugin.planning.plan import make_plan
from warmup_plugin.steps.context import Job

MODE: Final = "require-complete"
_MOST: Final = 10


def judge(job: Job, lots: Lots) -> Word:
    """Return what the record of the plan says about it: nothing where nothing is missing."""
    if job.word["mode"] != MODE:
        return {}
    missing = set(make_plan(lots, "leader").tasks)
    if not missing:
        return {}
    items = {item.id: item for lot in lots for item in lot.items}
    named = sorted(f"{i.op} {shapes_of(i.keys[0])}" for n, i in items.items() if n in missing)
    more = f"; and {len(named) - _MOST} more" if len(named) > _MOST else ""
    where = job.placement.directory if job.placement else "no directory"
    reason = (
        f"mode {MODE}: {len(missing)} of {len(items)} tasks are in no table at {where} nor in a "
        f"layer: {'; '.join(named[:_MOST])}{more}"
    )
    return {"go": "refuse", "reason": reason}


def obey(record: Word) -> None:
    """Raise on every rank where the record refuses."""
    if record.get("go") == "refuse":
        raise SessionError(record["reason"])
