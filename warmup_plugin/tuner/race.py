# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's default in the race, and what it takes to beat it.

Owns how the default gets timed where the engine's own context would not: its tactic is added to the
candidates of the recorded copy of the first runner, first of all, as FlashInfer itself does in
``autotune_v2``. FlashInfer times it and chooses; a choice that is not faster by the margin is then
replaced by the default. Equal times are FlashInfer's to settle: the first candidate, and that is
the default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from warmup_plugin.tuner.observe import Time

#: FlashInfer's number for what runs where nothing is tuned: the first runner's own choice.
DEFAULT = -1


@contextlib.contextmanager
def racing_default(runners: list[Any]) -> Iterator[None]:
    """Let the default be timed in the body; a runner without room for attributes stays as it is."""
    first = runners[0]
    if "get_valid_tactics" in getattr(first, "__dict__", {"get_valid_tactics": None}):
        yield
        return
    candidates = first.get_valid_tactics

    def with_default(*args: Any, **kwargs: Any) -> Any:
        found = list(candidates(*args, **kwargs))
        return found if DEFAULT in found else [DEFAULT, *found]

    first.get_valid_tactics = with_default
    try:
        yield
    finally:
        del first.get_valid_tactics


def times_of(first: str, times: list[Time]) -> tuple[float | None, float | None]:
    """Return the fastest time and the default's, milliseconds; None for what was not timed.

    ``first``: the class of the first runner, whose default serves.
    """
    finite = [(name, tactic, ms) for name, tactic, ms in times if ms < float("inf")]
    default = [ms for name, tactic, ms in finite if tactic == DEFAULT and name == first]
    return min((ms for _, _, ms in finite), default=None), default[0] if default else None


def is_alone(times: list[Time]) -> bool:
    """Return whether nothing but defaults could be timed."""
    return all(tactic == DEFAULT for _, tactic, ms in times if ms < float("inf"))


def beats_default(ms: float | None, default_ms: float | None, margin: float) -> bool:
    """Return whether a winner is worth more than it costs to differ from the default."""
    if not margin or ms is None or default_ms is None:
        return True
    return ms < default_ms * (1 - margin)
