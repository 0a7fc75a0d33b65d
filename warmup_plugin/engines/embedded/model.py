# SPDX-License-Identifier: Apache-2.0
"""One pipeline stage of a small decoder.

Owns the layers and the weights of one rank. The first stage holds the embedding, the last one the
head, the second half of the model experts: stages have different ops. Weights are made whole from
the seed and their names, then cut, so that every layout is the same model.
"""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling

from warmup_plugin.engines.embedded.config import EngineConfig
from warmup_plugin.engines.embedded.host_clock import DeviceParameter
from warmup_plugin.engines.embedded.ops import Ops
from warmup_plugin.engines.embedded.parallel import AllReduce, Parallel

Tensor = torch.Tensor


def weight(config: EngineConfig, name: str, *shape: int) -> Tensor:
    """Return a whole weight, before it is cut for a layout."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
    return torch.randn(shape, generator=generator).div(math.sqrt(shape[-1]))


def prompt(config: EngineConfig, dp_rank: int, tokens: int) -> Tensor:
    """Return the token ids of one data-parallel replica."""
    generator = torch.Generator().manual_seed(config.seed * 1009 + dp_rank)
    return torch.randint(config.vocab, (tokens,), generator=generator)


def norm(x: Tensor) -> Tensor:
    """RMS norm without weights."""
    return F.rms_norm(x, x.shape[-1:])


class Shards:
    """Cuts whole weights for one rank."""

    def __init__(self, config: EngineConfig, parallel: Parallel, layer: str) -> None:
        self._config = config
        self._layer = layer
        self._tp = (parallel.ranks.tp_size, parallel.ranks.tp_rank)
        self._ep = (parallel.ranks.ep_size, parallel.ranks.ep_rank)

    def column(self, name: str, *shape: int) -> torch.nn.Parameter:
        """Cut the outputs, the rows of a weight, over the tensor-parallel ranks."""
        return self._parameter(self._whole(name, *shape), 0, self._tp)

    def row(self, name: str, *shape: int) -> torch.nn.Parameter:
        """Cut the inputs over the tensor-parallel ranks: their outputs have to be summed."""
        return self._parameter(self._whole(name, *shape), 1, self._tp)

    def columns(self, names: tuple[str, ...], *shape: int) -> torch.nn.Parameter:
        """Cut each of several weights and stack the cuts."""
        size, index = self._tp
        cuts = [self._whole(name, *shape).chunk(size)[index] for name in names]
        return torch.nn.Parameter(torch.cat(cuts), requires_grad=False)

    def experts(self, name: str, *shape: int, cut: int = 0) -> torch.nn.Parameter:
        """Give whole experts to each rank that shares them, or a cut of each to tp ranks."""
        whole = self._whole(name, *shape)
        if self._ep[0] > 1 or not cut:
            return self._parameter(whole, 0, self._ep)
        return self._parameter(whole, cut, self._tp)

    def _whole(self, name: str, *shape: int) -> Tensor:
        return weight(self._config, f"{self._layer}.{name}", *shape)

    def _parameter(self, whole: Tensor, dim: int, cut: tuple[int, int]) -> torch.nn.Parameter:
        size, index = cut
        shard = whole.chunk(size, dim)[index].contiguous()
        return torch.nn.Parameter(shard, requires_grad=False)


class Attention:
    def __init__(self, config: EngineConfig, shards: Shards, ops: Ops, reduce: AllReduce) -> None:
        hidden = config.hidden
        self._ops, self._reduce = ops, reduce
        self._heads = config.heads // config.tp
        self._qkv = shards.columns(("q", "k", "v"), hidden, hidden)
        self._bias = shards.columns(("q_bias", "k_bias", "v_bias"), hidden)
        self._out = shards.row("out", hidden, hidden)

    def __call__(self, x: Tensor) -> Tensor:
        qkv = self._ops.gemm(x, self._qkv, self._bias)
        q, k, v = qkv.view(len(x), 3, self._heads, -1).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        flat = mixed.transpose(0, 1).reshape(len(x), -1)
        return self._reduce(self._ops.gemm(flat, self._out))


class Dense:
    def __init__(self, config: EngineConfig, shards: Shards, ops: Ops, reduce: AllReduce) -> None:
        self._ops, self._reduce = ops, reduce
        self._up = shards.column("up", config.ffn, config.hidden)
        self._down = shards.row("down", config.hidden, config.ffn)

    def __call__(self, x: Tensor) -> Tensor:
        return self._reduce(self._ops.gemm(F.silu(self._ops.gemm(x, self._up)), self._down))


class Experts:
    """Each token's output is the weighted sum of its ``top_k`` experts'."""

    def __init__(
        self,
        config: EngineConfig,
        shards: Shards,
        ops: Ops,
        reduce: AllReduce,
        parallel: Parallel,
    ) -> None:
        self._ops, self._reduce, self._parallel = ops, reduce, parallel
        self._top_k = config.top_k
        experts, hidden, ffn = config.experts, config.hidden, config.ffn
        self._gate = shards.experts("gate", experts, hidden)
        self._w1 = shards.experts("w1", experts, ffn, hidden, cut=1)
        self._w2 = shards.experts("w2", experts, hidden, ffn, cut=2)

    def __call__(self, x: Tensor) -> Tensor:
        ranks = self._parallel.ranks
        tokens = self._parallel.gather_tokens(x)
        own_scores = self._ops.expert_gemm(tokens, self._gate, ranks.ep_rank)
        scores = self._parallel.gather_scores(own_scores)
        shares = _route(scores, self._top_k)
        own = slice(ranks.expert_offset, ranks.expert_offset + len(self._w1))
        outputs = self._ops.moe(tokens, self._w1, self._w2)
        combined = torch.einsum("te,eth->th", shares[:, own], outputs).contiguous()
        if ranks.ep_size > 1:
            return self._parallel.return_tokens(combined)
        return self._reduce(combined)


def _route(scores: Tensor, top_k: int) -> Tensor:
    """Return each expert's share of each token; most shares are zero."""
    best, chosen = scores.topk(top_k, dim=1)
    return torch.zeros_like(scores).scatter(1, chosen, best.softmax(dim=1))


class Stage:
    """The layers of one pipeline stage on one rank."""

    def __init__(self, config: EngineConfig, parallel: Parallel, ops: Ops) -> None:
        self._config, self._parallel, self._ops = config, parallel, ops
        ranks = parallel.ranks
        reduce = AllReduce(config, parallel, ops)
        self._layers: list[tuple[Attention, Dense | Experts]] = []
        for layer in config.stage_layers(ranks.pp_rank):
            shards = Shards(config, parallel, f"layer{layer}")
            block: Dense | Experts
            if config.is_moe(layer):
                block = Experts(config, shards, ops, reduce, parallel)
            else:
                block = Dense(config, shards, ops, reduce)
            self._layers.append((Attention(config, shards, ops, reduce), block))
        self._is_first = ranks.pp_rank == 0
        self._is_last = ranks.pp_rank == ranks.pp_size - 1
        ends = Shards(config, parallel, "model")
        if self._is_first:
            self._embedding = weight(config, "embedding", config.vocab, config.hidden)
        if self._is_last:
            self._head = DeviceParameter(
                ends.column("head", config.vocab, config.hidden), requires_grad=False
            )

    @torch.inference_mode()
    def __call__(self, token_ids: Tensor) -> Tensor | None:
        """Return the logits on the last stage, None on the others."""
        if self._is_first:
            x = F.embedding(token_ids, self._embedding)
        else:
            x = self._parallel.receive(torch.empty(len(token_ids), self._config.hidden))
        for attention, block in self._layers:
            x = x + attention(norm(x))
            x = x + block(norm(x))
        if not self._is_last:
            self._parallel.send(x)
            return None
        return self._parallel.gather_vocab(self._ops.lm_head(norm(x), self._head))
