# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's ops as engines call them, on weights of a real model's size.

Owns which are tried on which GPU. The capability is a first choice only: whether an op can be
called is found out by calling it, and what cannot is told with FlashInfer's own reason. Outputs are
not looked at, so weights and scales hold plain values that are neither infinite nor no number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Makes the inputs of a batch; what is returned runs the op on them once.
Prepare = Callable[[int], Callable[[], object]]

_K = 4096
_WIDTHS = (4096, 14336)
_EXPERTS, _TOP, _INTERMEDIATE = 8, 2, 3584
_BF16, _E4M3 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True)
class Op:
    """One op, tried on compute capabilities ``since`` to ``until``. ``make`` builds its weights."""

    name: str
    make: Callable[[], Prepare]
    since: tuple[int, int] = (8, 0)
    until: tuple[int, int] = (99, 0)


def for_capability(ops: Sequence[Op], capability: tuple[int, int]) -> list[Op]:
    """Return the ops that are tried on a GPU of this compute capability."""
    return [op for op in ops if op.since <= capability <= op.until]


def _normal(*size: int, dtype: torch.dtype = _BF16) -> torch.Tensor:
    return torch.randn(size, device="cuda", dtype=_BF16).mul_(0.05).to(dtype)


def _as_weight(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


def _weight(*size: int, dtype: torch.dtype = _BF16) -> torch.nn.Parameter:
    return _as_weight(_normal(*size, dtype=dtype))


def _ones(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(size, device="cuda").to(dtype)


def _packed(*size: int) -> torch.Tensor:
    """Return bytes of two FP4 numbers each, any of which is a finite one."""
    return torch.randint(0, 256, size, device="cuda", dtype=torch.uint8)


def _up(number: int, to: int) -> int:
    return -(-number // to) * to


def _mm_bf16(backend: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        import flashinfer

        layers = [_weight(n, _K) for n in _WIDTHS]

        def prepare(batch: int) -> Callable[[], object]:
            x = _normal(batch, _K)
            return lambda: [flashinfer.mm_bf16(x, w.t(), backend=backend) for w in layers]

        return prepare

    return make


def _bmm_fp8(backend: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        import flashinfer

        layers, scale = [_weight(1, n, _K, dtype=_E4M3) for n in _WIDTHS], _ones(1)

        def run(x: torch.Tensor, w: torch.Tensor) -> object:
            weight = w.transpose(-2, -1)
            return flashinfer.bmm_fp8(x, weight, scale, scale, _BF16, None, backend)

        def prepare(batch: int) -> Callable[[], object]:
            x = _normal(1, batch, _K, dtype=_E4M3)
            return lambda: [run(x, w) for w in layers]

        return prepare

    return make


def _mm_fp4(backend: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        import flashinfer

        # Scales of 128 x 4 blocks, one for 16 numbers.
        def scales(rows: int) -> torch.Tensor:
            return _ones(_up(rows, 128), _K // 16, dtype=_E4M3)

        layers = [(_as_weight(_packed(n, _K // 2)), _as_weight(scales(n))) for n in _WIDTHS]
        alpha = _ones(1)

        def run(x: torch.Tensor, s: torch.Tensor, w: torch.Tensor, ws: torch.Tensor) -> object:
            return flashinfer.mm_fp4(x, w.t(), s, ws.t(), alpha, _BF16, backend=backend)

        def prepare(batch: int) -> Callable[[], object]:
            x, s = _packed(batch, _K // 2), scales(batch)
            return lambda: [run(x, s, w, ws) for w, ws in layers]

        return prepare

    return make


def _mm_mxfp8(backend: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        import flashinfer

        def scales(rows: int) -> torch.Tensor:  # powers of two as bytes: 127 is 1.0
            size = _up(rows, 128) * _up(_K // 32, 4)
            return torch.full((size,), 127, device="cuda", dtype=torch.uint8)

        layers = [(_weight(n, _K, dtype=_E4M3), _as_weight(scales(n))) for n in _WIDTHS]

        def run(x: torch.Tensor, s: torch.Tensor, w: torch.Tensor, ws: torch.Tensor) -> object:
            return flashinfer.mm_mxfp8(x, w.t(), s, ws, out_dtype=_BF16, backend=backend)

        def prepare(batch: int) -> Callable[[], object]:
            x, s = _normal(batch, _K, dtype=_E4M3), scales(batch)
            return lambda: [run(x, s, w, ws) for w, ws in layers]

        return prepare

    return make


def _routing(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return experts and their shares, spread as evenly as they go."""
    numbers = torch.arange(batch * _TOP, device="cuda", dtype=torch.int32)
    return (numbers % _EXPERTS).view(batch, _TOP), _ones(batch, _TOP) / _TOP


def _cutlass_moe(kind: str) -> Callable[[], Prepare]:
    def make() -> Prepare:
        from flashinfer.fused_moe import cutlass_fused_moe

        dtype = _BF16 if kind == "bf16" else _E4M3
        up = _weight(_EXPERTS, 2 * _INTERMEDIATE, _K, dtype=dtype)
        down = _weight(_EXPERTS, _K, _INTERMEDIATE, dtype=dtype)
        scales, options = list[torch.Tensor](), dict[str, Any]()
        if kind == "fp8":  # dequantise, quantise between the two, dequantise, dequantise the input
            scales = [_ones(_EXPERTS), _ones(1)[0], _ones(_EXPERTS), _ones(1)[0]]
        if kind == "fp8 blocks":
            scales = [_ones(_EXPERTS, n // 128, k // 128)
                      for n, k in ((2 * _INTERMEDIATE, _K), (_K, _INTERMEDIATE))]  # fmt: skip
            options = {"use_deepseek_fp8_block_scale": True}

        def prepare(batch: int) -> Callable[[], object]:
            x = _normal(batch, _K, dtype=_E4M3 if kind == "fp8" else _BF16)
            given = (x, *_routing(batch), up, down, _BF16, scales)
            return lambda: cutlass_fused_moe(*given, **options)

        return prepare

    return make


def _cute_dsl_moe_sm90() -> Prepare:
    from flashinfer.fused_moe.cute_dsl.sm90_fused_moe import cute_dsl_fused_moe_bf16

    up, down = _weight(_EXPERTS, 2 * _INTERMEDIATE, _K), _weight(_EXPERTS, _K, _INTERMEDIATE)

    def prepare(batch: int) -> Callable[[], object]:
        given = (_normal(batch, _K), *_routing(batch), up, down, _EXPERTS, _TOP)
        return lambda: cute_dsl_fused_moe_bf16(*given)

    return prepare


#: In the order in which they are tried: what compiles little first.
OPS = (
    Op("bmm_fp8 cublas", _bmm_fp8("cublas"), (8, 9)),
    Op("mm_bf16 cublaslt", _mm_bf16("cublaslt")),
    Op("mm_bf16 cudnn", _mm_bf16("cudnn")),
    Op("bmm_fp8 cudnn", _bmm_fp8("cudnn"), (8, 9)),
    Op("mm_bf16 auto", _mm_bf16("auto")),
    Op("mm_bf16 tinygemm", _mm_bf16("tinygemm"), (9, 0)),
    Op("mm_bf16 cutlass", _mm_bf16("cutlass"), (10, 0), (10, 9)),
    Op("bmm_fp8 cutlass", _bmm_fp8("cutlass"), (10, 0)),
    Op("mm_fp4 cutlass", _mm_fp4("cutlass"), (10, 0)),
    Op("mm_fp4 cudnn", _mm_fp4("cudnn"), (10, 0)),
    Op("mm_fp4 auto", _mm_fp4("auto"), (10, 0)),
    Op("mm_mxfp8 auto", _mm_mxfp8("auto"), (10, 0)),
    Op("cutlass_fused_moe bf16", _cutlass_moe("bf16"), (9, 0)),
    Op("cutlass_fused_moe fp8", _cutlass_moe("fp8"), (9, 0)),
    Op("cutlass_fused_moe fp8 blocks", _cutlass_moe("fp8 blocks"), (9, 0), (9, 0)),
    Op("cute_dsl_fused_moe_bf16", _cute_dsl_moe_sm90, (9, 0), (9, 0)),
)
