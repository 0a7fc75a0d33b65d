# SPDX-License-Identifier: Apache-2.0
"""How long the readers take over ten thousand tables.

    python benchmarks/many_tables.py [--tables N]

Makes so many identities with 62 tasks each in a temporary directory, and runs the commands in fresh
processes, three times each; prints the fastest and the slowest. Half of the identities are of one
FlashInfer version, half of another, with three receipts each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from warmup_plugin.cache.manifest import Manifest, TaskRecord, render_manifest
from warmup_plugin.cache.paths import IDENTITY_NAME, LAYOUT, manifest_name, table_name
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.identity import Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.process_info import ProcessCard
from warmup_plugin.runtime.safe_json import digest

_STAMP = {"flashinfer_version": "0.7.2.post1", "cuda_version": "13.0", "gpu": "NVIDIA B200"}
_COMMANDS = (
    ("ls", "ls"),
    ("ls --json", "ls --json"),
    ("prune --dry-run", "prune --older-than 30d --max-size 100MB --dry-run"),
    ("explain --last", "explain --last"),
)


def fill(root: Path, number: int) -> None:
    """Make so many identities; every byte but identity and sha256 is the same in each."""
    keys = [f"('op::gemm', 'Runner', (({2**i}, 4096), (4096, {j})), ())"
            for i in range(8) for j in range(8)][:62]  # fmt: skip
    table = render_table(Table(_STAMP, {key: Entry("Runner", 3) for key in keys}))
    tasks = {digest(key.encode())[:32]: TaskRecord("op::gemm", ((key,),), "tuned", ms=0.1)
             for key in keys}  # fmt: skip
    report = WarmupReport(
        engine="vllm", engine_version="0.33.0", plugin_version="0", flashinfer_version="0.7.2",
        rank=0, world_size=8, mode="on", strategy="leader", agreement="certified",
        at=time.time() - 40 * 86_400, process=ProcessCard(1, 1, "elsewhere"),
    )  # fmt: skip
    receipt = json.dumps(report.to_json())
    for index in range(number):
        identity = Identity.of(model=f"model-{index}", dtype="bfloat16", tp=8, stamp=_STAMP)
        version = "0.7.2.post1" if index % 2 else "0.7.0"
        folder = root / LAYOUT / version / "sm100" / identity.digest
        (folder / "reports").mkdir(parents=True)
        manifest = Manifest(
            identity=identity.digest, tasks=tasks, table_sha256=digest(table), generation=1,
            complete=True, engine="vllm", engine_version="0.33.0",
        )  # fmt: skip
        (folder / table_name(0, 0, 0)).write_bytes(table)
        (folder / manifest_name(0, 0, 0)).write_bytes(render_manifest(manifest))
        (folder / IDENTITY_NAME).write_bytes(identity.canonical())
        for start in range(3):
            (folder / "reports" / f"2026112{start}T000000.000Z_rank0.json").write_text(receipt)
        old = time.time() - (index % 60) * 86_400
        for path in folder.rglob("*"):
            os.utime(path, (old, old))


def seconds(root: Path, command: str) -> float:
    """Run a command in a new process and return how long it took."""
    began = time.perf_counter()
    argv = [sys.executable, "-m", "warmup_plugin.cli", *command.split(), "--root", str(root)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return time.perf_counter() - began


def main() -> None:
    """Fill a directory, run the commands, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=10_000)
    number = parser.parse_args().tables
    with tempfile.TemporaryDirectory(prefix="warmup-tables-") as name:
        fill(Path(name), number)
        print(f"{number} identities, seconds of three runs in new processes:")
        for label, command in _COMMANDS:
            runs = sorted(seconds(Path(name), command) for _ in range(3))
            print(f"  {label:<16} {runs[0]:6.2f} to {runs[-1]:.2f}")


if __name__ == "__main__":
    main()
