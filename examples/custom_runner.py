# SPDX-License-Identifier: Apache-2.0
"""A runner of one's own: an op with two kernels, tuned at the first start, warm at the next."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig

from warmup_plugin import Identity, warm_up
from warmup_plugin.engines.embedded.host_clock import host_clock

BUCKETS = (1, 16, 256)
TOKENS = DynamicTensorSpec((0,), (0,), BUCKETS, lambda m: max(b for b in BUCKETS if b <= m))


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


device = "cuda" if torch.cuda.is_available() else "cpu"
x, w = torch.randn(256, 64, device=device), torch.randn(64, 64, device=device)
# FlashInfer times kernels with CUDA's events; where there is no GPU, the host clock stands in.
with nullcontext() if device == "cuda" else host_clock():
    report = warm_up(lambda: matmul(x, w), identity=Identity.of(model="matmul", dtype="float32"))
print(report.line())
