# SPDX-License-Identifier: Apache-2.0
"""Starts two ranks of an engine where a fork server has no place for its socket; prints JSON.

    python pod_starts.py vllm|sglang FOLDER < {"known": ..., "starts": [...]}

Run in a hardened pod (`../faults/test_hardened_pod.py`). Each rank is a fork of this process, which
has loaded what the fork server of the other tests has. ``known``: what vLLM has found out about the
model's class, by file, which takes it many processes. Of a start: ``root``, the cache root's name;
``plugin``; ``fault``; ``processes``, how many of them and of threads there may be, this process and
all ranks together. A line for each.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 45.0


def job_of(engine: str, folder: Path, known: dict[str, str]) -> Any:
    """Return the engine's job with an empty cache root."""
    if engine == "vllm":
        vllm_jobs = importlib.import_module("vllm_jobs")
        inspected = folder / "inspected"
        inspected.mkdir()
        for name, text in known.items():
            (inspected / name).write_text(text)
        return vllm_jobs.make_job(folder, inspected)
    return importlib.import_module("sglang_jobs").make_job(folder)


def load(engine: str, folder: Path) -> None:
    """Load what the engine is made of, in the one place that can be written to.

    Python takes it for a temporary directory, as the engines need one to load and to meet (dill,
    vLLM's message queue). Each rank leaves it before its warm-up.
    """
    folder.mkdir()
    os.chdir(folder)
    if engine == "vllm":  # which looks for its platform when it is imported
        os.environ.update(importlib.import_module("vllm_jobs").ENVIRONMENT)
    for name in importlib.import_module(f"{engine}_on_ranks").PRELOAD:
        importlib.import_module(name)


def told(start: Any) -> dict[str, Any]:
    """Return what a start came to."""
    reports = [rank["report"] for rank in start.ranks]
    return {
        "errors": {rank: text[-1500:] for rank, text in start.errors.items()},
        "hung": start.hung,
        "timed": start.timed,
        "certificate": start.certificate if reports and all(reports) else "",
        "lines": [
            line for rank in start.ranks for line in rank["lines"] if "warmup-plugin" in line
        ],
        "seconds": start.seconds,
    }


def main(engine: str, folder: Path) -> None:
    sys.path[:0] = [str(HERE), str(HERE / engine)]
    starts: Any = importlib.import_module("engine_starts")
    starts.CONTEXT = multiprocessing.get_context("fork")
    os.environ.update(starts.ENVIRONMENT)
    given = json.load(sys.stdin)
    load(engine, folder)
    jobs: dict[str, Any] = {}
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    for one in given["starts"]:
        if (job := jobs.get(one["root"])) is None:
            own = folder / one["root"]
            own.mkdir()
            job = jobs[one["root"]] = job_of(engine, own, given["known"])
        resource.setrlimit(resource.RLIMIT_NPROC, (one["processes"], most))
        start = job.start(
            tp=2, plugin=one["plugin"], may_fail=True, limit_s=LIMIT_S, fault=one["fault"]
        )
        print(json.dumps({**one, **told(start)}), flush=True)  # noqa: T201  # its answer


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
