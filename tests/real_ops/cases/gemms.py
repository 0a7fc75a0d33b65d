# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's GEMMs as engines call them: two layers of different width, weights as Parameters."""

from __future__ import annotations

from typing import Any

import torch

from tests.real_ops.cases.case import BLACKWELL, FEW, GEFORCE, SMALL, Case, Make, Step, up
from tests.real_ops.gpu.tensors import ones, weight, zeros

K = 256
WIDTHS = (128, 384)
E4M3, U8, BF16 = torch.float8_e4m3fn, torch.uint8, torch.bfloat16


def fp4(backend: str, *, is_8x4: bool = False, **options: Any) -> Make:
    def make() -> Step:
        from flashinfer import mm_fp4

        layers = [
            (weight(n, K // 2, dtype=U8), weight(up(n, 128), K // 16, dtype=U8)) for n in WIDTHS
        ]
        alpha = ones(1)

        def step(m: int) -> None:
            x = zeros(m, K // 2, dtype=U8)
            s = zeros(up(m, 8 if is_8x4 else 128), K // 16, dtype=U8).view(E4M3)
            for w, ws in layers:
                mm_fp4(
                    x, w.t(), s, ws.view(E4M3).t(), alpha, BF16,
                    use_8x4_sf_layout=is_8x4, backend=backend, **options,
                )  # fmt: skip

        return step

    return make


def fp4_both() -> Step:
    """VLLM's way on small batches: 8x4 up to 32 tokens, 128x4 beyond."""
    small, large = fp4("trtllm", is_8x4=True)(), fp4("trtllm")()
    return lambda m: small(m) if m <= 32 else large(m)


def bmm_fp8(backend: str, **options: Any) -> Make:
    def make() -> Step:
        from flashinfer import bmm_fp8 as op

        layers = [weight(1, n, K, dtype=E4M3) for n in WIDTHS]
        a, b = ones(1), ones(1)

        def step(m: int) -> None:
            x = zeros(1, m, K, dtype=E4M3)
            for w in layers:
                op(x, w.transpose(-2, -1), a, b, BF16, None, backend, **options)

        return step

    return make


def bf16(backend: str, op: str = "mm_bf16", *, with_bias: bool = False, **options: Any) -> Make:
    def make() -> Step:
        import flashinfer

        function = getattr(flashinfer, op, None) or getattr(flashinfer.gemm, op)
        batch = (1,) * op.startswith("bmm")
        layers = [(weight(*batch, n, K), weight(n)) for n in WIDTHS]

        def step(m: int) -> None:
            x = zeros(*batch, m, K)
            for w, bias in layers:
                more = {"bias": bias} if with_bias else {}
                function(x, w.transpose(-2, -1), backend=backend, **options, **more)

        return step

    return make


def _mxfp8_layers(*batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (weight(*batch, n, K, dtype=E4M3), weight(up(n, 128) * up(K // 32, 4), dtype=U8))
        for n in WIDTHS
    ]


def mxfp8(backend: str, **options: Any) -> Make:
    def make() -> Step:
        from flashinfer import mm_mxfp8

        layers = _mxfp8_layers()

        def step(m: int) -> None:
            x, s = zeros(m, K, dtype=E4M3), zeros(up(m, 128) * up(K // 32, 4), dtype=U8)
            for w, ws in layers:
                mm_mxfp8(x, w.t(), s, ws, out_dtype=BF16, backend=backend, **options)

        return step

    return make


def bmm_mxfp8(backend: str) -> Make:
    def make() -> Step:
        from flashinfer import bmm_mxfp8 as op

        layers = _mxfp8_layers(1)

        def step(m: int) -> None:
            x, s = zeros(1, m, K, dtype=E4M3), zeros(up(m, 128) * up(K // 32, 4), dtype=U8)
            for w, ws in layers:
                op(x, w.transpose(-2, -1), s, ws, BF16, backend=backend)

        return step

    return make


def tgv() -> Step:
    from flashinfer.gemm import tgv_gemm_sm100

    layers = [(weight(n, K), weight(n)) for n in WIDTHS]

    def step(m: int) -> None:
        x = zeros(m, K)
        for w, bias in layers:
            tgv_gemm_sm100(x, w.t(), bias)

    return step


_ON_10 = (BLACKWELL,)
_ON_10_12 = (BLACKWELL, GEFORCE)
_CUBLASLT_KEYS = ("0.7.2.post1",)  # cuBLASLt's runner has the raw batch in its key until 0.7.4
DECODE = (1, 2, 3, 5, 8)
CASES = (
    Case("mm_fp4 trtllm 128x4", fp4("trtllm"), on=_ON_10),
    Case("mm_fp4 trtllm 8x4", fp4("trtllm", is_8x4=True), on=_ON_10),
    Case("mm_fp4 trtllm both layouts", fp4_both, on=_ON_10),
    Case("mm_fp4 cutlass", fp4("cutlass"), on=_ON_10_12),
    Case("mm_fp4 cudnn", fp4("cudnn"), on=_ON_10_12),
    Case("mm_fp4 cute-dsl", fp4("cute-dsl"), SMALL, FEW, _ON_10_12),
    Case(
        "mm_fp4 auto", fp4("auto"), SMALL, FEW, (BLACKWELL,),
        apart="up to 8 rows FlashInfer offers a low-latency runner besides, under the same keys",
    ),
    Case("mm_fp4 auto, one forward at 512", fp4("auto"), (512,), FEW, _ON_10_12),
    Case("mm_fp4 low latency", fp4("cutedsl_low_latency"), (1, 7, 8), DECODE, _ON_10),
    Case("bmm_fp8 cublas", bmm_fp8("cublas")),
    Case("bmm_fp8 cudnn", bmm_fp8("cudnn"), on=_ON_10_12),
    Case("bmm_fp8 cutlass", bmm_fp8("cutlass"), on=_ON_10_12),
    Case("bmm_fp8 auto", bmm_fp8("auto")),
    Case("mm_bf16 cutlass", bf16("cutlass"), on=_ON_10),
    Case("mm_bf16 cudnn", bf16("cudnn", with_bias=True)),
    Case("mm_bf16 cublaslt", bf16("cublaslt")),
    Case("mm_bf16 tgv", bf16("tgv", with_bias=True, pdl=True), on=_ON_10),
    Case("mm_bf16 auto", bf16("auto")),
    Case("mm_bf16 auto, one forward at 8192", bf16("auto"), (8192,)),
    Case("mm_bf16 cute-dsl", bf16("cute-dsl", pdl=True), on=_ON_10, releases=_CUBLASLT_KEYS),
    Case(
        "mm_bf16 cute-dsl decode", bf16("cute-dsl", pdl=True), (1, 7, 8, 16), (1, 2, 3, 8, 9, 16),
        _ON_10,
    ),
    Case(
        "mm_bf16 cute-dsl, one forward at 8192", bf16("cute-dsl", pdl=True), (8192,), on=_ON_10,
        releases=_CUBLASLT_KEYS,
    ),
    Case("bmm_bf16 auto", bf16("auto", "bmm_bf16")),
    Case("mm_mxfp8 cutlass", mxfp8("cutlass"), on=_ON_10_12),
    Case("mm_mxfp8 cudnn", mxfp8("cudnn"), on=_ON_10_12),
    Case("mm_mxfp8 trtllm", mxfp8("trtllm", use_8x4_sf_layout=False), on=_ON_10),
    Case("mm_mxfp8 cute-dsl", mxfp8("cute-dsl"), SMALL, FEW, _ON_10),
    Case("mm_mxfp8 cute-dsl, one forward at 512", mxfp8("cute-dsl"), (512,), FEW, _ON_10),
    Case("mm_mxfp8 low latency", mxfp8("cutedsl_low_latency"), (1, 7, 8), DECODE, _ON_10),
    Case("mm_mxfp8 auto", mxfp8("auto"), SMALL, FEW, _ON_10_12),
    Case("bmm_mxfp8 cudnn", bmm_mxfp8("cudnn"), on=_ON_10_12),
    Case("bmm_mxfp8 auto", bmm_mxfp8("auto"), on=_ON_10),  # on SM120 CUTLASS, untuned
    Case("tgv_gemm_sm100", tgv, on=_ON_10),
)  # fmt: skip
