# SPDX-License-Identifier: Apache-2.0
"""Mode ``require-complete``: a start whose table lacks something ends before it has tuned anything.

Owns what counts as missing, and the words for it.
Tasks that are tuned by each rank for itself at every start are no table's, and do not count.
"""

from __future__ import annotations

from typing import Final

from warmup_plugin.cache.file_key import shapes_of
from warmup_plugin.planning.inventory import Lots
from warmup_plugin.planning.plan import make_plan
from warmup_plugin.steps.context import Job

MODE: Final = "require-complete"
_MOST: Final = 10


def judge(job: Job, lots: Lots) -> str:
    """Return why the session is refused; an empty string where nothing is missing."""
    if job.opened.mode != MODE:
        return ""
    missing = set(make_plan(lots, "leader").tasks)
    if not missing:
        return ""
    items = {item.id: item for lot in lots for item in lot.items}
    named = sorted(f"{i.op} {shapes_of(i.keys[0])}" for n, i in items.items() if n in missing)
    more = f"; and {len(named) - _MOST} more" if len(named) > _MOST else ""
    where = job.files.placement.directory if job.files.placement else "no directory"
    return (
        f"mode {MODE}: {len(missing)} of {len(items)} tasks are in no table at {where} nor in a "
        f"layer: {'; '.join(named[:_MOST])}{more}"
    )
