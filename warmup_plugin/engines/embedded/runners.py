# SPDX-License-Identifier: Apache-2.0
"""Runners: what FlashInfer's tuner chooses between.

Every tactic is another CPU implementation of the same product; tactic -1 is the default that
serves where nothing is tuned. They agree in layout too, what leaves a runner is contiguous: ranks
may run different tactics, and a collective adds up memory, not elements.
A runner's ``get_cache_key_extras`` must name everything that changes the candidates or their order
besides the input shapes, and nothing that differs between starts. Its attributes enter its hash,
which is in FlashInfer's in-memory key: keep them hashable.
An unknown tactic raises `ValueError`; FlashInfer then leaves it out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  # torch's own spelling

from warmup_plugin.engines.embedded.host_clock import Timing, advance, device_answers

with device_answers():
    from flashinfer.autotuner import TunableRunner

Tensor = torch.Tensor
Inputs = list[Any]


class CpuRunner(TunableRunner):
    """What the runners of this engine share: the op they serve and the simulated device time."""

    def __init__(self, op: str, timing: Timing | None = None) -> None:
        self.op = op
        self.timing = timing

    def forward(
        self,
        inputs: Inputs,
        tactic: Any = -1,
        do_preparation: bool = False,  # noqa: ARG002, FBT001, FBT002  # FlashInfer's signature
        **kwargs: Any,
    ) -> Tensor:
        if self.timing is not None:
            advance(self.timing(self.op, type(self).__name__, inputs[0].shape[0], tactic))
        return self.run(inputs, tactic, **kwargs)

    def run(self, inputs: Inputs, tactic: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def reject(self, tactic: Any) -> ValueError:
        return ValueError(f"{self.op}: {type(self).__name__} has no tactic {tactic!r}")


class GemmRunner(CpuRunner):
    """``x @ weight.T + bias``: the key must tell dtypes, and calls with and without bias, apart."""

    def get_cache_key_extras(self, inputs: Inputs) -> tuple[Any, ...]:
        x, _, bias = inputs
        return (str(x.dtype).removeprefix("torch."), bias is not None)

    def run(self, inputs: Inputs, tactic: Any, **_kwargs: Any) -> Tensor:
        x, weight, bias = inputs
        out = self.product(x, weight, tactic).contiguous()
        return out if bias is None else out + bias

    def product(self, x: Tensor, weight: Tensor, tactic: int) -> Tensor:
        raise NotImplementedError


class BlockedGemmRunner(GemmRunner):
    """Tactics 0 and 1 take the whole weight, as it lies or transposed; 2 and 3 cut its rows."""

    _blocks = (1, 1, 2, 4)

    def get_valid_tactics(self, inputs: Inputs, _profile: Any) -> list[int]:
        rows = inputs[1].shape[0]
        return [tactic for tactic, blocks in enumerate(self._blocks) if blocks <= rows]

    def product(self, x: Tensor, weight: Tensor, tactic: int) -> Tensor:
        if tactic == -1:
            return F.linear(x, weight)
        if tactic == 0:
            return torch.mm(x, weight.t())
        if tactic == 1:
            return torch.mm(weight, x.t()).t()
        if tactic in (2, 3):
            blocks = weight.chunk(self._blocks[tactic])
            return torch.cat([torch.mm(x, block.t()) for block in blocks], dim=1)
        raise self.reject(tactic)


class SplitKGemmRunner(GemmRunner):
    """Tactics 0 to 2 cut the inner dimension into 2, 4 and 8 and add up; 3 is one einsum."""

    _slices = (2, 4, 8)

    def get_valid_tactics(self, inputs: Inputs, _profile: Any) -> list[int]:
        inner = inputs[1].shape[1]
        return [*(t for t, slices in enumerate(self._slices) if slices <= inner), 3]

    def product(self, x: Tensor, weight: Tensor, tactic: int) -> Tensor:
        if tactic == 3:  # noqa: PLR2004  # tactics are numbers
            return torch.einsum("mk,nk->mn", x, weight)
        if tactic not in (-1, 0, 1, 2):
            raise self.reject(tactic)
        slices = self._slices[max(tactic, 0)]
        (first_x, first_w), *rest = zip(x.chunk(slices, 1), weight.chunk(slices, 1), strict=True)
        out = torch.mm(first_x, first_w.t())
        for part, block in rest:
            out = torch.addmm(out, part, block.t())
        return out


class ExpertGemmRunner(BlockedGemmRunner):
    """One rank's experts: its key names the rank, as FlashInfer's MoE keys did before 0.7.2.

    Ranks hold equal shapes and equal candidates, so their keys differ in nothing else: twins.
    """

    #: Where the rank stands among the extras, for `KnownOps.twin_fields`.
    EP_RANK_INDEX = 2

    def __init__(self, op: str, timing: Timing | None, ep_rank: int) -> None:
        super().__init__(op, timing)
        self.ep_rank = ep_rank

    def get_cache_key_extras(self, inputs: Inputs) -> tuple[Any, ...]:
        return (*super().get_cache_key_extras(inputs), self.ep_rank)


class MoeGemmRunner(CpuRunner):
    """Both products of a group of experts, over ``[tokens, w1, w2]``.

    One object serves both ops of a call, mutated in between, as FlashInfer's CUTLASS MoE does:
    ``gemm_index`` decides which candidates are tuned, the keyword which product is run. A tactic
    is (product, variant), so that a candidate of the wrong product fails instead of winning.
    """

    gemm_index = 1

    def get_cache_key_extras(self, inputs: Inputs) -> tuple[Any, ...]:
        return (str(inputs[0].dtype).removeprefix("torch."),)

    def get_valid_tactics(self, _inputs: Inputs, _profile: Any) -> list[tuple[int, int]]:
        variants = 3 if self.gemm_index == 1 else 4
        return [(self.gemm_index, variant) for variant in range(variants)]

    def run(
        self,
        inputs: Inputs,
        tactic: Any,
        *,
        gemm_idx: int = 1,
        hidden: Tensor | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        x, w1, w2 = inputs
        gemm, variant = (gemm_idx, 0) if tactic == -1 else tactic
        if gemm != gemm_idx:
            raise self.reject(tactic)
        if gemm == 1:
            return self._first(x, w1, variant).contiguous()
        if hidden is None:  # only while tuning: the op has the first product at hand
            hidden = x.new_zeros((w2.shape[0], x.shape[0], w2.shape[2]))
        return self._second(hidden, w2, variant).contiguous()

    def _first(self, x: Tensor, w1: Tensor, variant: int) -> Tensor:
        """Tokens times each expert's weight: (tokens, k) and (experts, n, k)."""
        if variant == 0:
            return torch.matmul(x, w1.transpose(1, 2))
        if variant == 1:
            return torch.einsum("mk,enk->emn", x, w1)
        if variant == 2:  # noqa: PLR2004  # variants are numbers
            return torch.stack([torch.mm(x, expert.t()) for expert in w1])
        raise self.reject((1, variant))

    def _second(self, hidden: Tensor, w2: Tensor, variant: int) -> Tensor:
        """Each expert's tokens times its weight: (experts, tokens, k) and (experts, n, k)."""
        if variant == 0:
            return torch.bmm(hidden, w2.transpose(1, 2))
        if variant == 1:
            return torch.bmm(w2, hidden.transpose(1, 2)).transpose(1, 2)
        if variant == 2:  # noqa: PLR2004
            pairs = zip(hidden, w2, strict=True)
            return torch.stack([torch.mm(tokens, expert.t()) for tokens, expert in pairs])
        if variant == 3:  # noqa: PLR2004
            (first, w_first), (second, w_second) = zip(
                hidden.chunk(2, 2), w2.chunk(2, 2), strict=True
            )
            out = torch.bmm(first, w_first.transpose(1, 2))
            return torch.baddbmm(out, second, w_second.transpose(1, 2))
        raise self.reject((2, variant))


class AllReduceRunner(CpuRunner):
    """The sum over a group of ranks; tactic 1 sends it in two halves. Collective in every call."""

    def __init__(self, op: str, timing: Timing | None, group: dist.ProcessGroup) -> None:
        super().__init__(op, timing)
        self.group = group

    def get_cache_key_extras(self, inputs: Inputs) -> tuple[Any, ...]:
        return (str(inputs[0].dtype).removeprefix("torch."), self.group.size())

    def get_valid_tactics(self, _inputs: Inputs, _profile: Any) -> list[int]:
        return [0, 1]

    def run(self, inputs: Inputs, tactic: Any, **_kwargs: Any) -> Tensor:
        out: Tensor = inputs[0].clone(memory_format=torch.contiguous_format)
        if tactic not in (-1, 0, 1):
            raise self.reject(tactic)
        parts = out.view(-1).chunk(2) if tactic == 1 else (out,)
        for part in parts:
            dist.all_reduce(part, group=self.group)
        return out
