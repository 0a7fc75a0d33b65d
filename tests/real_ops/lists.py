# SPDX-License-Identifier: Apache-2.0
"""How many candidates FlashInfer's own op code offers, task by task, for `benchmarks/race.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.real_ops.cases.catalogue import CASES
from tests.real_ops.compare import outcome_of


def candidates(name: str) -> list[int]:
    """Return how many candidates were timed of each task of a case, most first."""
    with tempfile.TemporaryDirectory() as folder:
        found = outcome_of(CASES[name], "cold", "plain", Path(folder), 0.0, race=False)
    if found.error:
        raise RuntimeError(found.error)
    return sorted((task["candidates"] for task in found.tasks), reverse=True)
