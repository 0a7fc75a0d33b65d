# SPDX-License-Identifier: Apache-2.0
"""A start that may tune nothing, on a layer that is mounted in this process's own namespace.

    unshare --mount python on_a_layer.py LAYER MOUNTPOINT ROOT ALL_REDUCE_DIR

Prints, rank by rank, how many tactics FlashInfer has timed, and the certificate.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from warmup_plugin.engines.embedded import EngineConfig, launch


def main() -> None:
    """Mount the layer read-only, as a container runtime does, and start on it."""
    layer, mountpoint, root, all_reduce = sys.argv[1:]
    empty = Path(f"{layer}.empty")  # an overlay wants two layers where none of them is written
    empty.mkdir()
    lower = f"lowerdir={layer}:{empty}"
    command = ["/bin/mount", "-t", "overlay", "overlay", "-o", lower, mountpoint]
    subprocess.run(command, check=True)
    found = launch(
        EngineConfig(tp=2, pp=2, all_reduce_dir=all_reduce),
        root=Path(root),
        env={"WARMUP_PLUGIN_MODE": "require-complete",
             "WARMUP_PLUGIN_LAYERS": f"{mountpoint}/io.vllm.cache"},
    )  # fmt: skip
    rows = [
        [rank.counts["profile_single_kernel"], rank.report.tactics_timed, rank.report.certificate]
        for rank in found
    ]
    print(json.dumps(rows))  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
