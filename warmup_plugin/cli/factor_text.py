# SPDX-License-Identifier: Apache-2.0
"""Why two starts have not one table: config factors, in words. Pure.

Owns the words for each factor. Refuses to guess: a factor without words is named by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from warmup_plugin.identity import ABSENT, Difference, Identity, diff

#: By path, the most specific first.
WORDS: Final[Mapping[str, str]] = {
    "model": "the model's configuration is another one",
    "role": "target and draft model have tables of their own",
    "dtype": "weights and activations have another type",
    "quantization": "the weights are quantised otherwise",
    "kv_cache_dtype": "the KV cache has another type",
    "backends": "another kernel backend calls other ops",
    "tp": "tensor parallelism splits the weights into other shapes",
    "pp": "pipeline parallelism gives ranks other layers",
    "dp": "data parallelism changes the sizes of batches and of expert groups",
    "ep": "expert parallelism gives ranks other experts",
    "cp": "context parallelism splits sequences otherwise",
    "buckets": "other batch sizes are tuned",
    "round_up": "sizes between two buckets are mapped to the other one",
    "skip_ops": "other ops are left out of tuning",
    "measurement": "tactics are measured otherwise, so times do not compare",
    "race_default": "FlashInfer's default tactic races, or does not any more",
    "stamp.flashinfer_version": "another FlashInfer has other tactics under the same numbers",
    "stamp.cuda_version": "another CUDA compiles other kernels",
    "stamp.cublas_version": "another cuBLAS has other algorithms",
    "stamp.cudnn_version": "another cuDNN has other plans",
    "stamp.cudnn_frontend_version": "another cuDNN frontend numbers its plans otherwise",
    "stamp.cutlass_dsl_version": "another CUTLASS DSL compiles other kernels",
    "stamp.gpu": "the GPU is another one",
    "stamp": "a part of FlashInfer's environment is another one",
    "gpu.name": "the GPU is another one",
    "gpu.sm_count": "the GPU has another number of SMs",
    "gpu.capability": "the GPU is of another architecture",
    "gpu": "the GPU is another one",
    "switches.FLASHINFER_TACTICS_BLOCKLIST": "other tactics are on the blocklist",
    "switches": "a FlashInfer switch that changes the candidates is set otherwise",
    "extra": "a setting of the engine that decides what is tuned",
}
_MOST = 60


@dataclass(frozen=True)
class Reason:
    """One factor that differs: its path, its two values, what it means."""

    factor: str
    a: Any
    b: Any
    words: str

    def values(self) -> str:
        """Return both values, short."""
        return f"{_short(self.a)} -> {_short(self.b)}"


def reasons(a: Identity, b: Identity) -> list[Reason]:
    """Return what keeps two identities apart, in the order of the factors."""
    return [Reason(d.path, d.a, d.b, words_for(d)) for d in diff(a, b)]


def words_for(difference: Difference) -> str:
    """Return what a factor means, by the longest path that has words."""
    parts = difference.path.split(".")
    for end in range(len(parts), 0, -1):
        if found := WORDS.get(".".join(parts[:end])):
            return found
    return "not known to this version"


def _short(value: Any) -> str:
    if value == ABSENT:
        return "not there"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
