# SPDX-License-Identifier: Apache-2.0
"""How much faster winners are than FlashInfer's defaults.

Owns which time is that of what serves, and what counts as one: tables and receipts that are kept
may have what a clock gone wrong has said, and no sum over them fails for it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmup_plugin.cache.table import Entry
    from warmup_plugin.observability.report_rows import Winner


def serving_ms(entry: Entry | None, ms: float | None, default_ms: float | None) -> float | None:
    """Return the time of what serves a task: of its entry, or of the default.

    ``ms`` is the time of FlashInfer's choice, also where that was not worth it and the default
    serves.
    """
    return default_ms if entry is None or entry.tactic == -1 else ms


def plausible(value: object) -> float | None:
    """Return what can be a time that a measurement took, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def gain(ms: object, default_ms: object) -> float | None:
    """Return default's time over the winner's; None where one of both is no time."""
    winner, default = plausible(ms), plausible(default_ms)
    return plausible(default / winner) if winner and default else None


def mean_gain(gains: Iterable[float]) -> float | None:
    """Return the geometric mean, None of nothing."""
    logs = [math.log(each) for each in gains]
    return math.exp(sum(logs) / len(logs)) if logs else None


def over_default(winners: Iterable[Winner]) -> float | None:
    """Return the mean gain of a receipt's winners; None where no default was timed."""
    gains = [gain(row.ms, row.default_ms) for row in winners]
    return mean_gain(each for each in gains if each)
