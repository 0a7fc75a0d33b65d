# SPDX-License-Identifier: Apache-2.0
"""One attempt of an engine's ranks to warm up together: how it begins, where its failure leads.

Owns what every adapter does around the nine steps, so that none has a rule of its own: the
arguments are made and the ranks meet (`readiness.py`); a failure goes the way that `fallback.py`
names. Imported with the first warm-up of a process and not with the plugin.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from warmup_plugin import exposition
from warmup_plugin.engines.readiness import Readiness, default_store
from warmup_plugin.errors import SessionError
from warmup_plugin.fallback import Way, failure_of, loss_in, way_of
from warmup_plugin.pulse import EXIT_ABANDONED

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")


def prepared(
    make: Callable[[], dict[str, Any]],
    settings: Settings,
    *,
    rank: int,
    size: int,
    session: str,
    of: str = "",
) -> tuple[dict[str, Any], str]:
    """Return the arguments of a warm-up, or why the ranks do not warm up together.

    The same on every rank: they meet here, in ``session`` of the group ``of``. What fails on this
    rank is its word to the others. Raises `RankLostError` where one of them is lost. On rank 0 its
    look at the environment begins, for which the others wait.
    """
    meeting = None
    if size > 1:
        meeting = Readiness(default_store(), session, rank, size, settings, of=of)
    given, reason, greeting = dict[str, Any](), "", ""
    try:
        from warmup_plugin.tuner import probe, stamp

        if rank == 0:
            greeting = stamp.begin(tells=size > 1)
        capabilities = probe.probe()
        if capabilities.missing:
            reason = f"FlashInfer {capabilities.version} has no {', '.join(capabilities.missing)}"
        else:
            given = make()
    except Exception as error:
        logger.exception("warmup-plugin: cannot prepare")
        reason = f"{type(error).__name__}: {error}"[:400]
    if meeting is not None:
        given["link"], reason = meeting.meet(reason, greeting)
    return given, reason


def follow(error: Exception | str, settings: Settings, engine: str, *, of: str = "") -> None:
    """Return where the engine is to warm up as without this package, once that is logged.

    ``of``: the group by which ranks are numbered, where that is not the whole engine.
    Raises where it is not: what leads where is `fallback.way_of`'s to say. Where a rank is lost
    this process ends by itself, unless the engine ends it within the grace period: it must not
    meet that rank in a collective.
    """
    way = way_of(failure_of(error), settings.mode)
    if way is Way.AS_WITHOUT:
        logger.warning("warmup-plugin: %s warms up as without this package: %s", engine, error)
        exposition.left_alone((engine.lower(), ""), settings)
        return
    if isinstance(error, str):
        exposition.failed((engine.lower(), ""), settings)
        raise SessionError(f"mode {settings.mode}: {error}")
    if way is Way.END:
        lost = loss_in(error)
        _end_soon(f"{engine}, {of}: {lost}" if of else str(lost), settings)
    raise error


def _end_soon(error: str, settings: Settings) -> None:
    """Say why the job ends, and see to it that this process does."""
    if settings.forward_failure == "wait":
        logger.critical("warmup-plugin: the job ends: %s", error)
        return
    logger.critical(
        "warmup-plugin: the job ends: %s; unless the engine ends this process before, it ends "
        "itself in %.0f s (status %d)",
        error, settings.grace_s, EXIT_ABANDONED,
    )  # fmt: skip
    timer = threading.Timer(settings.grace_s, os._exit, (EXIT_ABANDONED,))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no thread to be had: nothing would end it later
        os._exit(EXIT_ABANDONED)
