# SPDX-License-Identifier: Apache-2.0
"""Two starts of two ranks, with whatever FlashInfer is on the import path; prints JSON.

Run as ``python patched_starts.py ROOT``, with a changed release's folder first on the path.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_RELEASE = Path(__file__).with_name("on_release.py")
CONFIG = EngineConfig(tp=2, layers=2, hidden=32, ffn=32, vocab=32, timing="deterministic")


def run(name: str, root: Path) -> list[Any]:
    """Run a function of `on_release.py` on both ranks."""
    return launch(CONFIG, root=root, script=f"{ON_RELEASE}:{name}", timeout_s=60.0)


def main(root: Path) -> None:
    found: dict[str, Any] = {
        **run("probed", root)[0],
        "alone": run("alone", root)[0],
        "starts": [run("started", root) for _ in range(2)],
    }
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    found["files"] = sorted(str(path) for path in files if path.parts[0] != "all_reduce")
    print(json.dumps(found))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
