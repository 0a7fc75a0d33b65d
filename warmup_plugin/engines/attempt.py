# SPDX-License-Identifier: Apache-2.0
"""One attempt of an engine's ranks to warm up together: how it begins, where its failure leads.

Owns what every adapter does around the nine steps, so that none has a rule of its own: the
arguments are made and the ranks meet (`readiness.py`), in the widest scope in which all of them
come; a failure goes the way that `fallback.py` names. Imported with the first warm-up of a process
and not with the plugin.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec.structs import replace

from warmup_plugin.errors import SessionError, loss_in
from warmup_plugin.observability import exposition
from warmup_plugin.runtime.exit_status import EXIT_ABANDONED
from warmup_plugin.runtime.standard_streams import hold_standard_streams
from warmup_plugin.steps.fallback import Way, failure_of, way_of
from warmup_plugin.steps.open_begin import begin_look
from warmup_plugin.steps.open_decision import RANK_0S_SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    import torch.distributed as dist  # noqa: TC004  # of a struct that is never decoded

    from warmup_plugin.engines.readiness import Readiness
    from warmup_plugin.settings import Settings
    from warmup_plugin.topology import RankInfo

logger = logging.getLogger("warmup_plugin")

#: Returns a warm-up's arguments ``cache_root`` and ``engine_cache_root``, where it has them.
Roots: TypeAlias = "Callable[[], dict[str, Path | None]]"

#: So long an engine has for an exception of a loss, whenever it was known, seconds.
_AT_LEAST_S = 1.0


class Scope(msgspec.Struct, frozen=True):
    """The ranks that one session may be over, and which of them this one is.

    ``group``: theirs, where there is more than one. ``name``: what part of the engine they are,
    empty where they are all of it: ranks are counted within it.
    """

    rank: int
    size: int
    group: dist.ProcessGroup | None = None
    name: str = ""


class Attempt:
    """One attempt over several scopes, widest first.

    ``scope``: the one that is being tried, and in the end the one that it is.
    """

    def __init__(self, *scopes: Scope) -> None:
        self.scopes, self.scope = scopes, scopes[0]

    @property
    def is_over_all(self) -> bool:
        """Return whether it has come to no narrower scope."""
        return self.scope is self.scopes[0]

    @property
    def is_last(self) -> bool:
        """Return whether there is no narrower scope."""
        return self.scope is self.scopes[-1]

    def narrow(self, why: object) -> bool:
        """Go on to the next scope, as all ranks of this one do; False where there is none."""
        rest = self.scopes[self.scopes.index(self.scope) + 1 :]
        if rest:
            logger.info("warmup-plugin: no session over all %d ranks: %s", self.scope.size, why)
            self.scope = rest[0]
        return bool(rest)

    def prepared(
        self,
        make: Callable[[], dict[str, Any]],
        settings: Settings,
        session: str,
        roots: Roots,
    ) -> tuple[dict[str, Any], str]:
        """Return the arguments of a warm-up, or why the ranks do not warm up together.

        ``roots``: where files are kept; these are among the arguments, too.

        The session is over the first scope all of whose ranks are about to begin this one; some of
        a wider one may not be, and are not waited for. The same on every rank of the scope: they
        meet here, in ``session``. What fails on this rank is its word to the others. Raises
        `RankLostError` where one of them is lost.
        """
        hold_standard_streams()  # before a file of ours is opened, or a store is reached
        greeting = _begun(self.scope, settings, roots)  # first: every rank waits for it
        coordinator = self._coordinator(settings, session)
        given, reason = _made(make)
        while True:
            link, why = None, reason
            if coordinator is not None:
                about = "" if self.is_last else _about(given)
                link, why = coordinator.meet(reason, greeting, about)
            if not why:
                return {**given, **self._place(given["ranks"]), "link": link}, ""
            if not self.narrow(why):
                return {}, why
            coordinator = self._coordinator(settings, session)
            greeting = greeting or _begun(self.scope, settings, roots)

    def _coordinator(self, settings: Settings, session: str) -> Readiness | None:
        scope = self.scope
        if scope.size == 1:
            return None
        # One rank meets nobody, and does without all that.
        from warmup_plugin.coordination.kv_client import default_store
        from warmup_plugin.engines.readiness import Readiness

        return Readiness(
            default_store(), session, scope.rank, scope.size, settings,
            of=scope.name, may_stay_away=not self.is_last,
        )  # fmt: skip

    def _place(self, ranks: RankInfo) -> dict[str, Any]:
        """Return which of the scope's ranks this one is."""
        scope = self.scope
        ranks = replace(ranks, rank=scope.rank, world_size=scope.size)
        return {"ranks": ranks, "group": scope.group}


def _made(make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Return the arguments, or why there are none."""
    try:
        from warmup_plugin.tuner import compat

        reason = compat.probe().lack
        if not reason:
            return make(), ""
    except Exception as error:
        logger.exception("warmup-plugin: cannot prepare")
        reason = f"{type(error).__name__}: {error}"[:400]
    return {}, reason


def _begun(scope: Scope, settings: Settings, roots: Roots) -> str:
    """Begin rank 0's look at the environment; it need not succeed.

    The other ranks prepare the later steps meanwhile: in this meeting they wait for rank 0 first.
    Returns what rank 0 tells of its surroundings.
    """
    with contextlib.suppress(Exception):  # who needs it looks again, and is told then
        from warmup_plugin.tuner import compat, environment_stamp

        if compat.probe().lack:
            return ""
        greeting = begin_look(settings, scope.rank, tells=scope.size > 1, **roots())
        if scope.rank and environment_stamp.look_round():
            from warmup_plugin.steps.cold_steps import prepare_cold_steps  # a warm start has none

            prepare_cold_steps(is_alone=False)
        return greeting
    return ""


def _about(given: dict[str, Any]) -> str:
    """Return what must be alike on ranks that could warm up apart; nothing where a rank cannot."""
    if not given:
        return ""
    shared = [getattr(given["settings"], name) for name in RANK_0S_SETTINGS]
    return json.dumps([given["identity"].digest, *shared])


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
        assert lost is not None
        _end_soon(f"{engine}, {of}: {lost}" if of else str(lost), lost.known_for_s(), settings)
    raise error


def _end_soon(error: str, known_for_s: float, settings: Settings) -> None:
    """Say why the job ends, and see to it that this process does.

    The grace period has begun when this process knew: rank 0 sees the others off in it.
    """
    if settings.forward_failure == "wait":
        logger.critical("warmup-plugin: the job ends: %s", error)
        return
    left_s = max(settings.grace_s - known_for_s, min(settings.grace_s, _AT_LEAST_S))
    logger.critical(
        "warmup-plugin: the job ends: %s; unless the engine ends this process before, it ends "
        "itself in %.0f s (status %d)",
        error, left_s, EXIT_ABANDONED,
    )  # fmt: skip
    timer = threading.Timer(left_s, os._exit, (EXIT_ABANDONED,))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no thread to be had: nothing would end it later
        os._exit(EXIT_ABANDONED)
