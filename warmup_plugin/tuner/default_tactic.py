# SPDX-License-Identifier: Apache-2.0
"""What it takes to beat FlashInfer's default.

Owns the rule: a winner serves if it is faster than the default by the margin, else the default
does. The default is timed after FlashInfer has chosen, on the inputs that it chose on
(`Observations.time_default`): a runner asks itself for its candidates, so nothing may be added to
them where it can see that. In ``autotune_v2`` FlashInfer races the default by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from warmup_plugin.tuner.counters import Time

#: FlashInfer's number for what runs where nothing is tuned: the first runner's own choice.
DEFAULT = -1


def time_of(times: Iterable[Time], runner: str, tactic: Any) -> float | None:
    """Return the least time of a runner class's tactic in milliseconds, None where it failed.

    Two runners of one class may have it; FlashInfer has chosen the faster one.
    """
    kind = type(tactic)
    found = [ms for name, t, ms in times if name == runner and type(t) is kind and t == tactic]
    return min((ms for ms in found if ms < float("inf")), default=None)


def beats_default(ms: float | None, default_ms: float | None, margin: float) -> bool:
    """Return whether a winner is worth more than it costs to differ from the default."""
    if ms is None or default_ms is None:
        return True
    return ms < default_ms * (1 - margin) if margin else ms <= default_ms
