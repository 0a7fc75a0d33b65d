# SPDX-License-Identifier: Apache-2.0
"""What one run of the embedded engine is given and what each rank gives back.

Owns the sizes, the rule that places ranks in the layout, what a rank is told and what it returns:
all of it crosses process boundaries, so nothing here imports torch. Refuses sizes that do not
divide: `ValueError` naming value and rule.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmup_plugin.topology import RankInfo


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The model and its layout over ``world_size = tp * pp * dp`` ranks.

    ``ep`` splits the experts over ``ep`` neighbours among the ``tp * dp`` ranks of a pipeline
    stage, so it adds no ranks: ``EngineConfig(dp=2, ep=2)`` and ``EngineConfig(tp=2, ep=2)`` are
    two ranks each. With ``ep=1`` experts are split like a dense layer, over ``tp``.

    ``tokens``: batch of the warm-up forward; 100 is no tuning bucket. ``timing``: the name of a
    clock (`host_clock.TIMINGS`) or a reference to one (`resolve`). ``all_reduce_dir``: where the
    collective op keeps its own file; None for nowhere.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    hidden: int = 64
    ffn: int = 128
    heads: int = 4
    layers: int = 4
    experts: int = 4
    top_k: int = 2
    vocab: int = 128
    tokens: int = 100
    seed: int = 0
    timing: str = "host"
    group_timeout_s: float = 60.0
    all_reduce_dir: str | None = None

    def __post_init__(self) -> None:
        """Check that every size is positive and divides what it splits."""
        for name in ("tp", "pp", "dp", "ep", "heads", "layers", "experts", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        stage = self.tp * self.dp
        if stage % self.ep:
            raise ValueError(
                f"ep={self.ep}: must divide tp*dp={stage}, the ranks of a stage that share experts"
            )
        for part, *wholes in (
            ("tp", "heads", "ffn", "vocab"),
            ("ep", "experts"),
            ("pp", "layers"),
            ("heads", "hidden"),
        ):
            for whole in wholes:
                if getattr(self, whole) % getattr(self, part):
                    raise ValueError(
                        f"{part}={getattr(self, part)}: must divide the model's "
                        f"{whole}={getattr(self, whole)}"
                    )
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k}: must be in [1, experts={self.experts}]")

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def stage_layers(self, pp_rank: int) -> range:
        """Return the layers of one pipeline stage."""
        size = self.layers // self.pp
        return range(pp_rank * size, (pp_rank + 1) * size)

    def is_moe(self, layer: int) -> bool:
        """Return whether a layer has experts: the second half of the model has."""
        return layer >= self.layers // 2

    def place(
        self, rank: int, *, local_rank: int | None = None, node: str | None = None
    ) -> RankInfo:
        """Return where a rank stands: tp runs fastest, then pp, then dp, as in vLLM."""
        tp_rank = rank % self.tp
        pp_rank = rank // self.tp % self.pp
        dp_rank = rank // (self.tp * self.pp)
        ep_rank = (dp_rank * self.tp + tp_rank) % self.ep
        local = rank if local_rank is None else local_rank
        return RankInfo(
            rank=rank, world_size=self.world_size, local_rank=local, device_index=local, node=node,
            tp_rank=tp_rank, tp_size=self.tp, pp_rank=pp_rank, pp_size=self.pp,
            dp_rank=dp_rank, dp_size=self.dp, ep_rank=ep_rank, ep_size=self.ep,
            expert_offset=ep_rank * self.experts // self.ep,
        )  # fmt: skip


@dataclass(frozen=True)
class RankSpec:
    """What one rank's process is told."""

    config: EngineConfig
    rank: int
    local_rank: int
    node: str | None
    root: Path | None
    environment: dict[str, str]
    script: str | None
    arguments: dict[str, Any]
    trace: str


@dataclass(frozen=True)
class RankResult:
    """One rank's start. ``served``: op, weights and batch -> what the tuner serves in use.

    ``counts``: calls of FlashInfer's own functions, counted apart from the package under test.
    ``evidence``: of `evidence.warm_up_watched`, an `Evidence`.
    """

    rank: int
    report: Any = None
    served: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    evidence: Any = None


def resolve(reference: str) -> Any:
    """Return the object that ``module:name`` or ``path/to/file.py:name`` refers to."""
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(f"{reference!r}: must read module:name or path/to/file.py:name")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    spec = importlib.util.spec_from_file_location("embedded_script", place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{reference!r}: {place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
