# SPDX-License-Identifier: Apache-2.0
"""Starts two ranks under the FlashInfer that PYTHONPATH names; prints what they came to, as JSON.

Run as ``python in_release.py ROOT`` by test_fallbacks.py: a release is chosen before anything is
imported, so it needs a fork server of its own, which all its starts share.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_RANKS = Path(__file__).with_name("on_ranks.py")


def start(root: Path, function: str, env: dict[str, str], **config: Any) -> list[dict[str, Any]]:
    """Start two small ranks once."""
    results = launch(
        EngineConfig(tp=2, layers=2, hidden=32, ffn=32, vocab=32, **config),
        root=root, script=f"{ON_RANKS}:{function}", env=env, timeout_s=60.0,
    )  # fmt: skip
    return [
        {
            "report": result.report.to_json(),
            "counts": dict(result.counts),
            "served": dict(result.served),
            "seen": seen,
        }
        for result, seen in results
    ]


slow = f"{ON_RANKS}:slow_on_rank_0"
starts = {
    "noise": start(Path(sys.argv[1]), "plain", {}, timing="rank_noise"),
    "slow": start(Path(sys.argv[1]), "recording", {"TEST_SLEEP_S": "0.005"}, timing=slow),
    "agreement": start(
        Path(sys.argv[1]),
        "plain",
        {"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"},
        timing="rank_noise",
    ),
}
json.dump(starts, sys.stdout)
