# SPDX-License-Identifier: Apache-2.0
"""S7: the launch of a Prims-TS MoE.

Owns the stand-in for the last step of its runners, routing, two compiled GEMMs and a reduction, and
for compiling them ahead. What comes before is FlashInfer's: the tactics, and the partitioned
runners' own ``forward``. Does not show whether its kernels launch.
"""

from __future__ import annotations

from typing import Any

from tests.real_ops.gpu.clock import spend

KINDS = ("Bf16", "Nvfp4", "Mxfp4Mxfp8", "Mxfp4Bf16", "Fp8PerTensor", "Fp8BlockScale")


def forward(self: Any, inputs: Any, tactic: Any = -1, **_kwargs: Any) -> list[Any]:
    """Spend the time of a tactic; FlashInfer's number for the default is its own default pair."""
    pair = [-1, -1] if tactic == -1 else tactic
    given = [value for value in inputs if value is not None]
    spend(f"prims_ts.{type(self).__name__}", pair, given)
    return [given[0]] * 3


def install() -> None:
    """Put it in place of each runner's own; the partitioned ones inherit it."""
    from flashinfer.prims_ts.moe import runner

    module: Any = runner
    for kind in KINDS:
        runner_class = getattr(module, f"PrimsTs{kind}MoERunner")
        runner_class.forward = forward
        runner_class.precompile_tactics = lambda _self, *_args, **_kwargs: True
