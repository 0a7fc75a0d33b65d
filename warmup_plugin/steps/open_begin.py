# SPDX-License-Identifier: Apache-2.0
"""Before the ranks meet: a check of this rank's resources, and the work that begins early.

No function here raises: the other ranks wait to hear of a fault.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from warmup_plugin.observability.progress import Progress as ProgressLine
from warmup_plugin.steps.options import Options
from warmup_plugin.tuner import environment_stamp

if TYPE_CHECKING:
    from pathlib import Path

    from warmup_plugin.settings import Settings
    from warmup_plugin.steps.fleet import Fleet

logger = logging.getLogger("warmup_plugin")


def begin_progress(options: Options, *, begins: bool) -> ProgressLine:
    """Return what tells of this job's progress; an old file stops saying that it is ready.

    ``begins``: by the clock, too, which takes a thread.
    """
    ranks, settings = options.ranks, options.settings
    path = None if ranks.local_rank else settings.progress_file
    progress = ProgressLine(ranks.rank, path=path, draws=options.progress is None)
    progress.step("open")
    if begins:
        progress.begin()
    return progress


def lack_of(options: Options) -> str:
    """Return what this rank lacks for a session; no exception, since the others wait for it."""
    if options.is_alone or options.link:
        return ""
    try:
        from warmup_plugin.runtime.needs import lacking  # a lone rank takes nothing of all that

        return lacking(options.ranks.rank, options.ranks.world_size)
    except Exception as error:  # noqa: BLE001  # whatever it is, all hear of it
        return f"{type(error).__name__}: {error}"


def begin_look(
    settings: Settings,
    rank: int,
    *,
    tells: bool,
    cache_root: Path | None = None,
    engine_cache_root: Path | None = None,
) -> str:
    """Recall what is kept of the environment, or begin on rank 0 to look; it need not succeed.

    ``tells``: there are other ranks, which want to know in which surroundings rank 0 looks. Returns
    these.
    """
    with contextlib.suppress(Exception):  # who needs it looks again, and is told then
        folder = environment_stamp.folder_of(settings, cache_root, engine_cache_root)
        environment_stamp.recall(folder)
        if rank == 0:
            return environment_stamp.begin(tells=tells)
    return ""


def begin_fleet(options: Options, stack: contextlib.ExitStack) -> Fleet | None:
    """Begin on rank 0 the process that will ask the fleet; None where there is none to ask."""
    settings = options.settings
    if settings.fleet is None or settings.fleet_role == "off" or options.ranks.rank:
        return None
    try:
        from warmup_plugin.steps.fleet import Fleet

        fleet = Fleet(settings)
    except Exception:
        logger.exception("warmup-plugin: the fleet is not asked:")
        return None
    stack.callback(fleet.close)
    return fleet
