# SPDX-License-Identifier: Apache-2.0
"""Runs functions of `on_newest.py` with whatever FlashInfer is on the import path; prints JSON.

Run as ``python newest_starts.py ROOT``. Every function has ranks and a cache root of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_NEWEST = Path(__file__).with_name("on_newest.py")
SMALL: Any = {"layers": 1, "hidden": 8, "ffn": 8, "vocab": 8, "experts": 2}
#: By name: on how many ranks.
RUNS = {
    "whole_entries": 1, "asks_again": 1, "asks_again warm": 1, "protocols": 1, "managed_store": 1,
    "skips_a_collective_op": 2, "near_ties": 1,
}  # fmt: skip


def main(root: Path) -> None:
    found = {}
    for name, tp in RUNS.items():
        function = name.split()[0]
        config = EngineConfig(**SMALL, tp=tp, heads=2 * tp, timing="deterministic")
        found[name] = launch(
            config, root=root / function, script=f"{ON_NEWEST}:{function}", timeout_s=60.0
        )
    print(json.dumps(found))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
