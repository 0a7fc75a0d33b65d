# SPDX-License-Identifier: Apache-2.0
"""The nine steps of a warm-up, in the order they run. Read this file first.

    step        what each rank does                          what crosses ranks
    1 read      the first rank of a node reads its tables    nothing
    2 agree     identity, settings, environment, tables      votes; a body once per distinct digest
    3 survey    the forward runs, choose_one intercepted     only the model's own collectives
    4 plan      who tunes what; waits for another engine     inventories to rank 0, the plan back
    5 tune      replays its tasks: for all, or for itself    NOTHING
    6 share     results merged, installed                    one table's bytes, sha256 checked
    7 prepare   builds winners it did not tune               nothing, then a bounded round
    8 publish   the first rank of a node writes the file     nothing
    9 certify   asks the tuner what it now serves            digests of the answers

The five clauses of the design, and where each is done:

    the cache path                          cache/paths.py `resolve`
    rank 0 tunes, one context, not nested   steps/tune.py `tune`, strategy ``leader``
    broadcast of the result to all ranks    steps/share.py `share`
    local rank 0 writes the file            steps/publish.py `publish`
    fallback: per-rank tuning, a barrier    steps/tune.py `tune`; steps/prepare.py `prepare`

No collective is ever in flight while a tactic is being timed. A warm start takes the same steps
with an empty plan; where nothing at all is left to do, step 9 is part of step 3's round. Owns the
order; the work is in `steps/`, the rules in `decisions.py` and `plan.py`, the tuner in `tuner/`. A
cache fault never leaves `warm_up`: it ends in FlashInfer's defaults, with a reason and a warning.
What does: `SessionError` on every rank alike, `RankLostError`, and the forward's own exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Unpack

from warmup_plugin.coordination.decisions import UNGUARDED, GoOn
from warmup_plugin.coordination.votes import EmptyVote
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.steps.agree import Agreed, agree
from warmup_plugin.steps.certify import certify
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.open_session import open_job
from warmup_plugin.steps.options import (
    AnyPath,
    EngineInfo,
    FormerArguments,
    Options,
    Progress,
    TuningContext,
    check_forward,
)
from warmup_plugin.steps.read import Held, read
from warmup_plugin.steps.survey import run_survey, surveying
from warmup_plugin.steps.work import Work
from warmup_plugin.steps.write_report import make_report, off_report

if TYPE_CHECKING:
    from pathlib import Path

    import torch.distributed as dist

    from warmup_plugin.coordination.decisions import SurveyDecision
    from warmup_plugin.coordination.kv_client import StoreLink
    from warmup_plugin.identity import Identity
    from warmup_plugin.settings import Settings
    from warmup_plugin.topology import RankInfo
    from warmup_plugin.tuner.known_ops import KnownOps
    from warmup_plugin.tuner.survey import Survey


def warm_up(
    forward: Callable[[], object],
    *,
    identity: Identity,
    ranks: RankInfo | None = None,
    group: dist.ProcessGroup | None = None,
    settings: Settings | None = None,
    cache_root: AnyPath | None = None,
    engine_cache_root: AnyPath | None = None,
    extra_tables: Iterable[Path] | None = None,
    ops: KnownOps | None = None,
    tuning_context: TuningContext | None = None,
    engine: EngineInfo | tuple[str, str] = ("custom", "0"),
    progress: Progress | None = None,
    keep_existing: bool = False,
    require_sharing: bool = False,
    may_keep_step: bool = False,
    link: StoreLink | None = None,
    **former: Unpack[FormerArguments],
) -> WarmupReport:
    """Tune FlashInfer's kernels once for all ranks, or serve the table of an earlier start.

    Every rank calls this function at the same point: weights loaded, CUDA graphs not yet captured.

    Args:
        forward: the runner's own warm-up pass, a function without arguments. Every rank calls it
            once, with the shapes and the collectives of serving; again where an op cannot take a
            default tactic.
        identity: the config factors of model and engine, from `Identity.of`; the same on all ranks.
            The factors of the environment are added here. Where ranks differ, rank 0's are used and
            a warning names the factors.
        ranks: this rank's coordinates among the ranks that warm up together, from the launcher.
            Without it and without ``group`` this process warms up alone, which is refused where
            torch.distributed has more ranks.
        group: the process group of the ranks that warm up together; the default group by default.
            One broadcast and a roll call use it, so its time-out may be shorter than the tuning.
        settings: the settings; `Settings.from_env` reads them from the environment by default.
        cache_root: the directory that holds the tables, an absolute path. It comes before the
            settings and before ``engine_cache_root``.
        engine_cache_root: the directory in which the engine keeps its own caches. The user's
            settings come before it; a relative one costs the files, with a warning, not the start.
        extra_tables: tables that the engine keeps itself: files that FlashInfer can load, and
            folders of its managed store. They are read where there is no complete table yet, for
            the same environment only, and never written.
        ops: what is known about single ops; `known_ops` of the installed release by default.
        tuning_context: a function that makes the context in which the forward runs;
            ``autotune(True)`` by default, `contextlib.nullcontext` for a forward with its own.
        engine: the engine's name and version, for manifest, receipt and figures.
        progress: called as ``progress(step, task, tasks_done, tasks_in_all)`` on the rank that
            tunes. It replaces this package's own line on the terminal.
        keep_existing: True keeps what rank 0's tuner holds already in place of a table's entries:
            for a second session of a process that has captured the first one's winners in graphs.
            All ranks must hold the same.
        require_sharing: True opens no session where the ranks cannot exchange tactics.
        may_keep_step: True opens no session where the ranks cannot exchange tactics and all have
            the same ones, as far as their environments show: for a runner whose own tuning has the
            ranks measure in lock step then. Where they differ, each rank tunes for itself here.
        link: a connection to the session's store, where the engine's adapter has opened one;
            ``group`` is not used then.
        **former: former names of these arguments, each with a `DeprecationWarning`.

    Returns:
        The receipt of this rank's session, with tasks, seconds by step, agreement and files.

    Raises:
        SettingError: a setting is malformed; the error has variable, value and rule.
        RuleError: an argument breaks its rule; the error has name, value and rule.
        TypeError: an argument has a name that this function does not know.
        SessionError: the ranks cannot open a session or go on, and all of them live. Every rank
            raises it with the same reason, and may warm up in another way.
        ForwardError: the forward of another rank failed. It is a `SessionError`.
        LateError: this rank failed when the other ranks served the agreed table already.
        RankLostError: a rank is dead, stopped or cut off. Every rank that is left raises it; it
            names the rank and its host. A collective with that rank does not end.
        Exception: what ``forward`` raised, on the rank where it did.
    """
    given = dict(locals())
    del given["forward"]
    options = Options.of(given)
    check_forward(forward)
    if options.settings.mode == "off":
        forward()
        return off_report(options)
    with open_job(options) as job:
        if job.is_unguarded:
            with _unguarded(job):
                forward()
            return make_report(job)
        held = read(job)
        agreed = agree(job, held)
        if job.opened.on_hit == "skip" and agreed.may_skip:
            return _certify_skipped(job, agreed)
        agreed, survey, surveyed = run_survey(job, agreed, forward)
        return _finish(job, held, agreed, survey, surveyed)


@contextlib.contextmanager
def session(
    *,
    identity: Identity,
    ranks: RankInfo | None = None,
    group: dist.ProcessGroup | None = None,
    settings: Settings | None = None,
    cache_root: AnyPath | None = None,
    engine_cache_root: AnyPath | None = None,
    extra_tables: Iterable[Path] | None = None,
    ops: KnownOps | None = None,
    tuning_context: TuningContext | None = None,
    engine: EngineInfo | tuple[str, str] = ("custom", "0"),
    progress: Progress | None = None,
    keep_existing: bool = False,
    require_sharing: bool = False,
    may_keep_step: bool = False,
    link: StoreLink | None = None,
    **former: Unpack[FormerArguments],
) -> Iterator[Session]:
    """Do what `warm_up` does around the body of a ``with`` statement: the body is the forward.

    The body runs once, always. Where an op cannot take a default tactic, the body fails, and
    `Session.retry` names the op: the body may run in another session that passes it through.

    Args:
        identity: the config factors of model and engine. `warm_up` says more about each argument.
        ranks: this rank's coordinates among the ranks that warm up together.
        group: the process group of these ranks; the default group by default.
        settings: the settings; from the environment by default.
        cache_root: the directory that holds the tables, an absolute path.
        engine_cache_root: the directory in which the engine keeps its own caches.
        extra_tables: tables that the engine keeps itself; they are read and never written.
        ops: what is known about single ops; `known_ops` of the installed release by default.
        tuning_context: a function that makes the body's context; ``autotune(True)`` by default.
        engine: the engine's name and version.
        progress: called as ``progress(step, task, tasks_done, tasks_in_all)``.
        keep_existing: True keeps what rank 0's tuner holds already.
        require_sharing: True opens no session where the ranks cannot exchange tactics.
        may_keep_step: True opens none there as long as all ranks have the same tactics.
        link: a connection to the session's store, where the engine's adapter has opened one.
        **former: former names of these arguments, each with a `DeprecationWarning`.

    Yields:
        A `Session`, which holds the report once the body has ended.

    Raises:
        SettingError, RuleError, TypeError: as in `warm_up`, before the body runs.
        SessionError, ForwardError, LateError, RankLostError: as in `warm_up`.
        Exception: what the body raised, on the rank where it did.
    """
    options = Options.of(dict(locals()), function="session")
    outcome = Session()
    if options.settings.mode == "off":
        yield outcome
        outcome.report = off_report(options)
        return
    with open_job(options) as job:
        if job.is_unguarded:
            with _unguarded(job):
                yield outcome
            outcome.report = make_report(job)
            return
        held = read(job)
        agreed = agree(job, held)
        with surveying(job, agreed, partial(setattr, outcome, "surveyed")) as survey:
            yield outcome
        assert outcome.surveyed is not None
        outcome.report = _finish(job, held, agreed, survey, outcome.surveyed)


class Session:
    """What `session` yields.

    Attributes:
        report: the receipt of this rank's session, None until the body has ended.
    """

    def __init__(self, report: WarmupReport | None = None) -> None:
        self.report = report
        self.surveyed: SurveyDecision | None = None

    @property
    def retry(self) -> dict[str, str]:
        """The op that cannot take a default tactic, with the reason; empty where there is none.

        The body has failed in that op on every rank alike. It may run in another session that
        passes the op through: ``ops=known_ops(...).plus(pass_through=warming.retry)``.
        """
        found = self.surveyed
        return {found.op: found.reason} if found is not None and found.go == "retry" else {}


def _finish(
    job: Job, held: Held, agreed: Agreed, survey: Survey, surveyed: SurveyDecision
) -> WarmupReport:
    """Take steps 4 to 9; on a warm start the plan is empty and nothing is written."""
    if (certified := surveyed.certified) is not None:  # with step 3: nothing is left to do
        return make_report(job, survey, Work(), agreed.cached, certified)
    # A warm start imports nothing of what follows: that would cost it some milliseconds.
    from warmup_plugin.steps.plan import make_work
    from warmup_plugin.steps.prepare import prepare
    from warmup_plugin.steps.publish import publish
    from warmup_plugin.steps.share import share
    from warmup_plugin.steps.tune import tune, tune_again
    from warmup_plugin.steps.verify_entries import try_stored

    fit = try_stored(job, agreed, survey) if surveyed.go == "plan" else {}
    work = make_work(job, agreed, survey, surveyed)
    work.fit = fit
    failure = tune(job, survey, work)  # of this rank alone, until a vote tells of it
    shared, failure = share(job, agreed, survey, work, failure)
    failure = failure or tune_again(job, survey, work)
    failure = prepare(job, survey, work, shared, failure)
    published = publish(job, held, agreed, shared, work)
    certified = certify(job, survey, work, shared, published, failure=failure)
    return make_report(job, survey, work, shared, certified)


def _certify_skipped(job: Job, agreed: Agreed) -> WarmupReport:
    """Take step 9 alone: the table is complete and all ranks skip the forward."""
    certified = certify(job, None, Work(), agreed.cached, [], table_sha256=agreed.heading.table)
    return make_report(job, None, Work(), agreed.cached, certified)


@contextlib.contextmanager
def _unguarded(job: Job) -> Iterator[None]:
    """Let FlashInfer tune inside the body, as without this package, and meet afterwards."""
    with job.timed("unguarded"), job.in_forward(), job.options.tuning_context():
        yield
    job.coordinator.meet(UNGUARDED, EmptyVote(), lambda _votes: GoOn(go="on"))
