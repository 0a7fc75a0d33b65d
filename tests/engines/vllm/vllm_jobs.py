# SPDX-License-Identifier: Apache-2.0
"""Starts of vLLM's own package, each in new processes: rank by rank, or the whole engine.

Owns the environment that lets vLLM's CUDA build run without a GPU, `Job` (one cache root, one
process per rank, from a fork server that has vLLM loaded) and `launch` (`LLM(...)` with two
workers). Every wait is bounded and no process outlives a start. For tests and benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_starts
from engine_starts import CONTEXT
from vllm_on_ranks import LLAMA, MIXTRAL, PRELOAD, Spec, serve

HERE = Path(__file__).parent
LIMIT_S = 240.0
#: Makes the CUDA build of vLLM run on a machine without a GPU; all of them vLLM's own switches.
ENVIRONMENT = {
    **engine_starts.ENVIRONMENT,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HAS_FLASHINFER_CUBIN": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}


class Job(engine_starts.Job):
    """vLLM with one cache root."""

    spec = Spec
    serve = staticmethod(serve)
    own_tables = ("flashinfer_autotune_cache/**/*", "managed/**/*")

    def environment(self) -> dict[str, str]:
        return {
            "VLLM_CACHE_ROOT": str(self.root),
            "FLASHINFER_AUTOTUNE_CACHE_DIR": str(self.root / "managed"),
        }


@dataclass(frozen=True)
class Launch:
    """What became of one launch; ``code`` None: it was still running after the limit."""

    code: int | None
    ranks: list[Any]
    log: str
    seconds: float
    page: str = ""

    @property
    def lines(self) -> list[str]:
        """Our lines in vLLM's log."""
        return [line for line in self.log.splitlines() if "warmup-plugin 0" in line]


def launch(
    job: Any, *, limit_s: float = LIMIT_S, said: str = "", then_s: float = LIMIT_S, **env: str
) -> Launch:
    """Start an engine with two workers and stop it; nothing of it outlives the call.

    Once its log has ``said``, it has ``then_s`` left to end.
    """
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
    here = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {
        **os.environ, "VLLM_CACHE_ROOT": str(job.root), "PYTHONPATH": os.pathsep.join(here),
        "VLLM_LOGGING_LEVEL": "INFO", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", **env,
    }  # fmt: skip
    began = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environ, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            code = _wait(process, began + limit_s, log, said, then_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"ranks": []}
    return Launch(
        code, found["ranks"], log.read_text(errors="replace"), time.monotonic() - began,
        found.get("page", ""),
    )  # fmt: skip


def _wait(
    process: subprocess.Popen[bytes], deadline: float, log: Path, said: str, then_s: float
) -> int | None:
    """Return the exit status; None for a process that runs on."""
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)
        if said and said in log.read_text(errors="replace"):
            said, deadline = "", min(deadline, time.monotonic() + then_s)
    return None


def inspect(root: Path) -> Path:
    """Return what vLLM finds out about the models' classes in 15 s, to be copied to cache roots.

    The fork server starts with the first rank, so its environment and modules are set here.
    """
    os.environ.update(ENVIRONMENT, VLLM_CACHE_ROOT=str(root))
    CONTEXT.set_forkserver_preload(PRELOAD)
    for config in (LLAMA, MIXTRAL):
        (root / "config.json").write_text(json.dumps(config))
        _, errors, hung = engine_starts.run([Spec(0, 0, str(root), script="identity")], serve, 240)
        assert not errors, errors[0]
        assert not hung, "vLLM does not build a config"
    return root / "modelinfos"


def make_job(
    folder: Path, inspected: Path, config: dict[str, Any] | None = None, **options: Any
) -> Job:
    """Return a job with an empty cache root; ``config`` changes the model's."""
    found: Job = Job.make(folder, config or LLAMA, **options)
    shutil.copytree(inspected, found.root / "modelinfos")
    return found
