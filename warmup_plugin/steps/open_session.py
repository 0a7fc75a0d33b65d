# SPDX-License-Identifier: Apache-2.0
"""Before step 1: the ranks meet, hold their arguments against each other, and begin a session.

Owns the round `open`, and what a session takes of its process: asked for before any of it is taken,
inside the guarded part, so that a rank that lacks something takes part and says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from warmup_plugin.coordination.base import JOB_STORE, Alone, Rendezvous
from warmup_plugin.coordination.decisions import OPEN
from warmup_plugin.coordination.roll_call import stay_away
from warmup_plugin.coordination.versions import BUILD
from warmup_plugin.coordination.votes import OpenVote, Place
from warmup_plugin.errors import (
    LateError,
    RankLostError,
    RefusedError,
    SessionError,
    WarmupError,
    loss_in,
)
from warmup_plugin.identity import Identity
from warmup_plugin.observability.exposition import Figures, of_rank
from warmup_plugin.observability.progress import Progress as ProgressLine
from warmup_plugin.observability.report_rows import Wait
from warmup_plugin.runtime.standard_streams import hold_standard_streams
from warmup_plugin.settings import unknown_variables
from warmup_plugin.steps.context import Job, Trace
from warmup_plugin.steps.open_begin import (
    begin_fleet,
    begin_look,
    begin_progress,
    lack_of,
)
from warmup_plugin.steps.open_decision import decide_open, taken_from
from warmup_plugin.steps.open_place import keep_look, place
from warmup_plugin.steps.options import Options
from warmup_plugin.steps.turn import own_turn
from warmup_plugin.topology import host_name, node_id
from warmup_plugin.tuner import compat, environment, environment_stamp
from warmup_plugin.tuner.counters import observe
from warmup_plugin.tuner.environment_stamp import Lookup
from warmup_plugin.tuner.known_ops import known_ops
from warmup_plugin.tuner.tuner_state import Installed

if TYPE_CHECKING:
    from warmup_plugin.steps.fleet import Fleet

logger = logging.getLogger("warmup_plugin")
#: Warnings about the environment that this process has logged.
_told: set[str] = set()


@contextlib.contextmanager
def open_job(options: Options) -> Iterator[Job]:
    """Meet the other ranks, and let go of everything at the end.

    After an error in the body the tuner holds what it held before. Raises `SessionError` on every
    rank where the ranks do not fit together, a tuning context is open already, another session of
    the process is in the way, or one of them lacks what this package needs; `RankLostError` where
    one is lost, with its host; `LateError` on a rank that fails after the last record. The
    forward's own exceptions pass.
    """
    with contextlib.ExitStack() as stack:
        other, waited_s = stack.enter_context(own_turn(options))
        began = time.monotonic()
        hold_standard_streams()
        lack = lack_of(options)  # while nothing has been taken
        # Near a limit nothing is begun that can be done without: `Thread.start` itself waits for
        # ever for a thread that has no memory to say that it runs.
        greeting = "" if lack else _begin_look(options)  # early: every rank will wait for it
        fleet = None if lack else begin_fleet(options, stack)
        progress = begin_progress(options, begins=not lack)
        stack.callback(progress.hush)
        figures = of_rank(options.ranks, options.engine, options.settings, options.identity.digest)
        figures.begin()
        coordinator: Rendezvous | None = None
        job: Job | None = None
        try:
            coordinator, rank_0s = _meet(options, stack, progress, greeting, lack=lack)
            lookup = _divide_look(options, coordinator, rank_0s)
            job = _join(options, coordinator, stack, lookup, progress=progress, figures=figures,
                        fleet=fleet)  # fmt: skip
            job.took("open", began)
            if other:
                job.trace.waited.append(Wait("open", (0,), other, round(waited_s, 4)))
            yield job
            with contextlib.suppress(Exception):  # the session is over, whatever the disk says
                keep_look(job)
        except BaseException as error:
            told = _told_as(error, coordinator, job, progress, figures)
            if told is None:
                raise
            raise told from error


def _begin_look(options: Options) -> str:
    return begin_look(
        options.settings, options.ranks.rank, tells=not options.is_alone,
        cache_root=options.cache_root, engine_cache_root=options.engine_cache_root,
    )  # fmt: skip


def _told_as(
    error: BaseException,
    coordinator: Rendezvous | None,
    job: Job | None,
    progress: ProgressLine,
    figures: Figures,
) -> WarmupError | None:
    """End a session that has failed; return what is raised in place of the error, None for itself.

    The other ranks, progress and figures hear of it, and the tuner holds what it held before.
    """
    reason = f"{type(error).__name__}: {error}"[:1000]
    is_ours = isinstance(error, Exception) and (job is None or error is not job.trace.forward_error)
    lost = _take_leave(coordinator, error, reason, lives=is_ours)
    progress.end("failed", reason)
    figures.fail()
    if job is not None:
        job.installed.put_back()
        if job.fleet is not None:
            job.fleet.has_failed(job, error)
    if not is_ours:
        return None
    if job is not None and job.trace.is_settled and loss_in(error) is None:
        return LateError(reason)
    if lost is not None and lost is not error:
        return lost  # in which the others have ended already
    # No memory, or a bug: the engine hears of a session that failed, on every rank, and of no error
    # that it did not make.
    return None if isinstance(error, WarmupError) else SessionError(reason)


def _take_leave(
    coordinator: Rendezvous | None, error: BaseException, reason: str, *, lives: bool
) -> RankLostError | None:
    """Tell the others why this rank leaves: whom it takes for lost, else what it cannot do.

    Returns by whose loss the session has ended, where it has.
    """
    if coordinator is None:
        return None
    lost = loss_in(error)
    if lost is not None:
        coordinator.abandon(lost.reason, of=lost.rank)
    else:
        lost = coordinator.abandon(reason, lives=lives)
    if lost is not None:
        lost.name_host(coordinator.host_of(lost.rank))
    return lost


def _divide_look(options: Options, coordinator: Rendezvous, rank_0s: str) -> Lookup:
    """Begin to look at the environment, together with the ranks that see the same one."""
    lookup = Lookup(options.settings.task_limit_s)
    if lookup.is_slow:
        from warmup_plugin.steps.cold_steps import prepare_cold_steps  # a warm start has it kept

        prepare_cold_steps(is_alone=options.is_alone)
    lookup.divide(coordinator, rank_0s)
    return lookup


def _join(
    options: Options,
    coordinator: Rendezvous,
    stack: contextlib.ExitStack,
    lookup: Lookup,
    *,
    progress: ProgressLine,
    figures: Figures,
    fleet: Fleet | None,
) -> Job:
    """Hold the first round; return what all steps have in common from then on."""
    vote = _vote(options, lookup, fleet)
    opened, zero = coordinator.meet(OPEN, vote, decide_open), time.monotonic()
    coordinator.name_hosts(opened.nodes, opened.hosts)
    if opened.go == "refuse":
        raise RefusedError(opened.reason)
    taken = taken_from(opened.looked_up, lookup.taken)
    known = {**environment_stamp.kept(), **{name: taken[name] for name in lookup.taken}}
    stack.enter_context(compat.answering(known))  # FlashInfer asks again where it loads or saves
    rank, identity = coordinator.rank, Identity(opened.factors)
    stamp = {**vote.factors["stamp"], **taken}
    files = place(options, opened, identity.digest, rank=rank, stamp=stamp)
    stack.callback(files.close)
    figures.tells(is_first=rank in opened.writers)
    progress.files(options.settings.progress_file if rank in opened.writers else None)
    job = Job(
        options=options, coordinator=coordinator, opened=opened, identity=identity,
        ops=options.ops or known_ops(compat.version()), stamp=stamp,
        installed=Installed.take_down(), seen=stack.enter_context(observe()), stack=stack,
        figures=figures, progress=progress, files=files, fleet=fleet, zero=zero,
        trace=Trace(opened.go, opened.reason),
    )  # fmt: skip
    _warn_of_opening(job)
    return job


def _warn_of_opening(job: Job) -> None:
    """Say what keeps this session from being as the user may expect it."""
    job.warn(*job.opened.warnings)
    if job.opened.reason:
        job.warn(f"{job.opened.go}: {job.opened.reason}")
    _warn_of_variables(job)
    if job.coordinator.way == JOB_STORE:
        job.warn(
            "the ranks meet on a part of the job's store, since not all reach another port of rank "
            "0: each start waits some seconds for that (WARMUP_PLUGIN_ADDRESS on rank 0)"
        )
    if job.files.lack:
        job.warn(f"memory only: {job.files.lack}")


def _warn_of_variables(job: Job) -> None:
    """Name the variables that look like settings and are none: one line for all of a start."""
    found = unknown_variables(os.environ)
    if not found:
        return
    named = [name + (f" (is it {near}?)" if near else "") for name, near in found.items()]
    text = f"no such setting: {', '.join(named)}"
    if text in _told:
        job.trace.logged.add(text)  # by an earlier session of this process
    _told.add(text)
    job.warn(text)


def _meet(
    options: Options,
    stack: contextlib.ExitStack,
    progress: ProgressLine,
    greeting: str,
    *,
    lack: str,
) -> tuple[Rendezvous, str]:
    """Open the session; return with it the surroundings of rank 0.

    ``greeting``: this rank's own, which rank 0 hands on; ``lack``: why it cannot take part.
    """
    options.refuse_company()
    if options.is_alone:
        return Alone(), ""
    try:
        # A single process needs no store.
        from warmup_plugin.coordination.coordinator import Coordinator
        from warmup_plugin.coordination.opening import connect
        from warmup_plugin.coordination.session_end import turn_away
    except Exception as error:  # no memory, a package half there: the others wait to hear of it
        if options.link is not None:
            raise
        lack = f"{type(error).__name__}: {error}"
    if lack:
        stay_away(lack, options.group)  # the others are on their way to the group
    link = options.link or connect(options.group, options.settings, greeting)
    try:
        coordinator = Coordinator(link, options.settings)
    except Exception as error:  # raised again, when the others know
        turn_away(link, f"{type(error).__name__}: {error}"[:1000], options.settings.silence_s)
        raise
    coordinator.on_wait = progress.waits
    stack.callback(coordinator.close)
    return coordinator, link.greeting


def _vote(options: Options, lookup: Lookup, fleet: Fleet | None) -> OpenVote:
    factors = options.identity.with_factors(**environment.factors(lookup.stamp())).factors
    if fleet is not None and not lookup.taken:
        fleet.begin(options, {**factors})  # meanwhile FlashInfer is probed, and the ranks meet
    capabilities, settings, ranks = compat.probe(), options.settings, options.ranks
    return OpenVote(
        plugin=BUILD, host=host_name()[:64],
        ranks=Place(
            ranks.rank, ranks.world_size, ranks.node or node_id(), *ranks.coordinates
        ),
        tuning=compat.is_tuning(compat.tuner()), version=capabilities.version,
        lack=capabilities.lack, keys_tell_options_apart=capabilities.keys_tell_options_apart,
        factors={**factors}, alike=lookup.is_alike, takes=list(lookup.taken),
        must_share=options.require_sharing, may_keep_step=options.may_keep_step,
        require_agreement=settings.require_agreement, session=secrets.token_hex(4),
        mode=settings.mode, strategy=settings.strategy, on_hit=settings.on_hit,
        budget_s=settings.budget_s, margin=settings.margin, race=settings.race,
    )  # fmt: skip
