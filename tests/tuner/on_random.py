# SPDX-License-Identifier: Apache-2.0
"""What `test_random_ops.py` runs in a process of its own: functions of an engine, for `launch`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from warmup_plugin.engines.embedded.worker import Engine

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner.drawing import examples
from tests.tuner.laws import Rank, check, on_a_rank
from tests.tuner.random_ops import Example


def explore(engine: Engine, number: int, *, derandomized: bool) -> int:
    """Check examples until one breaks a law, then make it as small as it gets; return how many."""
    logging.disable(logging.CRITICAL)
    checked = 0

    @settings(
        max_examples=number, deadline=None, database=None, derandomize=derandomized,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(examples())
    def holds(example: Example) -> None:
        nonlocal checked
        checked += 1
        broken = check(engine, example)
        assert not broken, "\n".join(["", *broken])

    holds()
    return checked


def one(engine: Engine, example: Example) -> list[str]:
    """Check one example."""
    return check(engine, example)


def on_ranks(engine: Engine, example: Example) -> Rank:
    """Start one example on each of several ranks."""
    logging.disable(logging.CRITICAL)
    return on_a_rank(engine, example)
