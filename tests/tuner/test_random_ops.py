# SPDX-License-Identifier: Apache-2.0
"""Runner lists that nobody thought of: never worse off than with FlashInfer alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch

pytestmark = pytest.mark.multiprocess

HERE = Path(__file__).parent
EXAMPLES = int(os.environ.get("WARMUP_RANDOM_OPS", "100"))


@pytest.mark.timeout(1800 if EXAMPLES > 100 else 120)
def test_random_runner_lists(tmp_path: Path) -> None:
    """An op that FlashInfer tunes is tuned; nothing is slower, nothing raises, and it stays so."""
    (checked,) = launch(
        EngineConfig(
            layers=1, hidden=8, ffn=8, heads=2, vocab=8, experts=2, timing="deterministic"
        ),
        root=tmp_path / "root",
        script=f"{HERE / 'on_random.py'}:explore",
        arguments={"number": EXAMPLES, "derandomized": "WARMUP_RANDOM_OPS" not in os.environ},
        timeout_s=1700.0 if EXAMPLES > 100 else 110.0,
    )
    assert checked >= EXAMPLES
