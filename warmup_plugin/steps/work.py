# SPDX-License-Identifier: Apache-2.0
"""The value that steps 4 to 9 hand on: the work of a session.

Owns this value alone: a warm start has it, empty, and imports none of the steps that fill it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.planning.assignment import Plan

if TYPE_CHECKING:
    from warmup_plugin.planning.inventory import Lots  # noqa: TC004  # of a struct never decoded
    from warmup_plugin.tuner.replay import Outcome  # noqa: TC004  # the same

FOR_EVER = float("inf")
#: No table.
EMPTY: Final = CachedTable(Table({}, {}))


class Work(msgspec.Struct):
    """What is to be done in this session and what this rank has done of it.

    ``is_new`` is false on a warm start: every task is answered and the plan is empty. Rank 0 keeps
    the ``lots``, every rank's inventory, and the ``base``: the agreed table with what another
    engine has added to it since. ``manifest``: the sha256 of the shared table's. ``until``: when
    the budget is used up, on this process's monotonic clock. ``left``: the tasks that nobody has
    tuned for that. ``failed``: those that were tuned without a result, with the reason. ``apart``:
    those of this rank whose winner no table can hold. ``fit``: tasks whose stored entry has been
    tried on this rank. ``refused``: those of the ``dropped`` ones of which a runner says that it
    does not offer the tactic.
    """

    is_new: bool = False
    plan: Plan = msgspec.field(default_factory=Plan)
    lots: Lots = ()
    base: CachedTable = EMPTY
    manifest: str = ""
    outcomes: dict[str, Outcome] = msgspec.field(default_factory=dict)
    dropped: Mapping[str, str] = msgspec.field(default_factory=dict)
    until: float = FOR_EVER
    left: frozenset[str] = frozenset()
    failed: Mapping[str, str] = msgspec.field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    apart: tuple[str, ...] = ()
    fit: Mapping[str, Entry] = msgspec.field(default_factory=dict)
    costs: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Return whether the budget is used up."""
        return time.monotonic() >= self.until
