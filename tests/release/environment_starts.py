# SPDX-License-Identifier: Apache-2.0
"""A start of two ranks in an environment, and what FlashInfer makes of the tables; prints JSON.

Run as ``python environment_starts.py ROOT`` by that environment's interpreter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_RELEASE = Path(__file__).with_name("on_release.py")
SMALL: Any = {"layers": 2, "hidden": 32, "ffn": 32, "vocab": 32, "timing": "deterministic"}


def run(name: str, tp: int, root: Path) -> list[Any]:
    """Run a function of `on_release.py` on the ranks."""
    config = EngineConfig(tp=tp, **SMALL)
    return launch(config, root=root, script=f"{ON_RELEASE}:{name}", timeout_s=60.0)


def main(root: Path) -> None:
    found = {"ranks": run("started", 2, root), **run("looks_itself", 1, root)[0]}
    print(json.dumps(found))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
