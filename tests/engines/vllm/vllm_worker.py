# SPDX-License-Identifier: Apache-2.0
"""A vLLM worker without a GPU, and the script that starts a whole engine with it.

Owns the worker class for ``worker_cls``: real worker distribution and real `kernel_warmup`, with
the runner of `vllm_on_ranks.py` and the warm-ups of single models silenced.
Run as a script: ``vllm_worker.py <json of LLM's arguments> <out>`` starts an engine and stops it;
with METRICS_PAGE set it asks vLLM's own metrics page in between.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase
from vllm_faults import plant
from vllm_on_ranks import Runner, Spec

#: Of the other warm-ups, each for one kind of GPU or model.
_SILENCED = (
    "qwen_triton_warmup", "qwen_vl_triton_warmup", "mamba_triton_warmup",
    "_warmup_ll_bf16_router_gemm", "cutedsl_warmup", "flashinfer_sparse_mla_decode_autotune_warmup",
    "deepseek_v4_sparse_mla_attention_warmup", "b12x_warmup",
)  # fmt: skip


class Worker(WorkerBase):
    use_v2_model_runner = True

    def init_device(self) -> None:
        from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

        init_worker_distributed_environment(
            self.vllm_config, self.rank, self.distributed_init_method, self.local_rank, "gloo"
        )
        tp = self.vllm_config.parallel_config.tensor_parallel_size
        tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        fault = os.environ.get("PLANTED_FAULT", "")
        spec = Spec(rank=self.rank, port=0, model="", tp=tp, tokens=tokens, fault=fault)
        plant(spec)
        mark = Path(os.environ["VLLM_CACHE_ROOT"], f"process of rank {self.rank}")
        mark.write_text(str(os.getpid()))
        self.model_runner = Runner(spec, self.vllm_config)
        self.model_runner.__dict__.update(is_pooling_model=True, attn_groups=[])

    def load_model(self, **_options: Any) -> None:
        pass

    def get_model(self) -> Any:
        return self.model_runner.get_model()

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        return {}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def initialize_from_config(self, _config: Any) -> None:
        pass

    def compile_or_warm_up_model(self) -> CompilationTimes:
        from vllm.model_executor.warmup import kernel_warmup as module

        from warmup_plugin.engines.embedded import host_clock

        for name in _SILENCED:
            setattr(module, name, lambda *_args: None)
        for name in ("minimax_m3_msa_warmup", "step5_dsa_warmup"):  # need a GPU to be imported
            absent = SimpleNamespace(**{name: lambda _worker: None})
            sys.modules[f"vllm.model_executor.warmup.{name}"] = absent  # type: ignore[assignment]
        module.current_platform = SimpleNamespace(
            has_device_capability=lambda _level: True,
            is_device_capability_family=lambda _family: False, is_rocm=lambda: False,
        )  # fmt: skip
        module.envs = SimpleNamespace(
            VLLM_DEEP_GEMM_WARMUP="skip", VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC=False,
            VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS=None,
        )  # fmt: skip
        began = time.perf_counter()
        with host_clock.host_clock(simulated=True):
            module.kernel_warmup(self)
        self.seconds = time.perf_counter() - began
        return CompilationTimes(0.0, 0.0)

    def receipt(self) -> dict[str, Any]:
        from vllm.model_executor.warmup import kernel_warmup as module

        from warmup_plugin.engines.vllm import hook

        report = hook.last_report
        return {
            "report": report and report.to_json(), "served": self.model_runner.ops.served(),
            "is_patched": hasattr(module.flashinfer_autotune, "warmup_plugin"),
            "seconds": self.seconds, "tokens": self.model_runner.max_num_tokens,
        }  # fmt: skip

    def shutdown(self) -> None:
        pass


def main() -> None:
    from vllm import LLM

    arguments, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    began = time.perf_counter()
    engine = LLM(worker_cls="vllm_worker.Worker", **arguments)
    seconds = time.perf_counter() - began
    ranks = engine.collective_rpc("receipt")
    page = metrics_page() if "METRICS_PAGE" in os.environ else ""
    out.write_text(json.dumps({"ranks": ranks, "seconds": seconds, "page": page}))


def metrics_page() -> str:
    """Return what vLLM's API server would show under ``/metrics``, its workers alive."""
    from fastapi import FastAPI
    from metrics_page import get
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router

    app = FastAPI()
    attach_router(app)
    return str(get(app))


if __name__ == "__main__":
    main()
