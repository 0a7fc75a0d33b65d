# SPDX-License-Identifier: Apache-2.0
"""Many sessions in one process: engines with elastic parallelism come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

SESSIONS = 50
IN_RANK = Path(__file__).with_name("in_rank.py")


def test_fifty_sessions_leave_nothing_behind(cache_root: Path) -> None:
    """No thread, no open file, no process group more after the last ten than after the first."""
    config = EngineConfig(tp=2, layers=2, hidden=32, ffn=32, vocab=32, timing="deterministic")
    held = launch(
        config,
        script=f"{IN_RANK}:sessions",
        arguments={"number": SESSIONS, "root": str(cache_root)},
        env={"RES_OPTIONS": "timeout:1 attempts:1", "WARMUP_PLUGIN_SILENCE_S": "5"},
        timeout_s=100.0,
    )
    for rank in held:
        assert len(rank) == SESSIONS
        # The most of ten, and two spare kernel threads: torch's pool may grow by one or two at any
        # time, and one of the store's may be on its way out. Forty sessions that leak add forty.
        for kind in rank[0]:
            early, late = (max(seen[kind] for seen in part) for part in (rank[:10], rank[-10:]))
            assert late <= early + (2 if kind in ("tasks", "files") else 0), (kind, rank)
