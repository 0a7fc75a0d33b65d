# SPDX-License-Identifier: Apache-2.0
"""One rank of SGLang without a GPU: real server arguments, groups, plugin loading, warm-up code.

Owns the stand-ins, which are three: a model runner without a model, whose runner's `_dummy_run`
makes tunable calls and ends in SGLang's own tensor-parallel all-reduce; the host clock below
FlashInfer's profiler; and the compute capability that SGLang asks for. All that lies between,
`BaseRunner.warmup` and `flashinfer_autotune_context` above all, is the installed package's.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine_faults import is_planted, plant
from engine_starts import answer, listen, moe_with_device_index

PRELOAD = [
    "sglang_import",
    "warmup_plugin.engines.embedded.ops",
    "warmup_plugin.kernel_warmup",
    "warmup_plugin.engines.attempt",
    "warmup_plugin.engines.readiness",
    "warmup_plugin.engines.sglang.hook",
    "warmup_plugin.engines.sglang.identity",
    "warmup_plugin.engines.sglang.stages",
    "warmup_plugin.engines.sglang.engine_tables",
]
#: Models that are only their configuration: no weights, no tokenizer.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 128, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

RUNNER = "sglang.srt.model_executor.runner.base_runner"
MODULE = "sglang.srt.model_executor.runner.flashinfer_autotune"


@dataclass(frozen=True)
class Spec:
    """One rank of one start. ``port``: where the ranks of this start meet.

    ``batch`` tokens in the decode pass, ``tokens`` in the prefill pass, where there is one;
    ``more_calls``, each of nine tasks. ``layers``: how often the same calls are made.
    ``fault``: `engine_faults.py`. ``is_timed``: nothing is counted, which costs time.
    """

    rank: int
    port: int
    model: str
    tp: int = 1
    pp: int = 1
    batch: int = 32
    tokens: int = 128
    has_draft: bool = False
    draft_layers: int = 1
    has_rank_keys: bool = False
    more_calls: int = 0
    layers: int = 1
    plugin: bool = True
    is_loaded_early: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    timing: str = "rank_noise"
    is_timed: bool = False
    script: str = "warm_up"


def serve(spec: Spec, connection: Connection) -> None:
    """Run one rank; send ("result" | "error", body)."""
    faulthandler.enable()
    os.environ.update(spec.env)
    if not spec.plugin:
        os.environ["SGLANG_PLUGINS"] = "another"  # SGLang's own way to leave plugins out
    answer(globals()[spec.script], spec, connection)


def publish(spec: Spec) -> Any:
    """Publish the real server arguments of a hand-made model, as a scheduler process does."""
    from sglang.srt import runtime_context as context
    from sglang.srt.server_args import ServerArgs

    given = {
        "model_path": spec.model, "device": "cuda", "tp_size": spec.tp, "pp_size": spec.pp,
        "moe_runner_backend": "flashinfer_cutlass", "chunked_prefill_size": spec.tokens,
        "skip_tokenizer_init": True, **spec.extra,
    }  # fmt: skip
    if spec.has_draft:
        given |= {
            "speculative_algorithm": "EAGLE", "speculative_draft_model_path": spec.model,
            "speculative_num_steps": 2, "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": 3, "disaggregation_mode": "prefill",
        }  # fmt: skip
    if "attn_dp_size" in given and "attn_dp_size" not in ServerArgs.__annotations__:  # 0.5.21
        given |= {"dp_size": given.pop("attn_dp_size"), "enable_dp_attention": True}
    server_args = ServerArgs(**given)
    if not knows_its_place():
        context.publish(server_args, role="scheduler")
        return server_args
    ranks = context.SpawnRanks(world_rank=spec.rank, dp_rank=None, gpu_id=spec.rank)
    context.publish(server_args, role="scheduler", ranks=ranks)
    return server_args


def knows_its_place() -> bool:
    """Return whether SGLang's settings say which rank this is; in 0.5.20 only its groups do."""
    from sglang.srt import runtime_context as context

    return hasattr(context, "SpawnRanks")


def _meet(spec: Spec) -> None:
    import torch
    from sglang.srt.distributed import parallel_state as state

    state.init_distributed_environment(
        world_size=spec.tp * spec.pp, rank=spec.rank, local_rank=spec.rank,
        distributed_init_method=f"tcp://127.0.0.1:{spec.port}", backend="gloo",
    )  # fmt: skip
    if knows_its_place():
        state.initialize_model_parallel(backend="gloo")
        return
    # It is told the sizes, and has this step of its own.
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.runtime_context import get_server_args

    state.initialize_model_parallel(
        spec.tp, pipeline_model_parallel_size=spec.pp, backend="gloo",
        attention_data_parallel_size=spec.extra.get("attn_dp_size", 1),
        expert_model_parallel_size=spec.extra.get("ep_size", 1),
    )  # fmt: skip
    model: Any = SimpleNamespace(hf_config=None, hidden_size=16, dtype=None)
    initialize_dp_attention(server_args=get_server_args(), model_config=model)
    torch.distributed.barrier()  # before one that needs no more has ended


def _stand_in() -> None:
    import torch

    from warmup_plugin.engines.embedded import host_clock

    host_clock.install(simulated=True)
    capability: Any = lambda _device=None: (10, 0)  # noqa: E731  # as short as it is
    torch.cuda.get_device_capability = capability


def warm_up(spec: Spec) -> dict[str, Any]:
    """Do what a scheduler does up to and including its warm-ups; say what they came to."""
    lines = listen("")
    if spec.is_loaded_early:  # not so in a scheduler, whose modules come first
        del sys.modules[MODULE], sys.modules[RUNNER]
    from sglang.srt.plugins import load_plugins
    from sglang.srt.utils.common import configure_logger

    load_plugins()
    server_args = publish(spec)
    configure_logger(server_args)  # which clears the log's handlers
    later = listen("")
    _meet(spec)
    _stand_in()
    import torch
    from flashinfer.autotuner import AutoTuner

    from warmup_plugin.engines import readiness
    from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions

    if limit := os.environ.get("MEET_S"):
        readiness.MEET_S = float(limit)
    model = Model(spec)
    torch.distributed.barrier()  # a rank that is lost at once is lost in the warm-up on all
    plant(spec, Path(spec.model).parent)
    counted = tuning_functions() | {"saves": AutoTuner.save_configs}
    counting: Any = contextlib.nullcontext({}) if spec.is_timed else count_calls(**counted)
    with counting as counts:
        began = time.perf_counter()
        model.warm_up()
        seconds = time.perf_counter() - began
    if not spec.fault:  # a scheduler lives on, and rank 0's holds the store that all have met in
        torch.distributed.barrier()
    return model.told([*lines, *later], counts, seconds)


class ModelRunner(SimpleNamespace):
    """A model runner without a model; what releases ask it of its place is SGLang's own answer."""

    def __getattr__(self, name: str) -> Any:
        from sglang.srt.runtime_context import get_parallel

        if name == "ps":  # 0.5.20
            from sglang.srt.distributed.parallel_state_wrapper import ParallelState

            told = ("tp_rank", "tp_size", "pp_rank", "pp_size", "attn_dp_size", "moe_ep_size")
            return ParallelState.trivial(**{each: getattr(get_parallel(), each) for each in told})
        if name in {"attn_dp_size", "dp_rank", "moe_ep_size", "tp_group", "tp_rank", "tp_size"}:
            return getattr(get_parallel(), name)
        raise AttributeError(name)


class Model:
    """The model runners of one rank, target and draft, with what SGLang's warm-up asks of one."""

    def __init__(self, spec: Spec) -> None:
        import torch

        from warmup_plugin.engines.embedded import host_clock
        from warmup_plugin.engines.embedded.ops import Ops

        self.spec, self.passes = spec, list[str]()
        self.ops = Ops(host_clock.timing(spec.timing, spec.rank))
        weight = host_clock.DeviceParameter
        torch.manual_seed(0)
        self._weights = [weight(torch.randn(n, 16)) for n in (32, 48, 24)]
        self._more = [weight(torch.randn(64 + 8 * n, 16)) for n in range(spec.more_calls)]
        self._experts = weight(torch.randn(4, 32, 16)), weight(torch.randn(4, 16, 32))

    def warm_up(self) -> None:
        """Warm the target up, and the draft after it, as SGLang's runners do."""
        from sglang.srt.model_executor.runner import flashinfer_autotune as module

        runner_class = make_runner_class()
        runner_class(self, self.runner()).warmup()
        if self.spec.has_draft:
            draft = runner_class(self, self.runner(is_draft=True))
            module.maybe_flashinfer_autotune_speculative_draft(
                draft, lambda: self.forward(self.spec.batch, "draft")
            )

    def runner(self, *, is_draft: bool = False) -> Any:
        """Return a model runner without a model."""
        import torch
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        from warmup_plugin.engines.embedded.host_clock import HostStream

        config = ModelConfig(self.spec.model)
        if is_draft:
            config.hf_config.num_hidden_layers = self.spec.draft_layers
        spec_algorithm = SpeculativeAlgorithm.from_string("EAGLE" if self.spec.has_draft else None)
        return ModelRunner(
            device="cuda", gpu_id=self.spec.rank, dtype=torch.float32, model_config=config,
            model=torch.nn.Linear(1, 1), is_draft_worker=is_draft, is_generation=True,
            spec_algorithm=spec_algorithm, forward_stream=HostStream(), canary_manager=None,
            attn_backend=SimpleNamespace(extend_dummy_seqs_capped_by_req_pool=False),
        )  # fmt: skip

    def forward(self, num_tokens: int, name: str) -> None:
        """Make the calls of one pass, and meet the tensor-parallel peers in it."""
        import torch
        from sglang.srt.runtime_context import get_parallel

        self.passes.append(f"{name} {num_tokens}")
        if is_planted(self.spec, "forward"):
            raise RuntimeError("planted in the forward")
        for call in self.calls(num_tokens, name)[is_planted(self.spec, "one_op_less") :]:
            call()
        get_parallel().tp_group.all_reduce(torch.ones(4))
        if is_planted(self.spec, "after_forward"):
            raise RuntimeError("planted after the forward")

    def calls(self, num_tokens: int, name: str) -> list[Callable[[], Any]]:
        """Return the tunable calls of one pass; the draft has one in common with the target."""
        import torch

        x, ops = torch.randn(num_tokens, 16), self.ops
        if name == "draft":
            return [
                lambda: ops.gemm(x, self._weights[0]), lambda: ops.gemm(x, self._weights[2]),
            ]  # fmt: skip
        calls = [
            lambda: ops.lm_head(x, self._weights[1]),
            lambda: ops.gemm(x, self._weights[0]),
            lambda: ops.moe(x, *self._experts),
        ]
        calls += [functools.partial(ops.gemm, x, weight) for weight in self._more]
        if self.spec.has_rank_keys:
            calls.append(lambda: moe_with_device_index(ops, x, self._weights[0], self.spec.rank))
        return calls * self.spec.layers

    def told(self, lines: list[str], counts: dict[str, int], seconds: float) -> dict[str, Any]:
        """Return what became of the warm-ups."""
        from sglang.srt.plugins.hook_registry import HookRegistry
        from sglang.srt.runtime_context import get_parallel

        from warmup_plugin.engines.sglang import hook

        reports = [report and report.to_json() for report in hook.reports]
        saves = counts.pop("saves", None)
        return {
            "rank": self.spec.rank, "stage": get_parallel().pp_rank,
            "is_patched": f"{MODULE}.flashinfer_autotune_context" in HookRegistry._patched,
            "reports": reports, "report": reports[0] if reports else None,
            "timed": counts.get("profile_single_kernel"), "counts": dict(counts), "saves": saves,
            "passes": self.passes, "served": self.ops.served(), "lines": lines,
            "seconds": seconds, "tokens": self.spec.batch,
        }  # fmt: skip


def make_runner_class() -> Any:
    """Return a runner with SGLang's own `warmup`, over a dummy run of ours."""
    from sglang.srt.model_executor.runner.base_runner import BaseRunner

    class Runner(BaseRunner):
        def __init__(self, model: Model, model_runner: Any) -> None:
            self.model, self.model_runner = model, model_runner

        def model_context(self) -> Any:
            return contextlib.nullcontext()

        def _autotune_buffers(self) -> tuple[Any, int]:
            return object(), self.model.spec.batch

        def _alloc_dummy_decode_buffers(self, *_args: Any, **_options: Any) -> Any:
            return object()

        def _dummy_run(
            self, batch_size: int, *, forward_mode_override: Any = None, **_options: Any
        ) -> None:
            self.model.forward(batch_size, "extend" if forward_mode_override else "decode")

    Runner.__abstractmethods__ = frozenset()
    return Runner


def identity(spec: Spec) -> tuple[str, Any]:
    """Return digest and factors of the identity."""
    from warmup_plugin.engines.sglang.identity import identity_of

    publish(spec)
    if not knows_its_place():
        _meet(spec)
    _stand_in()
    found = identity_of(Model(spec).runner(is_draft=spec.has_draft))
    return found.digest, found.factors


def default_first(_rank: int) -> Callable[[str, str, int, Any], float]:
    """Return a timing in which the default tactic is the fastest; for ``Spec.timing``."""
    return lambda _op, _runner, _batch, tactic: 1.0 if tactic == -1 else 2.0


def identity_elsewhere(spec: Spec) -> tuple[str, Any]:
    """Return digest and factors with those of the environment, as a session has them."""
    from warmup_plugin.engines.sglang.identity import identity_of
    from warmup_plugin.tuner import compat, environment

    publish(spec)
    if not knows_its_place():
        _meet(spec)
    _stand_in()
    plant(spec, Path(spec.model).parent)
    found = identity_of(Model(spec).runner()).with_factors(**environment.factors(compat.stamp()))
    return found.digest, found.factors


def as_version(spec: Spec) -> dict[str, Any]:
    """Warm up as if SGLang were of a version that nobody has tested."""
    import sglang.version

    sglang.version.__version__ = "0.99.0"
    return warm_up(spec)


def by_hand(spec: Spec) -> dict[str, Any]:
    """Warm up where SGLang loads no plugins, after the call that its Ray mode needs."""
    from warmup_plugin.engines.sglang import register

    register()
    register()
    return warm_up(spec)


def with_another_plugin(spec: Spec) -> dict[str, Any]:
    """Warm up beside a plugin that hooks the same function."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        f"{MODULE}.flashinfer_autotune_context",
        lambda own, *args, **options: own(*args, **options),
        HookType.AROUND,
    )
    return warm_up(spec)


def without_a_hook(spec: Spec) -> dict[str, Any]:
    """Warm up where SGLang has failed to put our hook on its context, and has gone on."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    own = HookRegistry._apply_target

    def apply(target: str, hooks: Any) -> None:
        if target.endswith("_context"):
            raise RuntimeError("planted")
        own(target, hooks)

    HookRegistry._apply_target = apply
    return warm_up(spec)


def private_names(_spec: Spec) -> list[str]:
    """Return the private names of SGLang that are not where they were."""
    import inspect

    from sglang.srt.distributed import parallel_state

    from warmup_plugin.engines.sglang import compat as sglang

    module = importlib.import_module(MODULE)
    if sglang.version() == sglang.TESTED[0]:  # an older one may have neither
        assert sglang.megamoe_namespace()
        by_layers = module._serves_block_fp8_as_mxfp8_on_flashinfer
        assert by_layers.__name__ in module.should_run_flashinfer_autotune.__code__.co_names
        assert {"model", "modules", "block_fp8_as_mxfp8"} <= {*by_layers.__code__.co_names}
    assert "world_group" in inspect.getsource(parallel_state.init_distributed_environment)
    return sglang.missing(module)
