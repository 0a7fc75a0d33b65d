# SPDX-License-Identifier: Apache-2.0
"""The engine's custom ops, each made as FlashInfer makes its own.

Owns names, tuning configurations and calls: an op builds its runners, asks
`AutoTuner.get().choose_one`, runs the runner with the tactic it got. Configurations are constants,
since FlashInfer remembers bucket lookups by their functions. `Ops.served` asks, outside tuning
mode, what the tuner now serves for every call seen so far at every bucket.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from warmup_plugin.engines.embedded.host_clock import Timing, device_answers
from warmup_plugin.engines.embedded.runners import (
    BlockedGemmRunner,
    ExpertGemmRunner,
    MoeGemmRunner,
    SplitKGemmRunner,
)

with device_answers():
    from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TuningConfig
    from flashinfer.fused_moe.utils import (
        get_hybrid_num_tokens_buckets,
        map_to_hybrid_bucket_uncapped,
    )

Tensor = torch.Tensor

GEMM = "embedded::gemm"
MOE_GEMM1 = "embedded::moe_gemm1"
MOE_GEMM2 = "embedded::moe_gemm2"
LM_HEAD = "embedded::lm_head"
EXPERT_GEMM = "embedded::expert_gemm"

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def bucket_of(tokens: int) -> int:
    """Return the bucket a batch is served from: the last power of two, from 1 to 256."""
    return max(bucket for bucket in BUCKETS if bucket <= max(tokens, 1))


#: Input 0 holds the tokens, in its first dimension.
_TOKENS = DynamicTensorSpec(
    input_idx=(0,), dim_idx=(0,), gen_tuning_buckets=BUCKETS, map_to_tuning_buckets=bucket_of
)
#: FlashInfer's own rule for wide products: the generator adds the batch at hand (100) to the
#: powers of two, the mapper rounds up (128), so that tuning at 100 stores what 65 to 128 look up.
_HYBRID = DynamicTensorSpec(
    input_idx=(0,),
    dim_idx=(0,),
    gen_tuning_buckets=get_hybrid_num_tokens_buckets,
    map_to_tuning_buckets=map_to_hybrid_bucket_uncapped,
)
#: A collective costs all ranks at once, so it is measured at few sizes.
_FEW_BUCKETS = (1, 16, 256)


def few_bucket_of(tokens: int) -> int:
    """Return the last of the few buckets up to the batch."""
    return max(bucket for bucket in _FEW_BUCKETS if bucket <= max(tokens, 1))


_FEW_TOKENS = DynamicTensorSpec(
    input_idx=(0,),
    dim_idx=(0,),
    gen_tuning_buckets=_FEW_BUCKETS,
    map_to_tuning_buckets=few_bucket_of,
)
TOKENS_CONFIG = TuningConfig(dynamic_tensor_specs=(_TOKENS,))
COLLECTIVE_CONFIG = TuningConfig(dynamic_tensor_specs=(_FEW_TOKENS,))
LM_HEAD_CONFIG = TuningConfig(dynamic_tensor_specs=(_HYBRID,), use_cold_l2_cache=True)


@dataclass(frozen=True, eq=False)
class Site:
    """One kind of call the model makes: an op with its weights, for any batch."""

    op: str
    runners: list[Any]
    config: Any
    row: Tensor
    weights: list[Any]
    kwargs: dict[str, Any]
    widest: int

    def batches(self) -> tuple[int, ...]:
        """Return the batches FlashInfer tunes this call at."""
        buckets = self.config.dynamic_tensor_specs[0].gen_tuning_buckets
        return tuple(buckets(self.widest) if callable(buckets) else buckets)


class Ops:
    """The ops of one rank."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing
        self._sites: dict[str, Site] = {}

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias``. Two runner classes compete in one call."""
        runners = [BlockedGemmRunner(GEMM, self.timing), SplitKGemmRunner(GEMM, self.timing)]
        inputs = [x, weight, bias]
        runner, tactic = self.choose(GEMM, runners, TOKENS_CONFIG, inputs)
        return _tensor(runner(inputs, tactic=tactic))

    def lm_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the logits. Hybrid buckets, measured with a cold L2 cache."""
        runners = [BlockedGemmRunner(LM_HEAD, self.timing)]
        inputs = [x, weight, None]
        runner, tactic = self.choose(LM_HEAD, runners, LM_HEAD_CONFIG, inputs)
        return _tensor(runner(inputs, tactic=tactic))

    def expert_gemm(self, x: Tensor, weight: Tensor, ep_rank: int) -> Tensor:
        """Return the tokens' scores for this rank's experts. The key holds the rank."""
        runners = [ExpertGemmRunner(EXPERT_GEMM, self.timing, ep_rank)]
        inputs = [x, weight, None]
        runner, tactic = self.choose(EXPERT_GEMM, runners, TOKENS_CONFIG, inputs)
        return _tensor(runner(inputs, tactic=tactic))

    def moe(self, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        """Return every expert's output for every token: (experts, tokens, hidden).

        One runner object is tuned for both products: set to the first, then to the second.
        """
        moe_runner = MoeGemmRunner("embedded::moe", self.timing)
        inputs = [x, w1, w2]
        moe_runner.gemm_index = 1
        runner, first = self.choose(MOE_GEMM1, [moe_runner], TOKENS_CONFIG, inputs, gemm_idx=1)
        moe_runner.gemm_index = 2
        runner, second = self.choose(MOE_GEMM2, [moe_runner], TOKENS_CONFIG, inputs, gemm_idx=2)
        hidden = torch.nn.functional.silu(runner(inputs, tactic=first, gemm_idx=1))
        return _tensor(runner(inputs, tactic=second, gemm_idx=2, hidden=hidden))

    def choose(
        self, op: str, runners: list[Any], config: Any, inputs: list[Any], **kwargs: Any
    ) -> tuple[Any, Any]:
        """Return FlashInfer's choice of runner and tactic, and remember the kind of call."""
        shapes = ["-" if w is None else "x".join(map(str, w.shape)) for w in inputs[1:]]
        label = " ".join([op, *shapes, "x".join(map(str, inputs[0].shape[1:]))])
        known = self._sites.get(label)
        if known is None or known.widest < inputs[0].shape[0]:
            # A copy: the object may be changed before the next call. No activation is kept.
            copies = [copy.copy(runner) for runner in runners]
            row = inputs[0].new_empty((1, *inputs[0].shape[1:]))
            self._sites[label] = Site(
                op, copies, config, row, inputs[1:], kwargs, inputs[0].shape[0]
            )
        chosen: tuple[Any, Any] = AutoTuner.get().choose_one(op, runners, config, inputs, **kwargs)
        return chosen

    def served(self) -> dict[str, tuple[str, Any]]:
        """Return what serves each kind of call at each batch that FlashInfer tunes.

        Keys name op, weights and batch, not the rank: ranks that agree return equal dictionaries.
        """
        tuner = AutoTuner.get()
        if tuner.is_tuning_mode:
            raise RuntimeError("served() asks what serving gets: leave tuning mode first")
        served = {}
        for label, site in self._sites.items():
            for batch in site.batches():
                inputs = [site.row.new_empty((batch, *site.row.shape[1:])), *site.weights]
                runner, tactic = tuner.choose_one(
                    site.op, site.runners, site.config, inputs, **site.kwargs
                )
                served[f"{label} @ {batch}"] = (type(runner).__name__, tactic)
        return served


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, torch.Tensor)
    return value
