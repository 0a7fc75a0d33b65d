# SPDX-License-Identifier: Apache-2.0
"""Work that a process begins long before its warm-up, while an engine loads its model.

Owns the decision which process begins it: that of rank 0, where a fleet is set. Other processes pay
nothing. The work is never required: a session begins it where no process has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings


def begin_early(rank: int, settings: Settings | None = None) -> None:
    """Begin the work that the next warm-up would wait for; call it before the model is loaded.

    With a fleet, rank 0 asks it in a process of its own, whose start takes a tenth of a second and
    more. Begun here, it is there, and idle, when the warm-up asks. It ends with this process, and
    by itself where no warm-up comes within an hour. Nothing is done on other ranks, or without a
    fleet.

    Args:
        rank: of those that will warm up together, this one.
        settings: those of the warm-up; read from the environment by default.

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

    waiting.begin(settings)
