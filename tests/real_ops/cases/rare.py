# SPDX-License-Identifier: Apache-2.0
"""Ops that FlashInfer tunes and neither engine calls today, or calls behind a switch of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from tests.real_ops.cases import gemms
from tests.real_ops.cases.case import (
    BLACKWELL,
    FEW,
    GEFORCE,
    HOPPER,
    SMALL,
    Case,
    Make,
    Step,
    up,
)
from tests.real_ops.cases.moes import EXPERTS, HIDDEN, TOP, routing, trtllm
from tests.real_ops.cases.others import mla
from tests.real_ops.gpu.modules import stub_generators
from tests.real_ops.gpu.tensors import on_gpu, ones, weight, zeros

E4M3, U8, BF16 = torch.float8_e4m3fn, torch.uint8, torch.bfloat16
F32, I32 = torch.float32, torch.int32
WIDTHS = (128, 256)


# -- Prims-TS ------------------------------------------------------------------------------------


def prims_ts(name: str, like: str, routed: str = "", **options: Any) -> Make:
    """A Prims-TS MoE, which takes what the TRT-LLM one takes. Few buckets: it has many tactics."""
    return trtllm(name, routed, like=like, tune_max_num_tokens=2, **options)


# -- the SM12x MoEs that are tuned where MOE_AUTOTUNE is set -------------------------------------

_K = 2176


def sm12x_moe(module: str, function: str, *, packed: bool, gated: bool) -> Make:
    """One of the grouped GEMMs; ``packed``: MXFP4 weights with scales of 32 packed in fours."""

    def make() -> Step:
        import importlib

        path = f"flashinfer.fused_moe.cute_dsl.blackwell_sm12x.{module}"
        op: Callable[..., Any] = getattr(importlib.import_module(path), function)
        layers = [_sm12x_layer(width * (2 if gated else 1), packed=packed) for width in WIDTHS]

        def step(m: int) -> None:
            os.environ["MOE_AUTOTUNE"] = "1"
            rows = m * EXPERTS
            borders = on_gpu(torch.arange(EXPERTS + 1, dtype=I32) * m)
            more = {}
            if "finalize" in module:
                pairs = torch.arange(rows, dtype=I32) % m
                more = {"src_token": on_gpu(pairs), "pair_scales": ones(rows), "num_tokens": m}
            for w, ws in layers:
                scale = zeros(
                    -(-_K // (512 if packed else 128)),
                    up(rows + 4 * EXPERTS, 4),
                    dtype=I32 if packed else F32,
                )
                op(zeros(rows, _K, dtype=E4M3), scale, w, ws, borders, **more)

        return step

    return make


def _sm12x_layer(n: int, *, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = -(-_K // 128)
    if packed:
        return weight(EXPERTS, n, _K // 2, dtype=U8), zeros(EXPERTS, blocks, n, dtype=I32)
    return weight(EXPERTS, n, _K, dtype=E4M3), ones(EXPERTS, blocks, -(-n // 128))


def mxfp8_groupwise() -> Step:
    from flashinfer.grouped_mm import moe_gemm_mxfp8_nt_groupwise

    layers = [weight(EXPERTS, n, _K, dtype=E4M3) for n in (256, 512)]
    blocks = -(-_K // 128 // 4)

    def step(m: int) -> None:
        rows = m * TOP
        borders = torch.arange(EXPERTS + 1, dtype=torch.int64) * rows // EXPERTS
        for w in layers:
            n = w.shape[1]
            moe_gemm_mxfp8_nt_groupwise(
                zeros(rows, _K, dtype=E4M3), w, zeros(blocks, up(rows + 4 * EXPERTS, 4), dtype=I32),
                zeros(EXPERTS, n, blocks, dtype=I32), on_gpu(borders.to(I32)),
            )  # fmt: skip

    return step


# -- attention -----------------------------------------------------------------------------------


def proxy_score() -> Step:
    """MSA's first stage, tuned for the shapes that it met in tuning mode."""
    from flashinfer.msa_ops import msa_proxy_score

    pages, heads = 64, 2

    def step(m: int) -> None:
        lengths = on_gpu(torch.full((m,), 300, dtype=I32))
        starts = on_gpu(torch.arange(m + 1, dtype=I32) * 4)
        msa_proxy_score(
            zeros(m * 4, heads * 4, 128), zeros(pages, heads, 128, 128), starts,
            page_table=on_gpu(torch.zeros(m, 8, dtype=I32)), seqused_k=lengths,
            max_seqlen_q=4, max_k_tiles=8,
        )  # fmt: skip

    return step


# -- the unified MoE layer, and the preparation of a diffusion model ------------------------------


def moe_layer() -> Step:
    from flashinfer.fused_moe import api, layer

    def build(width: int) -> tuple[Any, Any]:
        config = api.MoEConfig(
            routing=api.RoutingConfig(num_experts=EXPERTS, top_k=TOP),
            quant=api.QuantConfig(weight=api.QuantFormat.BF16, activation=api.QuantFormat.BF16),
            experts=api.ExpertConfig(intermediate_size=width),
            backend=api.BackendOptions(candidates=(api.TrtllmBf16Config(),)),
            # Above every batch that is served.
            execution=api.ExecutionConfig(tune_max_num_tokens=16384),
        )
        weights = api.MoEWeightPack()
        view = {
            "gemm1_weights": weight(EXPERTS, HIDDEN // 64, 2 * width, 64),
            "gemm2_weights": weight(EXPERTS, width // 64, HIDDEN, 64),
        }
        weights.prepare_for("trtllm_bf16_routed", view)
        return layer.MoELayer(config), weights

    layers = [build(width) for width in WIDTHS]

    def step(m: int) -> None:
        for moe, weights in layers:
            moe.reset_winner()  # else it keeps what it was told, and asks no more
            moe(api.MoEActivationPack(zeros(m, HIDDEN), None, routing(m), ones(m, TOP)), weights)

    return step


def minimax() -> Step:
    """MiniMax-H3's preparation, which tunes by itself at one of its exact shapes."""
    from flashinfer.diffusion_ops import cake_minimax_h3_mxfp8 as h3
    from flashinfer.jit.cake_minimax_h3_mxfp8 import MINIMAX_H3_MXFP8_SHAPES

    stub_generators()  # of what was imported just now
    rows, parts = min(MINIMAX_H3_MXFP8_SHAPES)
    hidden, width = h3._HIDDEN, h3._QKV_WIDTH
    heads = h3._HEADS // parts
    qkv = weight(width, hidden, dtype=E4M3)
    scales = weight(width * hidden // 32, dtype=U8)

    def step(_m: int) -> None:
        packed = up(rows * heads * h3._KINDS, 128) * h3._HEAD_DIM // 32
        h3.prepare_minimax_h3_mxfp8_pre_attention(
            x=zeros(rows, hidden), x_norm_weight=weight(hidden),
            adaln_scale=weight(h3._ADALN_ROWS, hidden), adaln_shift=weight(h3._ADALN_ROWS, hidden),
            adaln_index=zeros(rows, dtype=I32), qkv_weight_q=qkv, qkv_weight_sf=scales,
            q_norm_weight=weight(h3._HEAD_DIM), k_norm_weight=weight(h3._HEAD_DIM),
            rope_cos_sin=zeros(rows, 96),
            out_q=zeros(parts, rows, heads, h3._KINDS, h3._HEAD_DIM, dtype=E4M3),
            out_sf=zeros(parts, packed, dtype=U8), activation_q=zeros(rows, hidden, dtype=E4M3),
            activation_sf=zeros(up(rows, 128) * hidden // 32, dtype=U8),
            qkv_bf16=zeros(rows, width), gemm_workspace=zeros(64 * 1024, dtype=U8), P=parts,
        )  # fmt: skip

    return step


# -- new in 0.7.4 --------------------------------------------------------------------------------


def svdquant_gemm() -> Step:
    from flashinfer.gemm.gemm_svdquant import mm_nvfp4_svdquant

    layers = [_svdquant_layer(n) for n in SVD_WIDTHS]

    def step(m: int) -> None:
        a, s = zeros(m, HIDDEN // 2, dtype=U8), zeros(up(m, 128) * up(HIDDEN // 16, 4), dtype=U8)
        for w, ws, low_rank, bias in layers:
            mm_nvfp4_svdquant(
                a, w, s, ws, ones(1), zeros(m, 32), low_rank, bias, backend="cutlass-sm120"
            )

    return step


SVD_WIDTHS = (128, 384)


def _svdquant_layer(n: int) -> tuple[torch.Tensor, ...]:
    scales = weight(up(n, 128) * up(HIDDEN // 16, 4), dtype=U8)
    return weight(n, HIDDEN // 2, dtype=U8), scales, weight(n, 32), weight(n)


def svdquant_linear(backend: str) -> Make:
    def make() -> Step:
        from flashinfer.gemm import svdquant_linear as op

        layers = [_svdquant_layer(n) for n in SVD_WIDTHS]
        smooth, low = weight(HIDDEN), weight(HIDDEN, 32)

        def step(m: int) -> None:
            for w, ws, l1, bias in layers:
                op(
                    zeros(m, HIDDEN), w, ws, ones(1), smooth, low, l1, ones(1), bias,
                    backend=backend,
                )  # fmt: skip

        return step

    return make


def mla_swa() -> Step:
    from flashinfer.mla import _swa

    cache, workspace = zeros(64, 64, 1088), zeros(64 << 20, dtype=U8)

    def step(m: int) -> None:
        _swa.batch_decode_with_kv_cache_mla_swa(
            zeros(m, 1, 64, 1088), cache, workspace, on_gpu(torch.zeros(m, 8, dtype=I32)),
            on_gpu(torch.full((m,), 300, dtype=I32)), window_left=512, sm_scale=0.1,
        )  # fmt: skip

    return step


_SIZES, _SERVED = (1, 8), (1, 2, 3, 8)
_ON_10, _ON_12 = (BLACKWELL,), (GEFORCE,)
_FP8, _MIXED = "moe_fp8", "moe_mxfp8_mxfp4"
_SM12X = (
    (f"{_FP8}_gemm", "cute_dsl_sm12x_moe_gemm_fp8", False, False),
    (f"{_FP8}_fc1_act", "cute_dsl_sm12x_fc1_act_fp8", False, True),
    (f"{_MIXED}_gemm", "cute_dsl_sm12x_moe_gemm_mxfp8_mxfp4", True, False),
    (f"{_MIXED}_fc1_act", "cute_dsl_sm12x_fc1_act_mxfp8_mxfp4", True, True),
    (f"{_MIXED}_fc1_act_q1", "cute_dsl_sm12x_fc1_act_q1_mxfp8_mxfp4", True, True),
    (f"{_MIXED}_fc2_finalize", "cute_dsl_sm12x_fc2_finalize_mxfp8_mxfp4", True, False),
)
_FIRST, _NEXT = ("0.7.2.post1",), ("0.7.4",)
_SMALL, _FEW = (1, 8, 100), (1, 3, 8, 64, 100)
_INVARIANT = (
    ("mm_bf16", gemms.bf16("auto", batch_invariant=True), _ON_10),
    ("bmm_fp8", gemms.bmm_fp8("auto", batch_invariant=True), _ON_10),
    ("mm_mxfp8", gemms.mxfp8("auto", batch_invariant=True), _ON_10),
    ("mm_fp4", gemms.fp4("auto", batch_invariant=True), _ON_10),
)
_PRIMS_TS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("prims_ts_bf16_moe", "trtllm_bf16_moe", {}),
    ("prims_ts_fp8_per_tensor_scale_moe", "trtllm_fp8_per_tensor_scale_moe", {}),
    ("prims_ts_fp8_block_scale_moe", "trtllm_fp8_block_scale_moe", {"use_shuffled_weight": True}),
    ("prims_ts_fp4_block_scale_moe", "trtllm_fp4_block_scale_moe", {}),
)
CASES = (
    *(Case(n, prims_ts(n, like, **more), (1, 2), (1, 2), _ON_10) for n, like, more in _PRIMS_TS),
    *(
        Case(
            name,
            sm12x_moe(module, name, packed=packed, gated=gated),
            _SIZES,
            _SERVED,
            _ON_12,
            left="tunes by itself, also in serving, where MOE_AUTOTUNE is set",
        )
        for module, name, packed, gated in _SM12X
    ),
    Case("moe_gemm_mxfp8_nt_groupwise", mxfp8_groupwise, (100, 300), (8, 100, 200, 300), _ON_12),
    Case("msa_proxy_score", proxy_score, (1, 8, 100), (1, 8, 64, 100), _ON_12),
    Case("MoELayer", moe_layer, on=_ON_10),
    Case("minimax_h3 preparation", minimax, (1,), (1,), _ON_10, _FIRST, left="tunes by itself"),
    *(
        Case(f"batch_invariant {name}", make, _SMALL, _FEW, on, _NEXT)
        for name, make, on in _INVARIANT
    ),
    Case("svdquant cutlass-sm120", svdquant_gemm, _SMALL, _FEW, _ON_12, _NEXT),
    Case("svdquant_linear auto", svdquant_linear("auto"), _SMALL, _FEW, _ON_12, _NEXT),
    Case(
        "svdquant_linear cutlass-sm120",
        svdquant_linear("cutlass-sm120"),
        _SMALL,
        _FEW,
        _ON_12,
        _NEXT,
    ),
    Case("mla decode swa", mla_swa, (1, 2, 8), (1, 4, 16), (HOPPER,), _NEXT),
    Case("mla decode xqa", mla("xqa", heads=128, dtype=E4M3), (1, 8), (1, 2, 8), _ON_12, _NEXT),
    Case("mm_fp4 auto, SM12x", gemms.fp4("auto"), SMALL, FEW, _ON_12),
)
