# SPDX-License-Identifier: Apache-2.0
"""One rank of vLLM without a GPU: real config, real groups, real plugin loading, real warm-up code.

Owns the stand-ins, which are two: a model runner whose `_dummy_run` makes tunable calls and ends in
vLLM's own tensor-parallel all-reduce, and the host clock below FlashInfer's profiler. All that lies
between, vLLM's `flashinfer_autotune` above all, is the installed package's.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from engine_starts import answer, listen, moe_with_device_index
from vllm_faults import is_planted, plant

PRELOAD = [
    "vllm.engine.arg_utils",
    "vllm.distributed.parallel_state",
    "vllm.model_executor.warmup.flashinfer_sparse_mla_warmup",
    "vllm.model_executor.warmup.flashinfer_autotune_cache",
    "vllm.model_executor.kernels.linear",
    "vllm.model_executor.layers.fused_moe",
    "warmup_plugin.engines.embedded.ops",
    "warmup_plugin.kernel_warmup",
    "warmup_plugin.engines.attempt",
    "warmup_plugin.engines.readiness",
    "warmup_plugin.engines.vllm.hook",
    "warmup_plugin.engines.vllm.identity",
]
#: Models that are only their configuration: no weights, no tokenizer.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 128, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

MIXTRAL = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip

TARGET = "vllm.model_executor.warmup.kernel_warmup"


@dataclass(frozen=True)
class Spec:
    """One rank of one start. ``port``: where the ranks of this start meet.

    ``layers``: how often the same calls are made. ``fault``: `vllm_faults.py`.
    ``noise``: a seed; other starts then choose otherwise.
    """

    rank: int
    port: int
    model: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    tokens: int = 64
    layers: int = 1
    plugin: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    save_after_s: float = 0.0
    noise: int | None = None
    timing: str = "rank_noise"
    script: str = "warm_up"


def serve(spec: Spec, connection: Connection) -> None:
    """Run one rank; send ("result" | "error", body)."""
    faulthandler.enable()
    os.environ.update(spec.env)
    if not spec.plugin:
        os.environ["VLLM_PLUGINS"] = "another"  # vLLM's own way to leave plugins out
    answer(globals()[spec.script], spec, connection)


def config_of(spec: Spec) -> Any:
    """Return the real `VllmConfig` of a hand-made model."""
    from vllm.engine.arg_utils import EngineArgs

    dp_rank = spec.rank // (spec.tp * spec.pp)
    dp = {"data_parallel_size": spec.dp} if spec.dp > 1 else {}
    args = {
        "model": spec.model, "skip_tokenizer_init": True, "load_format": "dummy",
        "tensor_parallel_size": spec.tp, "pipeline_parallel_size": spec.pp,
        "max_num_batched_tokens": spec.tokens, "max_model_len": 64, "max_num_seqs": 8,
        "enforce_eager": True, "distributed_executor_backend": "mp", **dp, **spec.extra,
    }  # fmt: skip
    config = EngineArgs(**args).create_engine_config()
    if spec.dp > 1:
        config.parallel_config.data_parallel_rank = dp_rank
        config.parallel_config.data_parallel_master_port = spec.port
        config.parallel_config._data_parallel_master_port_list = [spec.port]
    return config


def identity(spec: Spec) -> tuple[str, Any]:
    """Return digest and factors of the config's identity."""
    from warmup_plugin.engines.vllm.identity import identity_of

    found = identity_of(config_of(spec))
    return found.digest, found.factors


def warm_up(spec: Spec) -> dict[str, Any]:
    """Do what a vLLM worker does up to and including `flashinfer_autotune`; say what it came to."""
    config = config_of(spec)  # sets vLLM's log up, once more
    lines = listen("vllm")
    world = _meet(spec, config)
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    assert TARGET not in sys.modules
    import torch
    from vllm.model_executor.warmup import kernel_warmup

    from warmup_plugin.engines import readiness
    from warmup_plugin.engines.embedded import host_clock
    from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions

    if limit := os.environ.get("MEET_S"):
        readiness.MEET_S = float(limit)
    host_clock.install(simulated=True)
    runner = Runner(spec, config)
    torch.distributed.barrier()  # a rank that is lost at once is lost in the warm-up on all
    plant(spec)
    counts: dict[str, int] = {}
    began = time.perf_counter()
    if spec.timing == "clock":
        kernel_warmup.flashinfer_autotune(runner)
    else:
        with count_calls(**tuning_functions()) as counts:
            kernel_warmup.flashinfer_autotune(runner)
    seconds = time.perf_counter() - began
    from vllm.distributed.parallel_state import get_pp_group

    from warmup_plugin.engines.vllm import hook

    report = hook.last_report
    return {
        "rank": world.rank_in_group, "stage": get_pp_group().rank_in_group,
        "is_patched": hasattr(kernel_warmup.flashinfer_autotune, "warmup_plugin"),
        "report": report and report.to_json(), "line": report and report.line(),
        "timed": counts.get("profile_single_kernel"), "counts": counts, "passes": runner.passes,
        "serving": runner.serve(), "served": runner.ops.served(), "lines": lines,
        "seconds": seconds, "tokens": spec.tokens,
    }  # fmt: skip


def loading(spec: Spec) -> dict[str, Any]:
    """Have vLLM's own worker begin to load a model; say what waits for the fleet's question."""
    _meet(spec, config_of(spec))
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm.v1.worker.gpu_worker import Worker

    failed = ""
    try:
        Worker.load_model(SimpleNamespace())
    except AttributeError as error:  # vLLM's own, which has come to the worker's first field
        failed = str(error)
    waiting = sys.modules.get("warmup_plugin.fleet.waiting")
    begun = len(waiting._waiting) if waiting else None
    while waiting and waiting._waiting:
        waiting.taken().close()
    return {"is_watched": hasattr(Worker.load_model, "warmup_plugin"), "begun": begun,
            "failed": failed}  # fmt: skip


def _meet(spec: Spec, config: Any) -> Any:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state as state

    local = spec.tp * spec.pp
    with set_current_vllm_config(config):
        state.init_distributed_environment(
            world_size=local, rank=spec.rank % local, local_rank=spec.rank,
            distributed_init_method=f"tcp://127.0.0.1:{spec.port}", backend="gloo",
        )  # fmt: skip
        state.initialize_model_parallel(spec.tp, spec.pp, backend="gloo")
    torch.distributed.barrier()  # a rank may end soon, and another still be making groups with it
    return state.get_world_group()


class Runner:
    """A model runner with what vLLM's warm-up asks of one."""

    def __init__(self, spec: Spec, config: Any) -> None:
        import torch

        from warmup_plugin.engines.embedded import host_clock
        from warmup_plugin.engines.embedded.ops import Ops

        self.vllm_config = config
        self.scheduler_config = config.scheduler_config
        self.model_config = config.model_config
        self.max_num_tokens = spec.tokens
        self.max_num_reqs = 8
        self.device = SimpleNamespace(type="cpu", index=spec.rank)
        self.passes = 0
        self._spec = spec
        self._model = torch.nn.Linear(1, 1)
        self.ops = Ops(_timing(spec))
        weight = host_clock.DeviceParameter
        torch.manual_seed(0)
        self._weights = [weight(torch.randn(32, 16)), weight(torch.randn(48, 16))]
        self._experts = weight(torch.randn(4, 32, 16)), weight(torch.randn(4, 16, 32))

    def get_model(self) -> Any:
        return self._model

    def _dummy_run(self, num_tokens: int, **_options: Any) -> None:
        import torch
        from vllm.distributed import parallel_state as state

        self.passes += 1
        if is_planted(self._spec, "dummy_run"):
            raise RuntimeError("planted in dummy_run")
        for call in self._calls(num_tokens):
            call()
        state.get_tp_group().all_reduce(torch.ones(4))
        if self._spec.dp > 1:  # experts over data-parallel ranks meet across them
            torch.distributed.all_reduce(torch.ones(4), group=state.get_world_group().cpu_group)

    def serve(self) -> str:
        """Make each call as in serving, no collective in it; return what failed."""
        failed = []
        for call in self._calls(self.max_num_tokens):
            try:
                call()
            except Exception as error:  # noqa: BLE001  # told to the parent
                failed.append(f"{type(error).__name__}: {error}")
        return "; ".join(failed)

    def _calls(self, num_tokens: int) -> list[Callable[[], Any]]:
        import torch

        x, ops = torch.randn(num_tokens, 16), self.ops
        return [
            lambda: ops.gemm(x, self._weights[0]),
            lambda: ops.lm_head(x, self._weights[1]),
            lambda: ops.moe(x, *self._experts),
            lambda: moe_with_device_index(ops, x, self._weights[0], self.device.index),
        ] * self._spec.layers


def _timing(spec: Spec) -> Any:
    from warmup_plugin.engines.embedded import host_clock

    if spec.noise is None:
        return host_clock.timing("rank_noise", spec.rank)

    def milliseconds(*call: Any) -> float:
        """Let any tactic be the fastest but the default: that tells of a task without a winner."""
        noise = zlib.crc32(repr((spec.noise, spec.rank, *call)).encode()) / 2**32
        return (2.0 if call[-1] == -1 else 1.0) + noise

    return milliseconds


def as_version(spec: Spec) -> dict[str, Any]:
    """Warm up as if vLLM were of a version that nobody has tested."""
    import vllm

    vllm.__version__ = "0.99.0"
    return warm_up(spec)


def as_older_build(spec: Spec) -> dict[str, Any]:
    """Warm up with the package of an older commit, which lies in the folder OLDER_BUILD.

    What this rank has imported of the installed one is let go of. In that of 1f43ee7 two modules
    have other names than now.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "warmup_plugin"]:
        del sys.modules[name]
    sys.path.insert(0, os.environ["OLDER_BUILD"])
    import warmup_plugin

    assert str(warmup_plugin.__file__).startswith(os.environ["OLDER_BUILD"])
    for name, then in (("readiness", "base"), ("vllm.hook", "vllm.warmup")):
        if importlib.util.find_spec(f"warmup_plugin.engines.{name}") is None:
            module = importlib.import_module(f"warmup_plugin.engines.{then}")
            sys.modules[f"warmup_plugin.engines.{name}"] = module
    return warm_up(spec)


def by_extension(spec: Spec) -> dict[str, Any]:
    """Warm up in a worker that has us as its extension and no plugins."""
    from warmup_plugin.engines.vllm import WorkerExtension

    WorkerExtension().init_worker_extension()
    return warm_up(spec)


def private_names(_spec: Spec) -> list[str]:
    """Return the private names of vLLM that are not where they were."""
    from vllm.model_executor.warmup import kernel_warmup

    from warmup_plugin.engines.vllm import compat

    assert not hasattr(kernel_warmup.flashinfer_autotune, "warmup_plugin")  # no plugin was loaded
    return compat.missing(kernel_warmup)


def handed_on(_spec: Spec) -> dict[str, Any]:
    """Return which variables vLLM copies to engine cores on Ray, and whether its key is the same.

    The key under which it keeps what it has compiled, with and without us.
    """
    from vllm import envs
    from vllm.plugins import load_general_plugins

    key = envs.compile_factors()
    load_general_plugins()
    from vllm.ray.ray_env import get_env_vars_to_copy

    return {"copied": sorted(get_env_vars_to_copy()), "same key": key == envs.compile_factors()}
