# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's other tuned ops: CuTe-DSL MoE, MLA decode, ReplaySSM, W4A16, SVDQuant and more."""

from __future__ import annotations

from typing import Any

import torch

from tests.real_ops.cases.case import BLACKWELL, FEW, GEFORCE, HOPPER, SMALL, Case, Make, Step, up
from tests.real_ops.cases.moes import EXPERTS, HIDDEN, TOP, routing
from tests.real_ops.gpu.tensors import Here, on_gpu, ones, weight, zeros

MOE_WIDTHS, WIDTHS = (128, 256), (128, 384)
E4M3, U8, BF16 = torch.float8_e4m3fn, torch.uint8, torch.bfloat16
F32, I32 = torch.float32, torch.int32


# -- MoE in the CuTe DSL -------------------------------------------------------------------------


def _scale(groups: int, m: int, k: int, vector: int = 16) -> torch.Tensor:
    from flashinfer.cute_dsl.utils import convert_sf_to_mma_layout

    flat = zeros(groups * m * (k // vector), dtype=U8)
    made: torch.Tensor = convert_sf_to_mma_layout(
        flat, m=m, k=k, num_groups=groups, sf_vec_size=vector
    )
    return made


def _fp4_layer(local: int, width: int, vector: int = 16) -> tuple[torch.Tensor, ...]:
    return (
        weight(local, 2 * width, HIDDEN // 2, dtype=U8),
        _scale(local, 2 * width, HIDDEN, vector),
        weight(local, HIDDEN, width // 2, dtype=U8),
        _scale(local, HIDDEN, width, vector),
    )


def cute_moe(mode: str = "w4a4", ep: tuple[int, int] = (1, 0), **options: Any) -> Make:
    def make() -> Step:
        from flashinfer.fused_moe.cute_dsl.fused_moe import cute_dsl_fused_moe

        local = EXPERTS // ep[0]
        layers = [_fp4_layer(local, width, 32 if mode == "w4a8" else 16) for width in MOE_WIDTHS]
        alpha, scale = ones(local), ones(1) if mode == "w4a4" else None

        def step(m: int) -> None:
            x, sf = _activation(mode, m)
            for w1, s1, w2, s2 in layers:
                cute_dsl_fused_moe(
                    x, sf, routing(m), ones(m, TOP), w1, s1, alpha, scale, w2, s2, alpha, EXPERTS,
                    TOP, num_local_experts=local, local_expert_offset=local * ep[1],
                    quant_mode=mode, **options,
                )  # fmt: skip

        return step

    return make


def _activation(mode: str, m: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if mode == "w4a8":
        return zeros(m, HIDDEN, dtype=E4M3), zeros(m, HIDDEN // 32, dtype=U8)
    if mode == "w4a4":
        return zeros(m, HIDDEN // 2, dtype=U8), zeros(m, HIDDEN // 16, dtype=U8)
    return zeros(m, HIDDEN), None


def cute_wrapper() -> Step:
    from flashinfer.fused_moe.cute_dsl.fused_moe import CuteDslMoEWrapper

    layers = []
    for width in MOE_WIDTHS:
        moe = CuteDslMoEWrapper(
            num_experts=EXPERTS, top_k=TOP, hidden_size=HIDDEN, intermediate_size=width,
            use_cuda_graph=True, max_num_tokens=512,
        )  # fmt: skip
        layers.append((moe, _fp4_layer(EXPERTS, width)))
    alpha, scale = ones(EXPERTS), ones(1)

    def step(m: int) -> None:
        x, sf = _activation("w4a4", m)
        for moe, (w1, s1, w2, s2) in layers:
            moe.run(x, sf, routing(m), ones(m, TOP), w1, s1, alpha, scale, w2, s2, alpha)

    return step


def sm90_moe() -> Step:
    from flashinfer.fused_moe.cute_dsl.sm90_fused_moe import cute_dsl_fused_moe_bf16

    layers = [(weight(EXPERTS, 2 * i, HIDDEN), weight(EXPERTS, HIDDEN, i)) for i in MOE_WIDTHS]

    def step(m: int) -> None:
        for w1, w2 in layers:
            cute_dsl_fused_moe_bf16(
                zeros(m, HIDDEN), routing(m), ones(m, TOP), w1, w2, num_experts=EXPERTS, top_k=TOP
            )

    return step


# -- attention and state -------------------------------------------------------------------------


def mla(
    backend: str, heads: int = 8, dtype: torch.dtype = BF16, pages: int = 64, **options: Any
) -> Make:
    def make() -> Step:
        from flashinfer.mla import trtllm_batch_decode_with_kv_cache_mla

        caches = [zeros(pages, 64, 576, dtype=dtype) for _ in range(2)]
        workspace = zeros(32 << 20, dtype=U8)

        def step(m: int) -> None:
            q = zeros(m, 1, heads, 576, dtype=dtype)
            tables = on_gpu(torch.arange(m * 8, dtype=I32).view(m, 8) % pages)
            lengths = on_gpu(torch.full((m,), 300, dtype=I32))
            for cache in caches:
                trtllm_batch_decode_with_kv_cache_mla(
                    q, cache, workspace, 128, 512, 64, tables, lengths, 512,
                    bmm1_scale=0.1, backend=backend, **options,
                )  # fmt: skip

        return step

    return make


_SSU = {"heads": 8, "dim": 64, "n": 64, "window": 8, "t": 4, "groups": 1, "slots": 1100}


def _ssu_layer() -> dict[str, torch.Tensor]:
    heads, dim, n, slots = _SSU["heads"], _SSU["dim"], _SSU["n"], _SSU["slots"]
    span = _SSU["window"] + _SSU["t"]
    return {
        "state": zeros(slots, heads, dim, n),
        "x_cache": zeros(slots, heads, span, dim),
        "B_cache": zeros(slots, _SSU["groups"], span, n),
        "dt_cache": zeros(slots, heads, span, dtype=F32),
        "ring_start": zeros(slots, dtype=I32),
        "prev_num_accepted_tokens": zeros(slots, dtype=I32),
        "A": weight(heads, dtype=F32).view(heads, 1, 1).expand(heads, dim, n),
        "D": weight(heads).view(heads, 1).expand(heads, dim),
        "dt_bias": weight(heads).view(heads, 1).expand(heads, dim),
    }


def ssu() -> Step:
    from flashinfer.mamba.checkpointing_ssu import (
        allocate_checkpointing_ssu_scratch,
        checkpointing_ssu,
    )

    heads, dim, n, t = _SSU["heads"], _SSU["dim"], _SSU["n"], _SSU["t"]
    layers = [_ssu_layer() for _ in range(2)]

    def step(m: int) -> None:
        for layer in layers:
            cb, cumulated, old = allocate_checkpointing_ssu_scratch(
                m, heads, t, _SSU["window"], BF16, Here.device
            )
            checkpointing_ssu(
                **layer, x=zeros(m, t, heads, dim), out=zeros(m, t, heads, dim), dt_softplus=True,
                dt=zeros(m, t, heads).unsqueeze(-1).expand(m, t, heads, dim),
                B=zeros(m, t, _SSU["groups"], n), C=zeros(m, t, _SSU["groups"], n),
                state_batch_indices=on_gpu(torch.arange(1, m + 1, dtype=I32)),
                cb_scaled=cb, cumAdt_vec=cumulated, cb_old=old,
            )  # fmt: skip

    return step


# -- GEMMs that need more than a weight ----------------------------------------------------------


def bf16_fp4(backend: str) -> Make:
    def make() -> Step:
        from flashinfer.gemm import mm_bf16_fp4, prepare_bf16_fp4_weights

        layers = []
        for n in WIDTHS:
            w, s = zeros(n, HIDDEN // 2, dtype=U8), zeros(up(n, 128) * HIDDEN // 16, dtype=U8)
            layer = (w, s, ones(1))
            if backend != "cute-dsl-native":
                layer = prepare_bf16_fp4_weights(*layer, backend=backend)
            layers.append(layer)

        def step(m: int) -> None:
            for w, s, alpha in layers:
                mm_bf16_fp4(zeros(m, HIDDEN), w, s, alpha, backend=backend, out_dtype=BF16)

        return step

    return make


def svdquant(backend: str) -> Make:
    return lambda: _svdquant(backend)


def _svdquant(backend: str) -> Step:
    from flashinfer.gemm.gemm_svdquant import mm_nvfp4_svdquant

    layers = [
        (
            weight(n, HIDDEN // 2, dtype=U8), weight(up(n, 128) * up(HIDDEN // 16, 4), dtype=U8),
            weight(n, 32), weight(n),
        )
        for n in WIDTHS
    ]  # fmt: skip
    alpha = ones(1)

    def step(m: int) -> None:
        a = zeros(m, HIDDEN // 2, dtype=U8)
        s = zeros(up(m, 128) * up(HIDDEN // 16, 4), dtype=U8)
        for w, ws, low_rank, bias in layers:
            mm_nvfp4_svdquant(a, w, s, ws, alpha, zeros(m, 32), low_rank, bias, backend=backend)

    return step


def prims_gemm() -> Step:
    from flashinfer.prims_ts.gemm import fp8_linear

    layers = [(weight(n, HIDDEN, dtype=E4M3), weight(n, dtype=F32)) for n in WIDTHS]

    def step(m: int) -> None:
        for w, s in layers:
            fp8_linear(zeros(m, HIDDEN, dtype=E4M3), w, ones(m), s)

    return step


def mm_fp8(backend: str) -> Make:
    def make() -> Step:
        from flashinfer.gemm import mm_fp8 as op

        def of(n: int) -> torch.Tensor:
            is_blocked = backend == "trtllm_low_latency"
            shape = (HIDDEN // 128, n, 128) if is_blocked else (n, HIDDEN)
            return weight(*shape, dtype=E4M3)

        layers = [of(n) for n in WIDTHS]

        def step(m: int) -> None:
            for w in layers:
                op(zeros(m, HIDDEN, dtype=E4M3), w, ones(1), BF16, backend=backend)

        return step

    return make


def group_moe() -> Step:
    from flashinfer.grouped_mm import moe_gemm_fp8_nt_groupwise

    k = 2176
    layers = [weight(EXPERTS, n, k, dtype=E4M3) for n in (256, 512)]

    def step(m: int) -> None:
        rows = m * TOP
        borders = torch.arange(EXPERTS + 1, dtype=torch.int64) * rows // EXPERTS
        padded = up(rows + 4 * EXPERTS, 4)
        for w in layers:
            moe_gemm_fp8_nt_groupwise(
                zeros(rows, k, dtype=E4M3), w, ones(k // 128, padded),
                ones(EXPERTS, w.shape[1] // 128, k // 128), on_gpu(borders.to(I32)),
                scale_major_mode="MN",
            )  # fmt: skip

    return step


_ON_10, _ON_12 = (BLACKWELL,), (GEFORCE,)
_ON_10_12 = (BLACKWELL, GEFORCE)
DECODE, DECODED = (1, 7, 8, 100, 256), (1, 2, 3, 7, 9, 31, 64, 100, 129, 256)
CASES = (
    Case("cute_dsl_fused_moe w4a4", cute_moe(), SMALL, FEW, _ON_10),
    Case("cute_dsl_fused_moe w4a4 ep2", cute_moe(ep=(2, 1)), SMALL, FEW, _ON_10),
    Case(
        "cute_dsl_fused_moe unfused finalize",
        cute_moe(use_fused_finalize=False),
        SMALL,
        FEW,
        _ON_10,
    ),
    Case("cute_dsl_fused_moe w4a8", cute_moe("w4a8"), SMALL, FEW, _ON_10),
    Case("cute_dsl_fused_moe w4a16", cute_moe("w4a16"), SMALL, FEW, _ON_10),
    Case("CuteDslMoEWrapper", cute_wrapper, SMALL, FEW, _ON_10),
    Case("cute_dsl_fused_moe_bf16 sm90", sm90_moe, SMALL, FEW, (HOPPER,)),
    Case("mla decode trtllm-gen", mla("trtllm-gen"), DECODE, DECODED, _ON_10),
    Case("mla decode cute-dsl", mla("cute-dsl"), DECODE, DECODED, _ON_10),
    Case("mla decode auto", mla("auto"), DECODE, DECODED, _ON_10),
    Case("checkpointing_ssu", ssu, DECODE, DECODED),
    Case("mm_bf16_fp4 cudnn", bf16_fp4("cudnn"), on=_ON_10_12),
    Case("mm_bf16_fp4 cute-dsl", bf16_fp4("cute-dsl"), SMALL, FEW, _ON_10_12),
    Case("mm_bf16_fp4 native", bf16_fp4("cute-dsl-native"), SMALL, FEW, _ON_12),
    Case("mm_nvfp4_svdquant auto", svdquant("auto"), SMALL, FEW, _ON_10_12),
    Case("mm_nvfp4_svdquant cute-dsl", svdquant("cute-dsl"), SMALL, FEW, _ON_12),
    Case("prims_ts fp8_linear", prims_gemm, SMALL, FEW, _ON_10),
    Case("mm_fp8 trtllm_low_latency", mm_fp8("trtllm_low_latency"), SMALL, FEW, _ON_10),
    Case(
        "mm_fp8 cutedsl_low_latency", mm_fp8("cutedsl_low_latency"), (1, 7, 8), (1, 2, 7, 8), _ON_10
    ),
    Case("moe_gemm_fp8_nt_groupwise", group_moe, (100, 300, 1000), (8, 100, 200, 300, 1000)),
)
