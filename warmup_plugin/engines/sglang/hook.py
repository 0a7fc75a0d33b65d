# SPDX-License-Identifier: Apache-2.0
"""What runs in the place of SGLang's `flashinfer_autotune_context`: the nine steps, around it.

Owns how SGLang's context becomes a session, over which ranks, and what they are called here; and
the proof that we are in at all, since SGLang logs a hook that fails and goes on. Whether the nine
steps run or SGLang's own context does, untouched, all ranks of the session decide together, and
`engines/attempt.py` says what a failure leads to. The body always runs, once: it is SGLang's. A
start has several such contexts; each is a session, over whom `stages.py` says.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from warmup_plugin.engines import gate
from warmup_plugin.engines.sglang import compat
from warmup_plugin.observability.exposition import left_alone

if TYPE_CHECKING:
    from pathlib import Path

    from warmup_plugin.observability.report import WarmupReport
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

#: The receipts of this process, one for each context; None where SGLang's own has run.
reports: list[WarmupReport | None] = []
_phases: Counter[str] = Counter()
_attempts: Counter[str] = Counter()
#: Why the next context is SGLang's own: one before it, of the same forward, could not go on.
_without: list[str] = []
#: Ops that cannot run on FlashInfer's default tactic, as found out here, and why.
_passed_through: dict[str, str] = {}
_is_hooked = False


def enter(module: Any) -> None:
    """Hook SGLang's context, unless this package may not act here."""
    global _is_hooked  # noqa: PLW0603  # SGLang would put a second hook around the first
    if _is_hooked:
        return
    settings = gate.usable_settings(
        "SGLang", compat.version(), compat.TESTED, compat.missing(module)
    )
    if settings is not None:
        _is_hooked = True
        compat.hook(_in_place_of(settings), _watching)


def watch_loading() -> None:
    """Have the fleet's process begun when SGLang begins to load its model; only where we are in."""
    if _is_hooked:
        compat.hook_loading(_before_loading)


def _before_loading(*_args: Any, **_kwargs: Any) -> None:
    gate.begin_with_loading(_rank)


def _rank() -> int:
    from warmup_plugin.engines.sglang import stages

    return stages.attempt().scope.rank


def _watching(own: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Run SGLang's warm-up forward; say so where it has not passed by us.

    Run it again, on every rank alike, where an op cannot take the survey's answer.
    """
    before = len(reports)
    while True:
        known = len(_passed_through)
        try:
            own(*args, **kwargs)
        except Exception:
            if len(_passed_through) > known:
                logger.warning(
                    "warmup-plugin: SGLang's forward runs again, an op is passed through"
                )
            elif not _without:
                raise
            continue
        break
    if len(reports) == before:
        logger.error(
            "warmup-plugin: SGLang has warmed up as without this package: its hook on %s is not "
            "there, as SGLang has logged before",
            compat.CONTEXT,
        )
        left_alone(("sglang", compat.version()), None)


def _in_place_of(settings: Settings) -> Callable[..., Any]:
    @contextlib.contextmanager
    def flashinfer_autotune_context(
        own: Any, model_runner: Any, *, run_lm_head: bool
    ) -> Iterator[None]:
        from warmup_plugin.engines.sglang import stages

        role = "draft" if model_runner.is_draft_worker else "target"
        phase = _phases[role]
        _phases[role] += 1
        reports.append(None)
        _attempts[f"{role} {phase}"] += 1
        name = f"{role} {phase}, attempt {_attempts[f'{role} {phase}']}"
        context = Context(own, model_runner, settings, run_lm_head=run_lm_head, phase=phase)
        try:
            with context.opened(name):
                yield
        except Exception as error:
            stages.part_unless(together=bool(context.is_over_all and context.outcome.retry))
            if _runs_again(context, error, settings):
                _phases[role] -= 1
                reports.pop()
            raise
        stages.part_unless(together=bool(context.is_over_all and context.outcome.report))
        reports[-1] = context.outcome.report

    return flashinfer_autotune_context


def _runs_again(context: Context, error: Exception, settings: Settings) -> bool:
    """Return whether SGLang's forward runs once more, on every rank alike; see `_watching`.

    Where an op cannot take the survey's answer it is passed through then; where a rank that lives
    cannot go on, SGLang's own context is opened.
    """
    from warmup_plugin.engines import attempt

    if retry := context.outcome.retry:
        _passed_through.update(retry)
        return True
    if context.is_without:  # SGLang's own
        return False
    attempt.follow(error, settings, "SGLang", of=context.attempt.scope.name)
    _without.append(str(error))
    return True


class Context:
    """One of SGLang's tuning contexts, as a session or as without this package."""

    def __init__(
        self,
        own: Any,
        model_runner: Any,
        settings: Settings,
        *,
        run_lm_head: bool,
        phase: int,
    ) -> None:
        from warmup_plugin.engines.sglang import stages
        from warmup_plugin.kernel_warmup import Session

        self.outcome = Session()
        self.is_without = False
        self.attempt = stages.attempt()
        self._own = own
        self._runner = model_runner
        self._run_lm_head = run_lm_head
        self._settings = settings
        self._phase = phase

    @property
    def is_over_all(self) -> bool:
        """Return whether it is a session of all ranks of the engine, or as good as that."""
        return self.attempt.is_over_all and not self.is_without

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[None]:
        """Open it by the nine steps, or as without us: the same on every rank of the scope."""
        from warmup_plugin.engines import attempt

        failure: Exception | str
        with contextlib.ExitStack() as stack:
            if _without:
                _without.clear()
                self.is_without = True
                stack.enter_context(self._without())
                yield
                return
            try:
                failure = self._enter(stack, name)
            except Exception as error:  # noqa: BLE001  # raised again where it is not ours
                failure = error
            if failure:
                self.is_without = True
                attempt.follow(failure, self._settings, "SGLang", of=self.attempt.scope.name)
                stack.enter_context(self._without())
            yield

    def _enter(self, stack: contextlib.ExitStack, name: str) -> str:
        """Enter a session over the first scope whose ranks fit together, or return why in none."""
        from warmup_plugin.errors import RefusedError
        from warmup_plugin.kernel_warmup import session

        while True:
            given, reason = self.attempt.prepared(
                lambda: self._given(stack), self._settings, name, self._roots
            )
            if reason:
                return reason
            # Ranks that cannot exchange tactics are left to SGLang, the stages each to themselves:
            # it has them measure in lock step, and so agree, where we could only let each choose
            # for itself. Over ranks that have other tactics its collectives do not fit together.
            is_last = self.attempt.is_last
            try:
                self.outcome = stack.enter_context(
                    session(**given, require_sharing=not is_last, may_keep_step=is_last)
                )
            except RefusedError as error:  # on every rank alike, before anything has been done
                if not self.attempt.narrow(error):
                    raise
                stack.close()
            else:
                return ""

    def _without(self) -> contextlib.AbstractContextManager[None]:
        """Return SGLang's own context."""
        context: contextlib.AbstractContextManager[None] = self._own(
            self._runner, run_lm_head=self._run_lm_head
        )
        return context

    def _given(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Return the arguments of `session`; what they need until its end goes on the stack."""
        from warmup_plugin.engines.sglang import stages
        from warmup_plugin.engines.sglang.engine_tables import own_tables
        from warmup_plugin.engines.sglang.identity import identity_of
        from warmup_plugin.tuner import compat as flashinfer
        from warmup_plugin.tuner.known_ops import known_ops

        self._refuse_what_is_not_ours()
        settings = self._settings
        if compat.has_symmetric_memory():
            settings = replace(settings, require_agreement=True)
        reuses = compat.reuses()
        given: dict[str, Any] = {}
        if _passed_through:
            given["ops"] = known_ops(flashinfer.version()).plus(pass_through=_passed_through)
        if not reuses:
            mode = "read-only" if settings.mode == "on" else settings.mode
            settings = replace(settings, mode=mode, layers=())
        elif compat.uses_megamoe(self._runner):
            from warmup_plugin.engines.sglang.megamoe import records_kept

            stack.enter_context(records_kept(self._runner))
        survey = compat.as_survey(self._own)
        return {
            "identity": identity_of(
                self._runner, phase=self._phase, races_default=compat.races_default(self._own)
            ),
            "ranks": stages.ranks(self._runner.gpu_id or 0),
            "settings": settings,
            **self._roots(),
            "engine": ("sglang", compat.version()),
            "extra_tables": own_tables(self._runner) if reuses else (),
            "keep_existing": True,  # of an earlier context, in whose graphs it is captured
            "tuning_context": lambda: survey(self._runner, run_lm_head=self._run_lm_head),
            **given,
        }

    def _roots(self) -> dict[str, Path | None]:
        from warmup_plugin.tuner import compat as flashinfer

        found = gate.engine_root(compat.ROOT_VARIABLE, compat.cache_root, self._settings)
        nowhere = None if compat.reuses() else flashinfer.NOWHERE  # nothing is read, or written
        return {"engine_cache_root": found, "cache_root": nowhere}

    def _refuse_what_is_not_ours(self) -> None:
        """Raise `RuntimeError` where SGLang must warm up as without this package."""
        if compat.is_elastic():
            raise RuntimeError("elastic experts: ranks come and go")
        if not compat.is_own(self._own):
            raise RuntimeError(f"another plugin has put a hook on {compat.CONTEXT}")
