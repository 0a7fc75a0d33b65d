# SPDX-License-Identifier: Apache-2.0
"""What `test_flashinfer_alone.py` runs in a process with this package, for `launch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded.worker import Engine

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys


def every_op() -> dict[str, Any]:
    return {**toys.every_call(), "told apart": toys.told_apart(), "fp4": toys.fp4_gemms()}


def publish(engine: Engine) -> dict[str, Any]:
    """Warm up, and say what is served afterwards."""
    report = child.warm(engine, every_op)
    return {"report": report, "served": every_op()}


def one_op(engine: Engine) -> Any:
    """Warm up over the op of `warm_alone.py`."""

    def forward() -> None:
        toys.call("toy", [toys.Toy("toy")], toys.STATIC, toys.rows(16), toys.WEIGHT)

    return child.warm(engine, forward)
