# SPDX-License-Identifier: Apache-2.0
"""Starts the embedded engine with whatever FlashInfer is on the import path; prints JSON.

Run as ``python starts.py ROOT`` with a release's folder first on the import path. ROOT is a folder
for the cache roots; the ranks run on the simulated clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded import EngineConfig, launch

ON_RELEASE = Path(__file__).with_name("on_release.py")
SMALL: Any = {"layers": 2, "hidden": 32, "ffn": 32, "vocab": 32, "timing": "deterministic"}
#: FlashInfer's own choice, which a whole call can be compared with; two ranks keep the default.
NO_MARGIN = {"WARMUP_PLUGIN_MARGIN": "0"}
REQUIRE_AGREEMENT = {"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}


def start(tp: int, root: Path, **options: Any) -> list[dict[str, Any]]:
    """Start all ranks once; return what each says, as JSON values."""
    results = launch(EngineConfig(tp=tp, **SMALL), root=root, timeout_s=60.0, **options)
    return [
        {
            "report": result.report.to_json(),
            "counts": dict(result.counts),
            "served": dict(result.served),
        }
        for result in results
    ]


def run(name: str, tp: int, root: Path) -> list[Any]:
    """Run a function of `on_release.py` on the ranks."""
    config = EngineConfig(tp=tp, **SMALL)
    return launch(config, root=root, script=f"{ON_RELEASE}:{name}", timeout_s=60.0)


def files(root: Path) -> list[str]:
    """Return what a cache root holds, but for the engine's own collective op."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "all_reduce")


def entries(root: Path) -> dict[str, Any]:
    """Return the entries of the only table there; none where there is none."""
    tables = list(root.glob("flashinfer_autotune/*/*/*/rank_tp0_pp0_dp0.json"))
    document = json.loads(tables[0].read_text()) if tables else {}
    return {key: value for key, value in document.items() if not key.startswith("_")}


def main(folder: Path) -> None:
    found: dict[str, Any] = {**run("facts", 1, folder / "facts")[0]}
    found["whole"] = run("whole_call", 1, folder / "whole")[0]
    found["without files"] = run("without_files", 1, folder / "files")[0]
    for tp, env in ((1, NO_MARGIN), (2, {})):
        root = folder / f"tp{tp}"
        found[f"tp{tp}"] = {
            "starts": [start(tp, root, env=env) for _ in ("cold", "warm")],
            "entries": entries(root),
            "files": files(root),
        }
    root = folder / "agree"
    found["agree"] = {"ranks": start(2, root, env=REQUIRE_AGREEMENT), "files": files(root)}
    found["slow second rank"] = run("slow_second_rank", 2, folder / "slow")
    print(json.dumps(found))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
