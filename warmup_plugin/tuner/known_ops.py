# SPDX-License-Identifier: Apache-2.0
"""What is known about single custom ops, each with its reason.

Owns the tables by which an op is treated otherwise than recorded, replayed and shared. An op that
is in none of them is an ordinary one. Releases and files in the reasons are FlashInfer's, read in
0.7.2.post1 unless another is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from warmup_plugin.topology import RankInfo


class KnownOps(msgspec.Struct, frozen=True):
    """The tables. Keys are custom op names; an engine adds its own ops with `plus`.

    ``pass_through``: called as they are on every rank, never recorded. ``key_unstable``: the key
    under which a winner is stored is not the key under which it is looked up; never shared, never
    missing. ``one_rank``: tuning them leaves something behind on the rank that does it, so strategy
    `sharded` leaves all tasks of such an op to the lowest rank that has them. ``self_tuning``: tune
    without ``choose_one``, so no session sees them. ``twin_fields``: op -> index in the runner's
    cache key extras -> name of the `RankInfo` field that stands there; keys that differ in nothing
    else are twins.
    """

    pass_through: Mapping[str, str] = msgspec.field(default_factory=dict)
    key_unstable: Mapping[str, str] = msgspec.field(default_factory=dict)
    one_rank: Mapping[str, str] = msgspec.field(default_factory=dict)
    self_tuning: Mapping[str, str] = msgspec.field(default_factory=dict)
    twin_fields: Mapping[str, Mapping[int, str]] = msgspec.field(default_factory=dict)

    def plus(
        self,
        *,
        pass_through: Mapping[str, str] | None = None,
        key_unstable: Mapping[str, str] | None = None,
        one_rank: Mapping[str, str] | None = None,
        self_tuning: Mapping[str, str] | None = None,
        twin_fields: Mapping[str, Mapping[int, str]] | None = None,
    ) -> KnownOps:
        """Return these tables with more rows; a row given here replaces one of the same op."""
        return msgspec.structs.replace(
            self,
            pass_through={**self.pass_through, **(pass_through or {})},
            key_unstable={**self.key_unstable, **(key_unstable or {})},
            one_rank={**self.one_rank, **(one_rank or {})},
            self_tuning={**self.self_tuning, **(self_tuning or {})},
            twin_fields={**self.twin_fields, **(twin_fields or {})},
        )


def own_numbers(ops: KnownOps, op: str, ranks: RankInfo) -> dict[int, tuple[str, int]]:
    """Return which of an op's key extras are this rank's own numbers: index -> (name, number).

    A rank without others along an axis has no twins there, and 0 is many things' number.
    """
    fields = ops.twin_fields.get(op, {})
    return {
        index: (name, int(getattr(ranks, name)))
        for index, name in fields.items()
        if getattr(ranks, f"{name.removesuffix('_rank')}_size", 2) > 1
    }


_COLLECTIVE = "its tactics are collective: every rank of the workspace must run them together"
_EVERY_CALL = "opens a tuning context of its own at every call, serving included (MOE_AUTOTUNE)"

KNOWN_OPS = KnownOps(
    pass_through={
        "flashinfer::pcie_ipc_all_reduce": f"{_COLLECTIVE} (comm/pcie_ipc_tuning.py)",
        **{
            f"cute_dsl_sm12x_{name}": _EVERY_CALL
            for name in (
                "moe_gemm_fp8",
                "moe_gemm_mxfp8_mxfp4",
                "fc1_act_fp8",
                "fc1_act_mxfp8_mxfp4",
                "fc1_act_q1_mxfp8_mxfp4",
                "fc2_finalize_mxfp8_mxfp4",
            )
        },
    },
    self_tuning={
        "sparse_mla_sm120": "calibrates itself in tuning mode, per rank, without choose_one",
        "sparse_mla_sm120_nvfp4": "calibrates itself in tuning mode, per rank, without choose_one",
    },
    twin_fields={
        # grouped_mm/_sm120_moe_autotune.py: contract, schema, gated, granularity, device index, ...
        "cute_sm120_fp8_groupwise_moe": {4: "device_index"},
        "cute_sm120_mxfp8_groupwise_moe": {4: "device_index"},
    },
)

# fused_moe/core.py of these releases: dtypes, top_k, tp size, tp rank, ep size, ep rank, ...
# From 0.7.2 on the same places hold other numbers, so this is an allow-list of releases.
_MOE_KEYS_WITH_RANKS = frozenset({"0.6.18", "0.6.18.post1", "0.7.0", "0.7.0.post1", "0.7.1"})
_MOE_RANKS = {5: "tp_rank", 7: "ep_rank"}


def known_ops(version: str) -> KnownOps:
    """Return the tables for one FlashInfer release."""
    if version not in _MOE_KEYS_WITH_RANKS:
        return KNOWN_OPS
    ops = ("trtllm::fused_moe::gemm1", "trtllm::fused_moe::gemm2")
    return KNOWN_OPS.plus(twin_fields=dict.fromkeys(ops, _MOE_RANKS))


def distribution_aware(op: str) -> str:
    """Return why an op of FlashInfer's distribution-aware MoE cannot be surveyed, if that is on."""
    value = os.environ.get("FLASHINFER_DIST_AWARE_AUTOTUNE", "")
    is_off = value.strip().lower() in ("", "0", "false", "no", "off", "none")  # as in da_config.py
    if is_off or not op.startswith("flashinfer::trtllm_"):
        return ""
    return "distribution-aware tuning cannot take the default tactic for an answer"
