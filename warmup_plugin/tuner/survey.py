# SPDX-License-Identifier: Apache-2.0
"""Step 3: the engine's own warm-up forward, with ``choose_one`` intercepted.

Owns the interception; what is recorded is `recorder.py`'s. Every tunable call is answered with what
the tuner holds in loaded entries (the agreed table) or FlashInfer's default, and nothing is timed;
calls that cannot be recorded are passed through as they are. The interceptor is an attribute of the
tuner *object*: `AutoTuner.choose_one` stays FlashInfer's own function throughout, and the attribute
is gone when the survey ends. Errors of FlashInfer or the engine leave through the forward
unchanged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from warmup_plugin.cache.table import Entry
from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.intercepted_call import shapes_of
from warmup_plugin.tuner.known_ops import KnownOps, distribution_aware
from warmup_plugin.tuner.recorder import Recorder
from warmup_plugin.tuner.table_answer import TableAnswers
from warmup_plugin.tuner.task import Task
from warmup_plugin.tuner.task_summary import Tally
from warmup_plugin.tuner.tuner_state import LoadedEntries


class Survey:
    """What one rank's forward asked of the tuner, which holds ``entries``, the agreed table's.

    ``tasks``: by id, in the order met. ``passed``: op -> why it was passed through. ``unrecorded``:
    op -> why a call of it could not be recorded. ``skipped``: ops that the engine's skip list takes
    out at every call; their stored entries are not installed either.
    ``adopted``: task id -> key of the old file's entry that answers it.
    Unless ``is_vouched``, stored tactics do not run in the forward: one that a runner refuses would
    leave the other ranks in a collective. They are tried before step 4, and only then served.
    ``is_checked``: of which known tasks the call is kept all the same.
    """

    def __init__(
        self,
        keys: compat.Keys,
        ops: KnownOps,
        ranks: RankInfo,
        *,
        clone_bytes: int,
        is_default: Callable[[str], bool],
        restore: Callable[[], bool],
        entries: Mapping[str, Entry] | LoadedEntries,
        is_vouched: bool = True,
        is_checked: Callable[[Task], bool] = lambda _task: False,
        passing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._tuner = compat.tuner()
        answers = TableAnswers(self._tuner, keys, entries, is_default)
        self._recorder = Recorder(
            self._tuner, keys, ops, ranks, answers, clone_bytes=clone_bytes, is_vouched=is_vouched,
            is_checked=is_checked,
        )  # fmt: skip
        self.tasks, self.adopted = self._recorder.tasks, answers.adopted
        self.passed: dict[str, str] = {}
        self.unrecorded: dict[str, str] = {}
        self._skipped: set[str] = set()
        self.last_answered = ""
        self.has_used_stored = self.last_was_stored = False
        self._ops = ops
        self._restore, self._passing = restore, passing
        self._original = type(self._tuner).choose_one
        self._lock = threading.RLock()
        self._pinned: dict[int, tuple[Any, str]] = {}

    @contextlib.contextmanager
    def intercept(self) -> Iterator[None]:
        """Answer every ``choose_one`` of the body from the agreed table, and record it."""
        self.last_answered = ""
        self._tuner.choose_one = self._choose_one
        try:
            yield
        finally:
            del self._tuner.choose_one

    @property
    def skipped(self) -> set[str]:
        """The ops that were met and never recorded, as a skip list has them.

        An op that is recorded elsewhere was skipped by a context round single calls: those keep
        the default in the warm-up, as FlashInfer has it, and the op is tuned for the others.
        """
        return self._skipped - set(self.tally().ops)

    def tally(self) -> Tally:
        """Return what the tasks add up to as the forward has left them."""
        return self._recorder.tally()

    @property
    def is_vouched(self) -> bool:
        """Return whether stored tactics run in the forward."""
        return self._recorder.is_vouched

    def distrust(self) -> None:
        """Run no stored tactic in the forward from now on: one of them may have made it fail."""
        self.has_used_stored = self.last_was_stored = False
        self._recorder.distrust()

    def pass_through(self, op: str, reason: str) -> None:
        """Leave an op alone from now on; what was recorded of it is dropped."""
        self._ops = self._ops.plus(pass_through={op: reason})
        self.unrecorded.pop(op, None)
        self._recorder.drop(op)

    def skip(self, op: str) -> bool:
        """Leave an op on its default, as a skip list would; return whether it was recorded."""
        self._skipped.add(op)
        return self._recorder.drop(op)

    def shared_keys(self) -> set[str]:
        """Return the file keys of all tasks but those that each rank tunes for itself."""
        return {key for t in self.tasks.values() if t.state != "unshared" for key in t.keys}

    def unshare(self, reasons: Mapping[str, str]) -> None:
        """Take tasks for unshared that plan or tuning have found to be. ``reasons``: by task id."""
        self._recorder.unshare(reasons)

    def _choose_one(
        self,
        custom_op: str,
        runners: list[Any],
        tuning_config: Any,
        inputs: list[Any],
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        call = (self._tuner, custom_op, runners, tuning_config, inputs)
        with self._lock:  # whoever holds it may have put the mode aside for a moment
            is_tuning = self._tuner.is_tuning_mode
        if not is_tuning:
            return self._pass(call, kwargs)
        reason = self._why_not(custom_op, runners, kwargs)
        if custom_op in compat.skipped_ops(self._tuner) and runners:
            self._skipped.add(custom_op)
            # FlashInfer's own answer, before which 0.7.4 meets the other ranks of its tuning group:
            # they are there where the op is passed through, and nowhere else.
            return self._pass(call, kwargs) if reason else (runners[0], -1)
        if reason:
            self.passed.setdefault(custom_op, reason)
            return self._pass(call, kwargs)
        with self._lock:
            self.last_answered = custom_op
            try:
                self._restore()
                config = compat.effective_config(self._tuner, tuning_config)
                self._recorder.record(custom_op, runners, config, inputs, kwargs)
            except Exception as error:  # noqa: BLE001  # of no concern to the engine: the op is left to FlashInfer
                self.unrecorded.setdefault(custom_op, f"{type(error).__name__}: {error}"[:400])
                return runners[0], -1
            return self._answer(custom_op, runners, config, inputs)

    def _pass(self, call: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        with self._passing():
            answer: tuple[Any, Any] = self._original(*call, **kwargs)
        return answer

    def _answer(
        self, op: str, runners: list[Any], config: Any, inputs: list[Any]
    ) -> tuple[Any, Any]:
        if not self.is_vouched:
            return runners[0], -1
        found, index, tactic = compat.look_up(
            self._tuner, op, runners, shapes_of(inputs), config, inputs=inputs
        )
        self.last_was_stored = bool(found)
        self.has_used_stored |= self.last_was_stored
        return (runners[index], tactic) if found else (runners[0], -1)

    def _why_not(self, op: str, runners: list[Any], kwargs: Mapping[str, Any]) -> str:
        """Return why a call cannot be recorded, or an empty string."""
        if reason := self._ops.pass_through.get(op):
            return reason
        if reason := distribution_aware(op):
            return reason
        if reason := compat.store_or_policy_in_force(self._tuner):
            return reason
        if reason := compat.options_in_force(self._tuner).unknown:
            return reason
        for part in (*runners, *kwargs.values()):
            if reason := self._group_inside(part):
                return reason
        return ""

    def _group_inside(self, part: Any) -> str:
        """Return a reason where an object holds a process group: its tactics may be collective."""
        pinned = self._pinned.get(id(part))
        if pinned is None:
            state = [part, *getattr(part, "__dict__", {}).values()]
            groups = [x for x in state if isinstance(x, torch.distributed.ProcessGroup)]
            reason = f"{type(part).__name__} holds a process group" if groups else ""
            # The object is kept as long as its id is: a new object may get an old one's id.
            pinned = self._pinned[id(part)] = (part, reason)
        return pinned[1]
