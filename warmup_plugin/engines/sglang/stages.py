# SPDX-License-Identifier: Apache-2.0
"""Over which ranks one of SGLang's contexts is a session: all pipeline stages, or this one.

Owns that rule and how a rank is counted. SGLang tunes by tensor-parallel group, and whether a stage
has a context at all may depend on its layers (`should_run_flashinfer_autotune` looks for a kind of
linear layer, a model's own prefill pass for the layers it tunes). So all stages are tried first,
with a wait of seconds for one that does not come, and the stage's own group next. Stages that have
once not been in a session together may serve different tactics, which their graphs hold: they stay
apart for the rest of the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmup_plugin.engines.attempt import Attempt, Scope
from warmup_plugin.engines.sglang import compat

if TYPE_CHECKING:
    from warmup_plugin.topology import RankInfo

_is_apart = False


def attempt() -> Attempt:
    """Return over whom the next context is to be a session, widest first."""
    stage, world = compat.parallel().tp_group, compat.world()
    name = f"stage {compat.of_parallel('pp_rank', 0)}" if world is not None else ""
    group = stage.cpu_group if stage.world_size > 1 else None
    own = Scope(stage.rank_in_group, stage.world_size, group, name)
    if world is None or _is_apart:
        return Attempt(own)
    return Attempt(Scope(world.rank_in_group, world.world_size, world.cpu_group), own)


def part_unless(*, together: bool) -> None:
    """Keep this stage on its own from now on, unless the context was a session of all stages."""
    global _is_apart  # noqa: PLW0603  # of the process, as the tuner is
    _is_apart = _is_apart or not together


def ranks(device_index: int) -> RankInfo:
    """Return where this rank stands; how it is counted among the others is the scope's."""
    from warmup_plugin.topology import RankInfo

    of = compat.of_parallel
    return RankInfo(
        local_rank=compat.parallel().tp_group.local_rank,
        tp_rank=of("tp_rank", 0), tp_size=of("tp_size", 1),
        pp_rank=of("pp_rank", 0), pp_size=of("pp_size", 1),
        dp_rank=of("attn_dp_rank", 0), dp_size=of("attn_dp_size", 1),
        ep_rank=of("moe_ep_rank", 0), ep_size=of("moe_ep_size", 1),
        device_index=device_index,
    )  # fmt: skip
