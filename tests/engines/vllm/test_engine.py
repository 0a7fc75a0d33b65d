# SPDX-License-Identifier: Apache-2.0
"""The whole engine: `LLM(...)`, its EngineCore, its executor, two spawned workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

HERE = Path(__file__).parent
LIMIT_S = 240.0


@dataclass(frozen=True)
class Launch:
    """What became of one launch; ``code`` None: it was still running after the limit."""

    code: int | None
    ranks: list[Any]
    log: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """Our lines in vLLM's log."""
        return [line for line in self.log.splitlines() if "warmup-plugin 0" in line]


def launch(job: Any, *, limit_s: float = LIMIT_S, **env: str) -> Launch:
    """Start an engine with two workers and stop it; nothing of it outlives the call."""
    out, log = job.root / "out.json", job.root / "log.txt"
    out.unlink(missing_ok=True)
    arguments = {
        "model": str(job.model), "tensor_parallel_size": 2, "skip_tokenizer_init": True,
        "load_format": "dummy", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 8,
        "max_num_batched_tokens": 64, "distributed_executor_backend": "mp",
        "disable_log_stats": True, "enable_prefix_caching": False,
        "kernel_config": {"enable_flashinfer_autotune": True},
    }  # fmt: skip
    command = [sys.executable, str(HERE / "vllm_worker.py"), json.dumps(arguments), str(out)]
    environ = {
        **os.environ, "VLLM_CACHE_ROOT": str(job.root), "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "VLLM_LOGGING_LEVEL": "INFO", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", **env,
    }  # fmt: skip
    began = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environ, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ranks = json.loads(out.read_text())["ranks"] if out.exists() else []
    return Launch(code, ranks, log.read_text(errors="replace"), time.monotonic() - began)


def test_a_whole_engine_starts_warm(job: Callable[..., Any]) -> None:
    engine = job()

    cold, warm = launch(engine), launch(engine)

    for start in (cold, warm):
        assert start.code == 0, start.log[-4000:]
        assert [rank["is_patched"] for rank in start.ranks] == [True, True]
        assert start.ranks[0]["served"] == start.ranks[1]["served"]
        assert len(start.lines) == 1, start.lines
    reports = [[rank["report"] for rank in start.ranks] for start in (cold, warm)]
    assert [report["tactics_timed"] for report in reports[1]] == [0, 0]
    assert reports[0][0]["tactics_timed"] > 0
    (certificate,) = {report["certificate"] for start in reports for report in start}
    assert len(certificate) == 64
    assert certificate[:12] in warm.lines[0]
    assert "0 tactics timed" in warm.lines[0]


def test_a_forward_that_fails_on_rank_1_ends_the_engine(job: Callable[..., Any]) -> None:
    # vLLM alone hangs here: it waits for rank 0's answer first, which waits for rank 1.
    engine = job()

    failed = launch(engine, PLANTED_FAULT="dummy_run@1", WARMUP_PLUGIN_GRACE_S="2")

    assert failed.code not in (0, None), failed.log[-4000:]
    assert "planted in dummy_run" in failed.log
