# SPDX-License-Identifier: Apache-2.0
"""One rank's part in one session: what all steps share, opened together and let go of together.

Owns the first meeting (who is here, how far they can share), the clock of the steps, the warnings.
`open_job` raises `SessionError` on every rank or on none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_plugin import __version__
from warmup_plugin.cache.journal import Journal
from warmup_plugin.cache.paths import Placement, resolve
from warmup_plugin.cache.store import Store, unsafe
from warmup_plugin.coordination.base import JOB_STORE, Alone, Rendezvous, Word
from warmup_plugin.coordination.roll_call import stay_away
from warmup_plugin.coordination.votes import FIRST, VERSION, checked, other_version
from warmup_plugin.errors import (
    LateError,
    PlacementError,
    RankLostError,
    RefusedError,
    SessionError,
    WarmupError,
)
from warmup_plugin.identity import Identity
from warmup_plugin.observability.exposition import Figures, of_rank
from warmup_plugin.observability.progress import Progress as ProgressLine
from warmup_plugin.runtime.needs import lacking
from warmup_plugin.runtime.standard_streams import hold_standard_streams
from warmup_plugin.settings import unknown_variables
from warmup_plugin.steps.decisions import RANK_0S_SETTINGS, decide_open, taken_from
from warmup_plugin.steps.fallback import loss_in
from warmup_plugin.steps.options import Options
from warmup_plugin.steps.turn import own_turn
from warmup_plugin.topology import host_name
from warmup_plugin.tuner import compat, environment
from warmup_plugin.tuner.counters import Observations, observe
from warmup_plugin.tuner.environment_stamp import Lookup, begin
from warmup_plugin.tuner.known_ops import KnownOps, known_ops
from warmup_plugin.tuner.tuner_state import Installed

if TYPE_CHECKING:
    from warmup_plugin.coordination.base import Decide
    from warmup_plugin.runtime.sigterm import Shutdown

logger = logging.getLogger("warmup_plugin")
#: Warnings about the environment that this process has logged.
_told: set[str] = set()


@dataclass
class Job:
    """What the steps of one rank have in common. ``word`` is the record of the first meeting."""

    options: Options
    meeting: Rendezvous
    word: Word
    identity: Identity
    ops: KnownOps
    stamp: Mapping[str, str]
    installed: Installed
    seen: Observations
    stack: contextlib.ExitStack
    figures: Figures
    placement: Placement | None = None
    #: Its directory, where it may be used.
    directory: Path | None = None
    store: Store | None = None
    journal: Journal = field(default_factory=lambda: Journal(None, "", driver="", stamp={}))
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    logged: set[str] = field(default_factory=set)
    timeline: list[tuple[str, float, float]] = field(default_factory=list)
    failure: str = ""
    forward_error: BaseException | None = None
    #: Whether the last record is there, after which nobody waits for anybody any more.
    is_settled: bool = False
    #: Who owns the shutdown signal, once this rank has tuned.
    shutdown: Shutdown | None = None
    #: For the receipt. ``zero``: when the first meeting was over, on the monotonic clock; ``spans``
    #: of the steps count from there. ``read``: what became of each file. ``lenders``: borrowed
    #: keys, by whom. ``waited``: for other engines. ``rows``, ``winners``: of all ranks, on rank 0.
    zero: float = 0.0
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    read: list[dict[str, Any]] = field(default_factory=list)
    lenders: Mapping[str, str] = field(default_factory=dict)
    waited: list[dict[str, Any]] = field(default_factory=list)
    progress: ProgressLine = field(default_factory=lambda: ProgressLine(1))
    rows: list[dict[str, Any]] = field(default_factory=list)
    winners: list[dict[str, Any]] = field(default_factory=list)

    @property
    def leads(self) -> bool:
        """Return whether this is rank 0."""
        return self.meeting.rank == 0

    @property
    def shares(self) -> bool:
        """Return whether the ranks have one table in common."""
        return bool(self.word["go"] == "share")

    @property
    def is_unguarded(self) -> bool:
        """Return whether FlashInfer must tune inside the forward, as without this package."""
        return bool(self.word["go"] == "unguarded")

    @property
    def leaves(self) -> str:
        """Return why this rank is about to end although it has not failed, or an empty string."""
        is_asked = self.shutdown is not None and self.shutdown.is_requested
        return "SIGTERM: it ends, and with it the job" if is_asked else ""

    @property
    def may_write(self) -> bool:
        """Return whether this rank writes its node's files in this session."""
        return self.store is not None and self.word["mode"] == "on"

    def meet(self, step: str, word: Word, decide: Decide) -> Word:
        """Hand in this rank's word; on rank 0 the words are looked at before they decide."""
        return self.meeting.meet(step, word, checked(step, decide))

    def warn(self, *texts: str) -> None:
        """Keep warnings for the report; rank 0 logs those that its store has not ``logged``."""
        self.warnings.extend(texts)
        for text in texts if self.leads else ():
            if text not in self.logged:
                logger.warning("warmup-plugin: %s", text)

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the body's time to a step, and tell the others that this rank is at it."""
        self.meeting.note(step)
        self.progress.step(step)
        began = time.monotonic()
        try:
            yield
        finally:
            taken = time.monotonic() - began
            self.seconds[step] = self.seconds.get(step, 0.0) + taken
            self.spans.append((step, began - self.zero, taken))

    @contextlib.contextmanager
    def in_forward(self) -> Iterator[None]:
        """Run the engine's forward in the body; what it raises is its own."""
        with self.meeting.in_forward():
            try:
                yield
            except BaseException as error:
                self.forward_error = error
                raise

    @contextlib.contextmanager
    def failing_as_data(self) -> Iterator[None]:
        """Make what fails in the body a word for the next meeting, `failure`; no meeting in it."""
        try:
            yield
        except RankLostError:
            raise
        except WarmupError as error:
            self.failure = str(error)
        except Exception as error:
            logger.exception("warmup-plugin: rank %d: the session goes on:", self.meeting.rank)
            self.failure = f"{type(error).__name__}: {error}"[:1000]

    def take_failure(self) -> str:
        """Return what has failed, once; an empty string where nothing has."""
        failure, self.failure = self.failure, ""
        return failure

    def serve_defaults(self, reason: str) -> None:
        """Take this session's entries out of the tuner, as all ranks do now."""
        self.word = {**self.word, "go": "defaults", "reason": reason}
        self.installed.put_back()
        self.warn(f"all ranks serve FlashInfer's defaults: {reason}")


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
        lack = _lack(options)  # while nothing has been taken
        greeting = "" if lack else _begin(options)  # early: every rank will wait for it
        progress = _progress(options)
        stack.callback(progress.hush)
        figures = of_rank(options.ranks, options.engine, options.settings, options.identity.digest)
        figures.begin()
        meeting: Rendezvous | None = None
        job: Job | None = None
        try:
            meeting, rank_0s = _meet(options, stack, progress, greeting, lack=lack)
            job = _join(options, meeting, stack, progress, rank_0s, figures=figures)
            job.seconds["open"] = time.monotonic() - began
            job.spans.append(("open", began - job.zero, job.seconds["open"]))
            if other:
                waited = {"at": "open", "ranks": [0], "for": other, "seconds": round(waited_s, 4)}
                job.waited.append(waited)
            yield job
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"[:1000]
            is_ours = isinstance(error, Exception) and (
                job is None or error is not job.forward_error
            )
            lost = _take_leave(meeting, error, reason, lives=is_ours)
            progress.end("failed", reason)
            figures.fail()
            if job is not None:
                job.installed.put_back()
            if is_ours and job is not None and job.is_settled and loss_in(error) is None:
                raise LateError(reason) from error
            if is_ours and lost is not None and lost is not error:
                raise lost from error  # in which the others have ended already
            if is_ours and not isinstance(error, WarmupError):
                # A word that parses and makes no sense, no memory, or a bug: the engine hears of a
                # session that failed, on every rank, and of no error that it did not make.
                raise SessionError(reason) from error
            raise


def _take_leave(
    meeting: Rendezvous | None, error: BaseException, reason: str, *, lives: bool
) -> RankLostError | None:
    """Tell the others why this rank leaves: whom it takes for lost, else what it cannot do.

    Returns by whose loss the session has ended, where it has.
    """
    if meeting is None:
        return None
    lost = loss_in(error)
    if lost is not None:
        meeting.abandon(lost.reason, of=lost.rank)
    else:
        lost = meeting.abandon(reason, lives=lives)
    if lost is not None:
        lost.name_host(meeting.host_of(lost.rank))
    return lost


def _progress(options: Options) -> ProgressLine:
    """Return what tells of this job's progress; an old file stops saying that it is ready."""
    ranks, settings = options.ranks, options.settings
    path = None if ranks.local_rank else settings.progress_file
    progress = ProgressLine(ranks.rank, path=path, draws=options.progress is None)
    progress.step("open")
    progress.begin()
    return progress


def _join(
    options: Options,
    meeting: Rendezvous,
    stack: contextlib.ExitStack,
    progress: ProgressLine,
    rank_0s: str,
    *,
    figures: Figures,
) -> Job:
    lookup = Lookup(options.settings.task_limit_s)
    lookup.divide(meeting, rank_0s)
    hello = _hello(options, lookup)
    word = meeting.meet(FIRST, hello, checked(FIRST, decide_open))
    zero = time.monotonic()
    if reason := other_version(FIRST, word):
        raise SessionError(f"rank 0 cannot go on: {reason}")
    meeting.name_hosts(word["nodes"], word["hosts"])
    if word["go"] == "refuse":
        raise RefusedError(word["reason"])
    taken = taken_from(word["looked_up"], lookup.taken)
    stack.enter_context(compat.answering({name: taken[name] for name in lookup.taken}))
    job = Job(
        options=options, meeting=meeting, word=word, identity=Identity(word["factors"]),
        ops=options.ops or known_ops(compat.version()),
        stamp={**hello["factors"]["stamp"], **taken},
        installed=Installed.take_down(), seen=stack.enter_context(observe()), stack=stack,
        zero=zero, progress=progress, figures=figures,
    )  # fmt: skip
    figures.tells(is_first=meeting.rank in word["writers"])
    job.warn(*word["warnings"])
    if word["reason"]:
        job.warn(f"{word['go']}: {word['reason']}")
    _warn_of_variables(job)
    if meeting.way == JOB_STORE:
        job.warn(
            "the ranks meet on a part of the job's store, since not all reach another port of rank "
            "0: each start waits some seconds for that (WARMUP_PLUGIN_ADDRESS on rank 0)"
        )
    _place(job)
    _open_journal(job)
    return job


def _warn_of_variables(job: Job) -> None:
    """Name the variables that look like settings and are none: one line for all of a start."""
    found = unknown_variables(os.environ)
    if not found:
        return
    named = [name + (f" (is it {near}?)" if near else "") for name, near in found.items()]
    text = f"no such setting: {', '.join(named)}"
    if text in _told:
        job.logged.add(text)  # by an earlier session of this process: some engines have several
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
        from warmup_plugin.coordination.coordinator import (  # a single process needs no store
            Meeting,
            turn_away,
        )
        from warmup_plugin.coordination.opening import connect
    except Exception as error:  # no memory, a package half there: the others wait to hear of it
        if options.link is not None:
            raise
        lack = f"{type(error).__name__}: {error}"
    if lack:
        stay_away(lack, options.group)  # the others are on their way to the group
    link = options.link or connect(options.group, options.settings, greeting)
    try:
        meeting = Meeting(link, options.settings)
    except Exception as error:  # raised again, when the others know
        turn_away(link, f"{type(error).__name__}: {error}"[:1000], options.settings.silence_s)
        raise
    meeting.on_wait = progress.waits
    stack.callback(meeting.close)
    return meeting, link.greeting


def _lack(options: Options) -> str:
    """Return what this rank lacks for a session; no exception, since the others wait for it."""
    if options.is_alone or options.link:
        return ""
    try:
        return lacking(options.ranks.rank, options.ranks.world_size)
    except Exception as error:  # noqa: BLE001  # whatever it is, all hear of it
        return f"{type(error).__name__}: {error}"


def _begin(options: Options) -> str:
    """Begin on rank 0 to look at the environment; it need not succeed.

    Returns the surroundings in which it looks, for the other ranks.
    """
    with contextlib.suppress(Exception):  # who needs it looks again, and is told then
        if options.ranks.rank == 0:
            return begin(tells=not options.is_alone)
    return ""


def _hello(options: Options, lookup: Lookup) -> Word:
    capabilities, settings = compat.probe(), options.settings
    return {
        VERSION: __version__,
        "host": host_name()[:64],
        "ranks": options.ranks.to_json(),
        "tuning": compat.is_tuning(compat.tuner()),
        "version": capabilities.version,
        "lack": capabilities.lack,
        "keys_tell_options_apart": capabilities.keys_tell_options_apart,
        "factors": options.identity.with_factors(**environment.factors(lookup.stamp())).factors,
        "alike": lookup.is_alike,
        "takes": list(lookup.taken),
        "must_share": options.must_share,
        "require_agreement": settings.require_agreement,
        "session": secrets.token_hex(4),
        **{name: getattr(settings, name) for name in RANK_0S_SETTINGS},
    }


def _place(job: Job) -> None:
    """Find the directory, and hand it to the first rank of each node; without one, memory only."""
    options, directory, root, layers = job.options, None, None, list[Path]()
    roots: dict[str, Any] = {"argument": options.root, "engine_root": options.engine_root}
    parts: dict[str, Any] = {
        "version": compat.version(), "arch": environment.architecture(), "environ": os.environ,
    }  # fmt: skip
    try:
        job.placement = resolve(options.settings, job.identity.digest, **roots, **parts)
        directory, root = job.placement.directory, job.placement.root
        layers = [
            resolve(options.settings, job.identity.digest, argument=layer, **parts).directory
            for layer in options.settings.layers
        ]
    except PlacementError as error:
        job.warn(f"memory only: {error}")
    if directory is not None and not unsafe(directory, root or directory, options.settings):
        job.directory = directory
    if job.shares and job.meeting.rank in job.word["writers"]:
        job.store = Store(directory, options.settings, root=root, layers=layers)


def _open_journal(job: Job) -> None:
    """Let this rank keep what it finds out, whichever rank writes the table in the end."""
    if job.shares and job.word["mode"] == "on" and job.directory is not None:
        job.journal = Journal(
            job.directory, f"{job.word['session']}.{job.meeting.rank}",
            driver=environment.driver(), stamp=job.stamp,
        )  # fmt: skip
        job.stack.callback(job.journal.close)
