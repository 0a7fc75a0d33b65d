# SPDX-License-Identifier: Apache-2.0
"""The identity of a `VllmConfig`: named factors, so that `warmup-plugin show` can explain a miss.

Owns which settings of vLLM decide what is tuned. Left out on purpose, since they change no kernel:
paths, ports, time-outs, seeds, names, log levels, memory fractions, load formats. The model is its
configuration, wherever it lies. Refuses nothing: a value of a kind unknown here counts by its text.
"""

from __future__ import annotations

from typing import Any

from warmup_plugin.engines.gate import plain, sections
from warmup_plugin.engines.vllm import compat
from warmup_plugin.identity import Identity

#: Factors by section of the config; each name is an attribute there, or one of a release to come.
_BACKENDS = {
    "kernel_config": ("moe_backend", "linear_backend", "linear_backend_per_quant", "monokernel"),
    "attention_config": (
        "backend", "backend_per_kind", "mla_prefill_backend", "use_trtllm_attention",
        "disable_flashinfer_q_quantization", "use_prefill_query_quantization",
        "trtllm_ragged_backend", "indexer_kv_dtype", "sparse_mla_force_mqa", "hisparse_config",
    ),
    "parallel_config": (
        "all2all_backend", "enable_dbo", "enable_hc_sp", "expert_placement_strategy",
    ),
}  # fmt: skip
_EXTRA = {
    "scheduler_config": ("max_num_batched_tokens", "max_num_seqs"),
    "cache_config": ("block_size", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "use_replayssm"),
    "model_config": ("max_model_len", "enforce_eager", "runner", "convert", "model_impl"),
    "compilation_config": ("mode", "custom_ops", "pass_config"),
    "lora_config": ("max_lora_rank", "max_loras", "fully_sharded_loras", "lora_dtype"),
    "speculative_config": (
        "method", "num_speculative_tokens", "draft_tensor_parallel_size", "quantization",
        "moe_backend", "attention_backend", "kv_cache_dtype", "parallel_drafting",
    ),
}  # fmt: skip


def identity_of(config: Any) -> Identity:
    """Return the identity; equal on all ranks of a job and at every start of it."""
    model, parallel = config.model_config, config.parallel_config
    extra = sections(config, _EXTRA)
    draft = getattr(config.speculative_config, "draft_model_config", None)
    if draft is not None:
        extra["draft_model"] = _hf_config(draft)
    if parallel.enable_eplb:
        extra["num_redundant_experts"] = parallel.eplb_config.num_redundant_experts
    sharded = parallel.tensor_parallel_size * parallel.data_parallel_size
    return Identity.of(
        model=_hf_config(model),
        dtype=str(model.dtype),
        quantization=plain([model.quantization, model.quantization_config]),
        kv_cache_dtype=str(config.cache_config.cache_dtype),
        backends=sections(config, _BACKENDS),
        tp=parallel.tensor_parallel_size,
        pp=parallel.pipeline_parallel_size,
        dp=parallel.data_parallel_size,
        ep=sharded if parallel.enable_expert_parallel else 1,
        cp=parallel.prefill_context_parallel_size * parallel.decode_context_parallel_size,
        round_up=True,
        skip_ops=compat.skip_ops(),
        extra=extra,
    )


def _hf_config(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = plain(model.hf_config.to_dict())
    return found
