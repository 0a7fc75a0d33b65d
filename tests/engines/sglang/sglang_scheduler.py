# SPDX-License-Identifier: Apache-2.0
"""SGLang's own scheduler processes on a CPU, up to serving: the script that starts them.

    python sglang_scheduler.py MODEL TP OUT [--enable-metrics]

Owns what a CPU needs to come through a GPU's warm-up, all of it around `BaseRunner.warmup`: SGLang
takes ``--device cpu`` and leaves that function at its first question, which is answered with
"cuda" in it; its torch-native attention has no CUDA graphs, so no value to fill them with; and no
op of a small model on a CPU is tuned, so one tunable call stands before the model's forward.
Several ranks share one NUMA node, and compile nothing. All else is SGLang's: process, plugins,
arguments, groups, model, memory pools, buffers, dummy pass.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ in ("__main__", "__mp_main__"):  # before a child reads its arguments: classes of SGLang
    import sglang_import  # noqa: F401  # makes its torchvision load

#: A model without rotary embedding: SGLang's needs vLLM's kernels on a CPU.
OPT = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 64, "ffn_dim": 128,
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 128,
    "max_position_embeddings": 128, "word_embed_proj_dim": 64, "do_layer_norm_before": True,
    "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
READY_S = 90.0


class Device(str):
    """The CPU, which says that it is the GPU when it is asked."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in ("cpu", "cuda")

    def __ne__(self, other: object) -> bool:
        return other not in ("cpu", "cuda")

    __hash__ = str.__hash__


def scheduler(rank: int, server_args: Any, port_args: Any, out: str, pipe: Any) -> None:
    """Run one scheduler process, as SGLang's launcher does; never returns while it serves."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    stand_in_for_the_gpu(out)
    run_scheduler_process(server_args, port_args, rank, rank, 0, None, pipe)


def stand_in_for_the_gpu(out: str) -> None:
    """Let this process come through a GPU's warm-up; its receipts are written to ``out.RANK``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def warmup(own: Any, runner: Any) -> None:
        import torch

        rank = torch.distributed.get_rank()
        _stand_in(runner, rank)
        waiting = sys.modules.get("warmup_plugin.fleet.waiting")
        Path(f"{out}.{rank}.begun").write_text(str(len(waiting._waiting) if waiting else None))
        try:
            own(runner)
        finally:
            runner.model_runner.device = "cpu"
        from warmup_plugin.engines.sglang import hook as ours

        found = [report and report.to_json() for report in ours.reports]
        Path(f"{out}.{rank}").write_text(json.dumps(found))

    target = "sglang.srt.model_executor.runner.base_runner.BaseRunner.warmup"
    HookRegistry.register(target, warmup, HookType.AROUND)


def _stand_in(runner: Any, rank: int) -> None:
    import torch

    from warmup_plugin.engines.embedded import host_clock
    from warmup_plugin.engines.embedded.ops import Ops

    model_runner = runner.model_runner
    host_clock.install(simulated=True)
    names: Any = torch.cuda
    names.get_device_capability = lambda _device=None: (10, 0)
    on_cpu: Any = torch.cpu
    on_cpu.stream = names.stream
    model_runner.device = Device("cpu")
    model_runner.forward_stream = host_clock.HostStream()
    model_runner.attn_backend.get_cuda_graph_seq_len_fill_value = lambda: 1
    ops = Ops(host_clock.timing("rank_noise", rank))
    weight = host_clock.DeviceParameter(torch.ones(32, 16))

    own = model_runner.model.forward

    def forward(*args: Any, **options: Any) -> Any:
        ops.gemm(torch.ones(4, 16), weight)
        return own(*args, **options)

    model_runner.model.forward = forward


def _set_folder() -> None:
    """Choose where figures lie, as SGLang's launcher does before it starts a process."""
    from sglang.srt.utils import set_prometheus_multiproc_dir

    set_prometheus_multiproc_dir()


def _metrics_page() -> str:
    """Return what SGLang's server shows under ``/metrics``."""
    from fastapi import FastAPI
    from metrics_page import get
    from sglang.srt.utils import add_prometheus_middleware

    app = FastAPI()
    add_prometheus_middleware(app)
    return str(get(app))


def arguments(model: str, tp: int, **more: Any) -> Any:
    """Return SGLang's arguments for a small model; sets what processes of CPU ranks inherit."""
    from sglang.srt.server_args import ServerArgs

    server_args = ServerArgs(
        model_path=model, device="cpu", tp_size=tp, skip_tokenizer_init=True, load_format="dummy",
        max_total_tokens=512, max_running_requests=4, moe_runner_backend="flashinfer_cutlass",
        **more,
    )  # fmt: skip
    server_args.resolve_once()
    # By itself SGLang asks for one NUMA node per rank (`numa_utils.init_threads_binding`), and
    # compiles the vocabulary's masks where there are several, for the GPU that is stood in for.
    os.environ |= {
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join("0" * tp),
        "TORCHDYNAMO_DISABLE": "1",
    }
    return server_args


def main() -> None:
    """Start the processes, wait until each is ready, and end them."""
    model, tp, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    from sglang.srt.server_args import PortArgs

    has_metrics = "--enable-metrics" in sys.argv
    server_args = arguments(model, tp, enable_metrics=has_metrics)
    if has_metrics:
        _set_folder()
    port_args = PortArgs.init_new(server_args)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # what a scheduler that fails sends its parent
    context = multiprocessing.get_context("spawn")
    running = []
    for rank in range(tp):
        ours, theirs = context.Pipe(duplex=False)
        given = (rank, server_args, port_args, out, theirs)
        process = context.Process(target=scheduler, args=given, daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    told = []
    try:
        for _, pipe in running:
            told.append(pipe.recv() if pipe.poll(READY_S) else "not ready in time")
        if has_metrics:
            Path(f"{out}.page").write_text(_metrics_page())
    except EOFError:
        told.append("ended")
    finally:
        for process, _ in running:
            process.kill()
            process.join()
    Path(out).write_text(json.dumps([t if isinstance(t, str) else t["status"] for t in told]))


if __name__ == "__main__":
    main()
