# SPDX-License-Identifier: Apache-2.0
"""The nine steps of a warm-up, in the order they run. Read this file first.

    step        what each rank does                          what crosses ranks
    1 read      the first rank of a node reads its tables    nothing
    2 agree     identity, settings, environment, tables      words; a body once per distinct digest
    3 survey    the forward runs, choose_one intercepted     only the model's own collectives
    4 plan      who tunes what                               inventories to rank 0, the plan back
    5 tune      replays its own tasks                        NOTHING
    6 share     results merged, installed                    one table's bytes, sha256 checked
    7 prepare   builds winners it did not tune               nothing, then a bounded meeting
    8 publish   the first rank of a node writes the file     nothing
    9 certify   asks the tuner what it now serves            digests of the answers

The five clauses of the design, and where each is done:

    the cache path                          cache/paths.py `resolve`
    rank 0 tunes, one context, not nested   steps/tune.py `tune`, strategy ``leader``
    broadcast of the result to all ranks    steps/share.py `share`
    local rank 0 writes the file            steps/publish.py `publish`
    fallback: per-rank tuning, a barrier    steps/tune.py `tune_own`; steps/prepare.py

No collective is ever in flight while a tactic is being timed. A warm start takes the same steps
with an empty plan; where nothing at all is left to do, step 9 is part of step 3's meeting. Owns the
order; the work is in `steps/`, the rules in `decisions.py` and `plan.py`, the tuner in `tuner/`. A
cache fault never leaves `warm_up`: it ends in FlashInfer's defaults, with a reason and a warning.
What does: `SessionError` on every rank alike, the forward's own exception on its rank,
`RankLostError`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Unpack

from warmup_plugin.coordination.decisions import UNGUARDED, GoOn
from warmup_plugin.coordination.votes import EmptyVote
from warmup_plugin.errors import RuleError
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.steps.agree import Agreed, agree
from warmup_plugin.steps.certify import certify
from warmup_plugin.steps.context import Job
from warmup_plugin.steps.open_session import open_job
from warmup_plugin.steps.options import AnyPath, Arguments, Options, Progress, TuningContext
from warmup_plugin.steps.read import Held, read
from warmup_plugin.steps.survey import run_survey, surveying
from warmup_plugin.steps.work import Shared, Work
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
    root: AnyPath | None = None,
    engine_root: AnyPath | None = None,
    others: Iterable[Path] | None = None,
    ops: KnownOps | None = None,
    tuning_context: TuningContext | None = None,
    engine: tuple[str, str] = ("custom", "0"),
    progress: Progress | None = None,
    keep_loaded: bool = False,
    must_share: bool = False,
    may_keep_step: bool = False,
    link: StoreLink | None = None,
) -> WarmupReport:
    """Tune once, start warm everywhere: run ``forward`` as the survey and do the rest around it.

    Args:
        forward: the runner's own warm-up pass. Every rank of ``group`` calls it once, with the same
            collectives as in serving; again where an op cannot take a default tactic.
        identity: the config factors of model and engine; the environment's are added here.
        ranks: this rank's coordinates; without it and without ``group`` a process alone, which is
            refused where torch.distributed has more ranks.
        group: the ranks that warm up together, the default group without it. Used for one
            broadcast.
        settings: the settings; from the environment without it.
        root: CACHE_ROOT, before every other source; an absolute path.
        engine_root: the engine's own CACHE_ROOT; `paths.resolve` has the order.
        others: tables that an engine keeps itself: files FlashInfer can load, folders of its
            managed store. Iterated where there is no complete table yet, and read for the same
            environment; never written.
        ops: what is known about single ops; `known_ops` of the installed release without it.
        tuning_context: makes the context the forward runs in, ``autotune(True)`` without it;
            `contextlib.nullcontext` for a forward that opens its own.
        engine: name and version, for manifest and report.
        progress: called with step, task, tasks done and tasks in all while this rank tunes.
        keep_loaded: what the tuner of rank 0 holds already wins: for a second session in a process
            whose first one's winners are in captured graphs. All ranks must hold the same.
        must_share: open no session where the ranks cannot exchange tactics, whatever the reason.
        may_keep_step: open none there as long as all ranks have the same tactics, as far as their
            environments tell: for a runner that has the ranks time in lock step then, which agrees.
            Where they have not, that ends or hangs, and each rank tunes for itself here.
        link: the session's store, where the ranks have met on it already; ``group`` is not used.

    Raises:
        SettingError: a malformed setting, with variable, value and rule.
        RuleError: an argument that is not what it must be, with its name, value and rule.
        SessionError: the ranks cannot open a session or go on, and all of them live: on every rank
            alike, and each may warm up in another way.
        ForwardError: another rank's forward has failed; a `SessionError`.
        RankLostError: a rank is dead, stopped or cut off; on every rank that is left, naming it and
            its host. A collective with that rank does not end.
        Exception: what ``forward`` raised, on the rank where it did.
    """
    given = dict(locals())
    del given["forward"], given["identity"]
    options = Options.of(given, identity)  # type: ignore[arg-type]  # the arguments of this function
    if not callable(forward):
        raise RuleError("forward", forward, "a function without arguments")
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
        survey, surveyed = run_survey(job, agreed, forward)
        return _finish(job, held, agreed, survey, surveyed)


@contextlib.contextmanager
def session(*, identity: Identity, **arguments: Unpack[Arguments]) -> Iterator[Session]:
    """Do what `warm_up` does around the body of a ``with`` statement: the body is the forward.

    Takes the keyword arguments of `warm_up`. Yields a `Session`, which holds the report once the
    body has ended. The body always runs, once: an op that cannot take a default tactic fails it,
    and `Session.retry` names it.
    """
    options = Options.of(arguments, identity)
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


@dataclass
class Session:
    """What `session` yields. ``report`` is None until the body has ended."""

    report: WarmupReport | None = None
    surveyed: SurveyDecision | None = field(default=None, repr=False)

    @property
    def retry(self) -> dict[str, str]:
        """Return the op at which the body has failed on every rank alike, and why; else nothing.

        It cannot take a default tactic: the body may run in another session that passes it through.
        """
        found = self.surveyed
        return {found.op: found.reason} if found is not None and found.go == "retry" else {}


def _finish(
    job: Job, held: Held, agreed: Agreed, survey: Survey, surveyed: SurveyDecision
) -> WarmupReport:
    """Take steps 4 to 9; on a warm start the plan is empty and nothing is written."""
    if (certified := surveyed.certified) is not None:  # with step 3: nothing is left to do
        return make_report(job, survey, Work(), Shared(agreed.table, ""), certified)
    # A warm start imports nothing of what follows: that would cost it some milliseconds.
    from warmup_plugin.steps.plan import make_work
    from warmup_plugin.steps.prepare import prepare
    from warmup_plugin.steps.publish import publish
    from warmup_plugin.steps.share import share
    from warmup_plugin.steps.tune import tune
    from warmup_plugin.steps.verify_entries import try_stored

    fit = try_stored(job, agreed, survey) if surveyed.go == "plan" else {}
    work = make_work(job, agreed, survey, surveyed)
    work.fit = fit
    tune(job, survey, work)
    shared = share(job, agreed, survey, work)
    prepare(job, survey, work, shared)
    published = publish(job, held, agreed, shared, work)
    certified = certify(job, survey, work, shared, published)
    return make_report(job, survey, work, shared, certified)


def _certify_skipped(job: Job, agreed: Agreed) -> WarmupReport:
    """Take step 9 alone: the table is complete and all ranks skip the forward."""
    work, shared = Work(), Shared(agreed.table, "")
    certified = certify(job, None, work, shared, [], table_sha256=agreed.heading.table)
    return make_report(job, None, work, shared, certified)


@contextlib.contextmanager
def _unguarded(job: Job) -> Iterator[None]:
    """Let FlashInfer tune inside the body, as without this package, and meet afterwards."""
    with job.timed("unguarded"), job.in_forward(), job.options.tuning_context():
        yield
    job.coordinator.meet(UNGUARDED, EmptyVote(), lambda _votes: GoOn(go="on"))
