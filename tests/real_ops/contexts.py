# SPDX-License-Identifier: Apache-2.0
"""The contexts in which a forward is tuned: plain, and as the two engines open theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from flashinfer import autotune, autotune_v2
from flashinfer.fused_moe.utils import get_hybrid_num_tokens_buckets


def plain() -> Any:
    return autotune(True)


@contextlib.contextmanager
def vllm(largest: int = 8192) -> Iterator[None]:
    """As vLLM 0.33: in an outer context one with hybrid buckets that rounds up."""
    buckets = get_hybrid_num_tokens_buckets(largest)
    with torch.inference_mode(), autotune(True), autotune(tuning_buckets=buckets, round_up=True):
        yield


@contextlib.contextmanager
def sglang() -> Iterator[None]:
    """As SGLang 0.5.23: v1 and, inside, a memory-only v2, in which the default races."""
    with autotune(True), autotune_v2(mode="tune", persistent_cache=False):
        yield


CONTEXTS: dict[str, Callable[[], Any]] = {"plain": plain, "vllm": vllm, "sglang": sglang}
