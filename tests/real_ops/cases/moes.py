# SPDX-License-Identifier: Apache-2.0
"""The fused MoEs of CUTLASS and TRT-LLM as engines call them.

Two layers of different width, eight experts, two of them per token.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.real_ops.cases.case import Case, Make, Step
from tests.real_ops.gpu.tensors import on_gpu, ones, weight, zeros

EXPERTS, TOP, HIDDEN = 8, 2, 256
WIDTHS = (128, 256)
E4M3, U8, BF16 = torch.float8_e4m3fn, torch.uint8, torch.bfloat16
F32, I32 = torch.float32, torch.int32


def routing(m: int) -> torch.Tensor:
    """Return a routing table that moves with the batch, as a real one does."""
    return on_gpu((torch.arange(m * TOP, dtype=I32).view(m, TOP) * 3 + m) % EXPERTS)


def packed(m: int) -> torch.Tensor:
    return on_gpu((routing(m).as_subclass(torch.Tensor) << 16) | 0x3F80)


# -- CUTLASS -------------------------------------------------------------------------------------


def cutlass(
    kind: str = "bf16", ranks: dict[str, int] | None = None, *,
    hidden: int = HIDDEN, widths: tuple[int, ...] = WIDTHS, **options: Any,
) -> Make:  # fmt: skip
    """CUTLASS' MoE. ``hidden``, ``widths``: the model's, and of each layer's experts."""
    where = {"ep_size": 1, "ep_rank": 0, "tp_size": 1, "tp_rank": 0, **(ranks or {})}

    def make() -> Step:
        from flashinfer.fused_moe import cutlass_fused_moe

        local = EXPERTS // where["ep_size"]
        layers = [_cutlass_layer(kind, local, width, hidden) for width in widths]

        def step(m: int) -> None:
            for w1, w2, scales in layers:
                if kind == "nvfp4":  # as both engines do at every call
                    w1, w2 = w1.view(torch.long), w2.view(torch.long)  # noqa: PLW2901  # as said
                cutlass_fused_moe(
                    zeros(m, hidden), routing(m), ones(m, TOP), w1, w2, BF16, scales,
                    **where, **options,
                )  # fmt: skip

        return step

    return make


def _cutlass_layer(kind: str, local: int, width: int, hidden: int) -> Any:
    if kind == "bf16":
        return weight(local, 2 * width, hidden), weight(local, hidden, width), []
    w1 = weight(local, 2 * width, hidden // 2, dtype=U8)
    w2 = weight(local, hidden, width // 2, dtype=U8)
    if kind == "w4":
        return w1, w2, [ones(local, 1) for _ in range(8)]
    s1 = weight(local, 2 * width, hidden // 16, dtype=U8).view(I32)
    s2 = weight(local, hidden, width // 16, dtype=U8).view(I32)
    return w1, w2, [ones(1), s1, ones(local), ones(1), s2, ones(local)]


# -- TRT-LLM -------------------------------------------------------------------------------------


def trtllm(
    name: str, routed: str = "", ep: tuple[int, int] = (1, 0), like: str = "", **options: Any
) -> Make:
    """One of the TRT-LLM MoEs; ``routed``: logits without it, else "packed" or "unpacked".

    ``like``: another one, whose arguments it takes.
    """

    def make() -> Step:
        from flashinfer import fused_moe

        local = EXPERTS // ep[0]
        function, kind = getattr(fused_moe, name), like or name
        common = {
            "num_experts": EXPERTS, "top_k": TOP, "n_group": None, "topk_group": None,
            "local_expert_offset": local * ep[1], "local_num_experts": local,
            "routed_scaling_factor": None, "routing_method_type": 1, **options,
        }  # fmt: skip
        layers = [{"intermediate_size": w, **_weights(kind, w, local)} for w in WIDTHS]

        def step(m: int, **more: Any) -> None:
            for layer in layers:
                given = {**common, **layer, **_activations(kind, m), **_routing(kind, routed, m)}
                function(**given, **more)

        return step

    return make


def _routing(name: str, routed: str, m: int) -> dict[str, Any]:
    if not routed:
        logits = zeros(m, EXPERTS, dtype=F32 if "fp8_block" in name else BF16)
        return {"routing_logits": logits, "routing_bias": None}
    pairs = (routing(m), ones(m, TOP, dtype=BF16))
    bias = {} if "bf16" in name or "mxint4" in name else {"routing_bias": None}
    return {"topk_ids": packed(m) if routed == "packed" else pairs, **bias}


def _weights(name: str, width: int, local: int) -> dict[str, Any]:
    if "bf16" in name:
        return _bf16_weights(width, local)
    if "mxint4" in name:
        return _mxint4_weights(width, local)
    return _fp4_weights(width, local) if "fp4" in name else _fp8_weights(name, width, local)


def _bf16_weights(width: int, local: int) -> dict[str, Any]:
    """BlockMajorK: [experts, K / block, N, block]."""
    return {
        "gemm1_weights": weight(local, HIDDEN // 64, 2 * width, 64),
        "gemm2_weights": weight(local, width // 64, HIDDEN, 64),
    }


def _fp8_weights(name: str, width: int, local: int) -> dict[str, Any]:
    found = {
        "gemm1_weights": weight(local, 2 * width, HIDDEN, dtype=E4M3),
        "gemm2_weights": weight(local, HIDDEN, width, dtype=E4M3),
    }
    if "per_channel" in name:
        found["gemm1_per_channel_weight_scale"] = ones(local, 2 * width)
        found["gemm2_per_channel_weight_scale"] = ones(local, HIDDEN)
        scales = ("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar")
        return {**found, **{s: ones(local) for s in scales}, "use_routing_scales_on_input": False}
    if "per_tensor" in name:
        scales = ("output1_scales_scalar", "output1_scales_gate_scalar", "output2_scales_scalar")
        return {**found, **{s: ones(local) for s in scales}, "use_routing_scales_on_input": False}
    s1 = weight(local, 2 * width // 128, HIDDEN // 128, dtype=F32)
    s2 = weight(local, HIDDEN // 128, width // 128, dtype=F32)
    return {**found, "gemm1_weights_scale": s1, "gemm2_weights_scale": s2}


def _fp4_weights(width: int, local: int) -> dict[str, Any]:
    nothing = ("gemm1_bias", "gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "gemm2_bias")
    scales = ("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar")
    return {
        "gemm1_weights": weight(local, 2 * width, HIDDEN // 2, dtype=U8),
        "gemm1_weights_scale": weight(local, 2 * width, HIDDEN // 16, dtype=U8).view(E4M3),
        "gemm2_weights": weight(local, HIDDEN, width // 2, dtype=U8),
        "gemm2_weights_scale": weight(local, HIDDEN, width // 16, dtype=U8).view(E4M3),
        **dict.fromkeys(nothing),
        **{scale: ones(local) for scale in scales},
    }


#: The parameters of which only `.data` is passed on, as a model's layers hold them.
_LAYERS: list[Any] = []


def _mxint4_weights(width: int, local: int) -> dict[str, Any]:
    """VLLM passes `.data`: plain tensors, no Parameters."""
    held = {
        "gemm1_weights": weight(local, 2 * width, HIDDEN // 2, dtype=U8),
        "gemm1_weights_scale": weight(local, 2 * width, HIDDEN // 32),
        "gemm2_weights": weight(local, HIDDEN, width // 2, dtype=U8),
        "gemm2_weights_scale": weight(local, HIDDEN, width // 32),
    }
    _LAYERS.append(held)
    passed = {name: parameter.data for name, parameter in held.items()}
    return {**passed, **dict.fromkeys(("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit"))}


def _activations(name: str, m: int) -> dict[str, Any]:
    if "bf16" in name or "mxint4" in name:
        return {"hidden_states": zeros(m, HIDDEN)}
    if "per_tensor" in name:
        return {"hidden_states": zeros(m, HIDDEN, dtype=E4M3)}
    if "per_channel" in name:
        return {"hidden_states": zeros(m, HIDDEN, dtype=E4M3), "hidden_states_scale": ones(m, 1)}
    if "fp8_block" in name:
        scale = ones(HIDDEN // 128, m)
        return {"hidden_states": zeros(m, HIDDEN, dtype=E4M3), "hidden_states_scale": scale}
    scale = zeros(m, HIDDEN // 16, dtype=U8).view(E4M3)
    return {"hidden_states": zeros(m, HIDDEN // 2, dtype=U8), "hidden_states_scale": scale}


def fp4_with_and_without_finalize() -> Step:
    """VLLM's deferred finalisation: few tokens without, many with."""
    step: Any = trtllm("trtllm_fp4_block_scale_moe")()
    return lambda m: step(m, do_finalize=m > 256)


def fp4_two_offsets() -> Step:
    """Two calls of one op in one model that differ in a keyword only: local_expert_offset."""
    first = trtllm("trtllm_fp4_block_scale_moe", ep=(2, 0))()
    second = trtllm("trtllm_fp4_block_scale_moe", ep=(2, 1))()

    def step(m: int) -> None:
        first(m)
        second(m)

    return step


_TRTLLM = (
    ("trtllm_bf16_moe", ""),
    ("trtllm_bf16_routed_moe", "packed"),
    ("trtllm_fp8_per_tensor_scale_moe", ""),
    ("trtllm_fp8_per_tensor_scale_routed_moe", "packed"),
    ("trtllm_fp8_per_channel_scale_moe", ""),
    ("trtllm_fp8_block_scale_moe", ""),
    ("trtllm_fp8_block_scale_routed_moe", "packed"),
    ("trtllm_fp4_block_scale_moe", ""),
    ("trtllm_fp4_block_scale_routed_moe", "packed"),
    ("trtllm_fp4_block_scale_routed_moe", "unpacked"),
    ("trtllm_mxint4_block_scale_moe", ""),
    ("trtllm_mxint4_block_scale_routed_moe", "packed"),
)
CASES = (
    Case("cutlass_fused_moe bf16", cutlass()),
    Case("cutlass_fused_moe bf16 tp2", cutlass(ranks={"tp_size": 2, "tp_rank": 1})),
    Case("cutlass_fused_moe bf16 ep2", cutlass(ranks={"ep_size": 2, "ep_rank": 1})),
    Case("cutlass_fused_moe tune_max 512", cutlass(tune_max_num_tokens=512)),
    Case("cutlass_fused_moe nvfp4", cutlass("nvfp4")),
    Case("cutlass_fused_moe w4 group", cutlass("w4", use_w4_group_scaling=True)),
    *(Case(f"{name} {routed}".strip(), trtllm(name, routed)) for name, routed in _TRTLLM),
    Case("trtllm_fp4_block_scale_moe two offsets", fp4_two_offsets),
    Case("trtllm_fp4_block_scale_moe both finalize", fp4_with_and_without_finalize),
)
