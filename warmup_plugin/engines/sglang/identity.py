# SPDX-License-Identifier: Apache-2.0
"""The identity of one of SGLang's warm-ups: named factors of what SGLang has resolved.

Owns which settings of SGLang decide what is tuned; SGLang's own key has nine of them. Left out on
purpose, since they change no kernel: paths, ports, time-outs, seeds, names, log levels, memory
fractions, the number of replicas. The model is its configuration, wherever it lies. Refuses
nothing: a value of a kind unknown here counts by its text.
"""

from __future__ import annotations

from typing import Any

from warmup_plugin.engines.gate import plain, sections
from warmup_plugin.engines.sglang import compat
from warmup_plugin.identity import Identity

#: Factors by SGLang's namespace; each name is a leaf there, or one of another release.
#: Settings that only older releases have are judged and left out: speculative_skip_dp_mlp_sync says
#: which ranks wait for each other in a draft's layers (to 0.5.22), cuda_graph_tc_compiler by what
#: the rest of a graph is compiled (to 0.5.21), keep_mm_feature_on_device where inputs are kept,
#: elastic_ep_rejoin how ranks come back, where we do nothing (to 0.5.20). Flags on fused shared
#: experts (0.5.22) are what SGLang makes of a setting that stands here.
_BACKENDS = {
    "exec.kernel": (
        "attention_backend", "decode_attention_backend", "prefill_attention_backend",
        "fp8_gemm_runner_backend", "fp4_gemm_runner_backend", "bf16_gemm_backend",
        "dsa_prefill_backend", "dsa_decode_backend", "dsa_paged_mqa_logits_backend",
        "dsv4_prefill_backend", "dsv4_attn_backend", "flashinfer_mla_disable_ragged",
        "enable_fused_qk_norm_rope", "prefill_kv_cache_dequant_dtype",
        "enable_nvidia_megakernel",
    ),
    "exec.moe": (
        "moe_runner_backend", "moe_a2a_backend", "deepep_mode", "deepep_v2_mode",
        "deepep_dispatcher_output_dtype", "flashinfer_mxfp4_moe_precision",
        "flashinfer_a2a_dispatch_type", "enable_w4a4_mxfp4_megamoe",
        "disable_flashinfer_cutlass_moe_fp4_allgather", "disable_shared_experts_fusion",
        "enforce_shared_experts_fusion", "ep_dispatch_algorithm", "enable_fused_moe_sum_all_reduce",
    ),
    "exec.comm": (
        "enable_flashinfer_allreduce_fusion", "flashinfer_allreduce_fusion_backend",
        "enable_symm_mem", "boundary_reduction",
    ),
    "exec.mamba": (
        "mamba_backend", "linear_attn_backend", "linear_attn_decode_backend",
        "linear_attn_prefill_backend",
    ),
}  # fmt: skip
_EXTRA = {
    "model": ("revision", "context_length", "is_embedding", "json_model_override_args"),
    "schedule": (
        "max_running_requests", "chunked_prefill_size", "max_prefill_tokens", "page_size",
        "enable_mixed_chunk", "enable_dynamic_chunking",
    ),
    "parallel": (
        "moe_dp_size", "moe_dense_tp_size", "dwdp_size", "enable_dp_lm_head",
        "enable_shared_experts_attn_tp", "shared_experts_tp_size", "enable_dense_mlp_attn_tp",
        "enable_layernorm_sp", "enable_prefill_cp", "cp_strategy", "dcp_comm_backend",
        "enable_attn_tp_input_scattered",
        # Context parallelism as 0.5.19 has it; its successors stand above.
        "enable_prefill_context_parallel", "prefill_cp_mode",
        "enable_dsa_prefill_context_parallel", "dsa_prefill_cp_mode",
    ),
    "exec.moe": ("ep_num_redundant_experts", "enable_eplb"),
    "exec.graph": (
        "cuda_graph_bs_decode", "cuda_graph_max_bs_decode", "disable_cuda_graph",
        "disable_decode_cuda_graph",
    ),
    "exec.features": ("enable_fp32_lm_head", "enable_tf32_matmul"),
    "exec.overlap": ("enable_two_batch_overlap", "enable_single_batch_overlap"),
    "spec": (
        "speculative_algorithm", "speculative_num_steps", "speculative_eagle_topk",
        "speculative_num_draft_tokens", "speculative_dflash_block_size",
        "speculative_dspark_block_size", "speculative_draft_model_revision",
        "speculative_draft_model_quantization", "speculative_draft_attention_backend",
        "speculative_draft_kv_cache_dtype", "speculative_moe_runner_backend",
        "speculative_moe_a2a_backend", "enable_multi_layer_eagle",
    ),
    "lora": ("enable_lora", "max_lora_rank", "max_loras_per_batch", "lora_backend"),
    "disagg": ("disaggregation_mode",),
}  # fmt: skip


def identity_of(model_runner: Any, *, phase: int = 0, races_default: bool = True) -> Identity:
    """Return the identity; equal on all ranks of a job and at every start of it.

    ``phase`` counts the warm-ups of one model in a start: decode, prefill, the draft's steps.
    ``races_default``: whether SGLang's context has FlashInfer's default race.
    """
    settings, config = compat.namespaces(), model_runner.model_config
    width = compat.of_parallel
    return Identity.of(
        model=plain(config.hf_config.to_dict()),
        role="draft" if model_runner.is_draft_worker else "target",
        dtype=str(model_runner.dtype),
        quantization=plain([config.quantization, settings.model.quantization]),
        kv_cache_dtype=str(settings.model.kv_cache_dtype),
        backends=sections(settings, _BACKENDS),
        tp=width("tp_size", 1),
        pp=width("pp_size", 1),
        dp=width("attn_dp_size", 1),
        ep=width("moe_ep_size", 1),
        cp=width("attn_cp_size", 1) * width("dcp_size", 1),
        skip_ops=compat.skip_ops(model_runner),
        race_default=races_default,
        extra={**sections(settings, _EXTRA), "phase": phase},
    )
