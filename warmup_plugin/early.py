# SPDX-License-Identifier: Apache-2.0
"""Work that a process begins long before its warm-up, while an engine loads its model.

Owns the decision which process begins it: that of rank 0, where a fleet is set. Other processes pay
nothing. The work is never required: a session begins it where no process has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from warmup_plugin.identity import Identity
    from warmup_plugin.settings import Settings


def begin_early(
    rank: int,
    settings: Settings | None = None,
    *,
    identity: Identity | None = None,
    cache_root: Path | None = None,
    engine_cache_root: Path | None = None,
) -> None:
    """Begin the work that the next warm-up would wait for; call it before the model is loaded.

    With a fleet, rank 0 asks it in a process of its own, whose start takes a tenth of a second and
    more. Begun here, it is there, and idle, when the warm-up asks. It ends with this process, and
    by itself where no warm-up comes within an hour. Nothing is done on other ranks, or without a
    fleet.

    With the identity the process also reads what the fleet has of it. That takes FlashInfer's look
    at its environment, so it is done where an earlier start of this host has kept one. A warm-up of
    another identity asks anew.

    Args:
        rank: of those that will warm up together, this one.
        settings: those of the warm-up; read from the environment by default.
        identity: that of the warm-up.
        cache_root: that of the warm-up.
        engine_cache_root: that of the warm-up.

    Raises:
        SettingError: a variable of the environment breaks its rule.
    """
    if rank:
        return
    if settings is None:
        from warmup_plugin.settings import Settings

        settings = Settings.from_env()
    if settings.fleet is None or settings.fleet_role == "off" or settings.mode == "off":
        return
    from warmup_plugin.fleet import waiting

    worker = waiting.begin(settings)
    if worker is None or identity is None:
        return
    from warmup_plugin.steps import fleet_ahead

    roots = fleet_ahead.Roots(settings, cache_root, engine_cache_root)
    fleet_ahead.read_with_loading(worker, identity, roots)
