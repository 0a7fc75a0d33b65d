# SPDX-License-Identifier: Apache-2.0
"""A cold and a warm start of a real engine's own warm-up, on two CPU ranks: `make demo-vllm`.

    python tools/demo_engine.py vllm|sglang [--keep]

What runs is the engine's own package: its plugin loading, its parallel groups, its warm-up function
around calls of FlashInfer's tuner; the kernels are the embedded engine's. The ranks are those of
`tests/engines`, the verdict is that of `warmup-plugin demo`, and so is the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from warmup_plugin.cli import output
from warmup_plugin.cli.demo_run import TwoStarts, judge
from warmup_plugin.cli.demo_text import print_starts
from warmup_plugin.cli.load import read_table
from warmup_plugin.engines.embedded import EngineConfig, RankResult
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.settings import Settings

TESTS = Path(__file__).parents[1] / "tests" / "engines"
CONFIG = EngineConfig(tp=2)
#: Loading an engine for the first time takes minutes on a busy machine.
LIMIT_S = 600.0


def job_of(engine: str, folder: Path) -> Any:
    """Return the engine's job with an empty cache root, and its fork server ready to be started."""
    if engine == "vllm":
        jobs = importlib.import_module("vllm_jobs")
        inspected = folder / "inspected"
        inspected.mkdir()
        return jobs.make_job(folder, jobs.inspect(inspected))
    starts: Any = importlib.import_module("engine_starts")
    os.environ.update(starts.ENVIRONMENT, SGLANG_CACHE_DIR=str(folder / "others"))
    starts.CONTEXT.set_forkserver_preload(importlib.import_module("sglang_on_ranks").PRELOAD)
    return importlib.import_module("sglang_jobs").make_job(folder)


def results(start: Any) -> list[RankResult]:
    """Return what the demo's verdict needs of each rank."""
    return [
        RankResult(
            rank=rank["rank"], report=WarmupReport.from_json(rank["report"]),
            served=rank["served"], counts=rank["counts"], seconds=rank["seconds"],
        )
        for rank in start.ranks
    ]  # fmt: skip


def start_twice(engine: str, folder: Path, *, is_kept: bool) -> TwoStarts:
    """Start the engine cold and warm, in new processes each time."""
    job = job_of(engine, folder)
    starts = []
    for name in ("cold", "warm"):
        print(f"{engine}: {name} start", file=sys.stderr, flush=True)
        starts.append(results(job.start(tp=CONFIG.tp, limit_s=LIMIT_S)))
    cold, warm = starts
    table = read_table(Path(cold[0].report.path), Settings().table_bytes)
    return TwoStarts(CONFIG, job.root, is_kept, cold, warm, table, judge(cold, warm, table))


def main(engine: str, *, keep: bool) -> int:
    """Run both starts, print them, return the verdict as an exit code."""
    names = [str(TESTS), str(TESTS / engine)]
    sys.path[:0] = names  # where the ranks find their functions by module name, as the tests do
    os.environ["PYTHONPATH"] = os.pathsep.join([*names, os.environ.get("PYTHONPATH", "")])
    folder = Path(tempfile.mkdtemp(prefix=f"warmup-demo-{engine}-"))
    try:
        found = start_twice(engine, folder, is_kept=keep)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    report = found.cold[0].report
    print(f"{report.engine} {report.engine_version}, its own warm-up on CPU ranks")
    print_starts(output.console(folded=True), found)
    return 0 if found.holds else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="start an engine's own warm-up cold, then warm")
    parser.add_argument("engine", choices=("vllm", "sglang"))
    parser.add_argument("--keep", action="store_true", help="keep the temporary cache root")
    given = parser.parse_args()
    sys.exit(main(given.engine, keep=given.keep))
