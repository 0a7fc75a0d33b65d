# SPDX-License-Identifier: Apache-2.0
"""A runner of one's own on several ranks: ``torchrun --nproc-per-node 2 runner_on_ranks.py``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig

from warmup_plugin import Identity, RankInfo, serving_fallbacks, warm_up
from warmup_plugin.engines.embedded.host_clock import host_clock

BUCKETS = (1, 16, 256)
TOKENS = DynamicTensorSpec((0,), (0,), BUCKETS, lambda m: max(b for b in BUCKETS if b <= m))
rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


class Matmul(TunableRunner):
    def get_valid_tactics(self, _inputs: Any, _profile: Any) -> list[int]:
        return [0, 1]

    def forward(self, inputs: Any, tactic: int = -1, **_options: Any) -> Any:
        x, w = inputs
        return (w.t() @ x.t()).t() if tactic == 1 else x @ w


def matmul(x: Any, w: Any) -> Any:
    config = TuningConfig(dynamic_tensor_specs=(TOKENS,))
    runner, tactic = AutoTuner.get().choose_one("example::matmul", [Matmul()], config, [x, w])
    return runner([x, w], tactic=tactic)


device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device != "cpu" else "gloo")
x, w = torch.randn(256, 64, device=device), torch.randn(64, 64 // size, device=device)


def forward() -> None:
    """Call what serving will call, collectives as well: here a layer split over the ranks."""
    parts = [torch.empty(256, 64 // size, device=device) for _ in range(size)]
    dist.all_gather(parts, matmul(x, w).contiguous())


# FlashInfer times kernels with CUDA's events; where there is no GPU, the host clock stands in.
with nullcontext() if device != "cpu" else host_clock():
    report = warm_up(
        forward,
        identity=Identity.of(model="matmul", dtype="float32", tp=size, buckets=BUCKETS),
        ranks=RankInfo(
            rank=rank, world_size=size, local_rank=local, tp_rank=rank, tp_size=size,
            device_index=local,
        ),
        engine=("my-runner", "1.0"),
    )  # fmt: skip
if rank == 0:
    print(report.line())
    print("served a default since:", serving_fallbacks() or "nothing")
dist.destroy_process_group()
