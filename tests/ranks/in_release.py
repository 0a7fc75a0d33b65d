# SPDX-License-Identifier: Apache-2.0
"""Starts two ranks under the FlashInfer that PYTHONPATH names; prints what they came to, as JSON.

Run as ``python in_release.py ROOT START...`` (conftest.py): a release is chosen before anything is
imported, so it needs a fork server of its own, which all the starts share.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_RANKS = Path(__file__).with_name("on_ranks.py")

#: By name: the function of on_ranks.py, the environment, the timing.
STARTS: dict[str, tuple[str, dict[str, str], str]] = {
    "noise": ("plain", {}, "rank_noise"),
    "slow rank 0": ("recording", {"TEST_SLEEP_S": "0.005"}, f"{ON_RANKS}:slow_on_rank_0"),
    "agreement": ("plain", {"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, "rank_noise"),
}


def start(root: Path, name: str) -> list[dict[str, Any]]:
    """Start two small ranks once."""
    function, env, timing = STARTS[name]
    results = launch(
        EngineConfig(tp=2, layers=2, hidden=32, ffn=32, vocab=32, timing=timing),
        root=root,
        script=f"{ON_RANKS}:{function}",
        env=env,
        timeout_s=60.0,
    )
    return [
        {
            "report": result.report.to_json(),
            "counts": dict(result.counts),
            "served": dict(result.served),
            "seen": seen,
        }
        for result, seen in results
    ]


json.dump([start(Path(sys.argv[1]), name) for name in sys.argv[2:]], sys.stdout)
