# SPDX-License-Identifier: Apache-2.0
"""Step 3: the engine's own warm-up forward, with ``choose_one`` intercepted.

Owns the interception and what it records. Every tunable call is answered with what the tuner
holds in loaded entries (the agreed table) or FlashInfer's default, and nothing is timed; calls that
cannot be recorded are passed through as they are. The interceptor is an attribute of the tuner
*object*: `AutoTuner.choose_one` stays FlashInfer's own function throughout, and the attribute is
gone when the survey ends. Errors of FlashInfer or the engine leave through the forward unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from warmup_plugin.cache.table import Entry, canonical_tactic
from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner import capture, compat
from warmup_plugin.tuner.batch_fields import BatchFields
from warmup_plugin.tuner.counters import OUT_OF_MEMORY
from warmup_plugin.tuner.intercepted_call import Asked, dynamic_inputs, shapes_of
from warmup_plugin.tuner.known_ops import KnownOps, distribution_aware
from warmup_plugin.tuner.profiles import Profiles
from warmup_plugin.tuner.task import (
    MOST_RIVALS,
    Call,
    Extras,
    Shapes,
    Switches,
    Task,
    canonical,
    may_differ,
    name_fields,
    numbers_of,
    options_of,
)
from warmup_plugin.tuner.task_summary import Answer, Tally
from warmup_plugin.tuner.task_table import Known, Register
from warmup_plugin.tuner.tuner_state import LoadedEntries

logger = logging.getLogger("warmup_plugin")


class Survey:
    """What one rank's forward asked of the tuner, which holds ``entries``, the agreed table's.

    ``tasks``: by id, in the order met. ``passed``: op -> why it was passed through. ``unrecorded``:
    op -> why a call of it could not be recorded. ``skipped``: ops that the engine's skip list takes
    out at every call; their stored entries are not installed either.
    ``adopted``: task id -> key of the old file's entry that answers it.
    Unless ``is_vouched``, stored tactics do not run in the forward: one that a runner refuses would
    leave the other ranks in a collective. They are run apart, in step 7, and only then served.
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
        passing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.tasks = Register()
        self.passed: dict[str, str] = {}
        self.unrecorded: dict[str, str] = {}
        self._skipped: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self.adopted: dict[str, str] = {}
        self.last_answered = ""
        self.budget = capture.Budget(clone_bytes)
        self._keys = keys
        self._ops = ops
        self._ranks = ranks
        self._is_default = is_default
        self._restore = restore
        self._entries = entries
        self._is_vouched = is_vouched
        self._passing = passing
        self.has_used_stored = self.last_was_stored = False
        self._tuner = compat.tuner()
        self._original = type(self._tuner).choose_one
        self._lock = threading.RLock()
        self._seen: set[tuple[Any, ...]] = set()
        self._marked: dict[Any, Any] = {}
        self._owner_of_key: dict[str, str] = {}
        self._pinned: dict[int, tuple[Any, str]] = {}
        self._answers: dict[Answer, Answer] = {}
        self._buckets: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._profiles = Profiles(self._tuner)
        self._batch_fields = BatchFields(self._profiles)
        self._tally: Tally | None = None

    def tally(self) -> Tally:
        """Return what the tasks add up to as the forward has left them; kept until it changes."""
        if self._tally is None:
            self._tally = self.tasks.tally()
        return self._tally

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

    @property
    def is_vouched(self) -> bool:
        """Return whether stored tactics run in the forward."""
        return self._is_vouched

    def distrust(self) -> None:
        """Run no stored tactic in the forward from now on: one of them may have made it fail."""
        self._is_vouched = self.has_used_stored = self.last_was_stored = False
        # The next forward records all anew: of what was vouched for nothing need be kept.
        self.tasks.clear()
        for noted in (self.adopted, self._seen, self._owner_of_key):
            noted.clear()
        self._tally = None

    def pass_through(self, op: str, reason: str) -> None:
        """Leave an op alone from now on; what was recorded of it is dropped."""
        self._ops = self._ops.plus(pass_through={op: reason})
        self.unrecorded.pop(op, None)
        self._tally = None
        for task in [task for task in self.tasks.values() if task.op == op]:
            del self.tasks[task.id]

    def skip(self, op: str) -> bool:
        """Leave an op on its default, as a skip list would; return whether it was recorded."""
        recorded = [task for task in self.tasks.values() if task.op == op]
        for task in recorded:
            del self.tasks[task.id]
        self._skipped.add(op)
        self._tally = None
        return bool(recorded)

    def unshare(self, reasons: Mapping[str, str]) -> None:
        """Take tasks for unshared that plan or tuning have found to be. ``reasons``: by task id."""
        for name, reason in reasons.items():
            if name in self.tasks:
                self._unshare(self.tasks[name], reason)

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
                self._record(custom_op, runners, config, inputs, kwargs)
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
        if not self._is_vouched:
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

    def _record(
        self, op: str, runners: list[Any], config: Any, inputs: list[Any], kwargs: dict[str, Any]
    ) -> None:
        asked = self._asked(op, runners, config, inputs, kwargs)
        if (mark := asked.mark(self._marked)) in self._seen:
            return
        self._seen.add(mark)
        self._tally = None
        keep = functools.cache(lambda: self._keep(asked))
        for shapes in asked.profiles:
            self._record_task(asked, keep, shapes)

    def _asked(
        self, op: str, runners: list[Any], config: Any, inputs: list[Any], kwargs: dict[str, Any]
    ) -> Asked:
        switches = [options_of(runner) for runner in runners]
        named, apart = [], ""
        for runner, its_switches in zip(runners, switches, strict=True):
            real = runner.get_cache_key_extras(inputs)
            fields = self._batch_fields.of((op, runner, its_switches), real, config, inputs)
            name = type(runner).__name__
            named.append((name, self._extras(op, real, fields.batch)))
            if fields.is_made_otherwise:
                apart = f"{name} has another key for the inputs that FlashInfer tunes with"
        places = canonical(named)
        if len({(name, extras.neutral) for name, extras in named}) < len(named):
            apart = "two of its runners have one file key"
        return Asked(
            op, runners, config, inputs, kwargs,
            find_profiles=lambda: self._profiles.of(config, inputs),
            places=places,
            named=[named[place] for place in places],
            switches=[switches[place] for place in places],
            numbers=[numbers_of(runners[place]) for place in places],
            options=compat.options_in_force(self._tuner),
            apart=self._ops.key_unstable.get(op, apart),
        )  # fmt: skip

    def _extras(self, op: str, real: tuple[Any, ...], batch: tuple[int, ...] = ()) -> Extras:
        fields = self._ops.twin_fields.get(op, {})
        # A rank without others along an axis has no twins there, and 0 is many things' number.
        own = {
            index: (name, int(getattr(self._ranks, name)))
            for index, name in fields.items()
            if getattr(self._ranks, f"{name.removesuffix('_rank')}_size", 2) > 1
        }
        return name_fields(real, own, batch)

    def _keep(self, asked: Asked) -> Call:
        """Copy what the replay will need, before the forward goes on and changes it."""
        copies = capture.Copies(self.budget)
        return Call(
            op=asked.op,
            runners=[copies.runner(r) for r in asked.runners],
            places=asked.places,
            config=copies.config(asked.config),
            inputs=copies.inputs(asked.inputs, dynamic_inputs(asked.config)),
            kwargs=copies.kwargs(asked.kwargs),
            options=asked.options,
            inference=torch.is_inference_mode_enabled(),
            stream=torch.cuda.current_stream() if torch.cuda.is_available() else None,
            width=asked.width,
        )

    def _record_task(self, asked: Asked, keep: Callable[[], Call], shapes: Shapes) -> None:
        profile = compat.nearest_profile(shapes, asked.config)
        name = bucket = asked.ids.at(profile)
        named = asked.keyed
        if asked.follows_batch:  # FlashInfer tunes each size of a bucket that it meets
            name, named = asked.ids.at(shapes), asked.keyed_at(shapes)
        file_key = self._keys.file_key
        keys = tuple([file_key(asked.op, runner, profile, extras) for runner, extras in named])
        if name not in self.tasks:
            shapes = profile if profile == shapes else shapes  # FlashInfer keeps that one anyway
            buckets = asked.buckets(shapes)
            buckets = self._buckets.setdefault(buckets, buckets)  # few differ
            task = Task(name, asked.op, keys, shapes, buckets, None, "missing")
            if asked.follows_batch:
                sized = (at for at, (_, extras) in enumerate(asked.named) if extras.follows_batch)
                task.bucket_id, task.sized = bucket, frozenset(sized)
                task.met = len(self.tasks)
            self._judge(task, asked, profile)
            self._take_in(task, asked, keep)
        elif (held := self.tasks.held(name)) is not None and held.call is not None:
            held.firsts |= {asked.places.index(0)}
            _keep_also(held, held.call, asked, keep)
        self._compare(name, bucket, keys, asked)

    def _take_in(self, task: Task, asked: Asked, keep: Callable[[], Call]) -> None:
        is_answered = task.state == "known" and self._is_vouched
        if is_answered and task.is_agreed and task.served is not None and not task.bucket_id:
            self.tasks.add_known(
                Known(task.id, task.op, task.keys, task.buckets, task.served), asked.switches
            )
            return
        task.switches = asked.switches
        if is_answered:
            task.shapes = ()  # of use to a replay only
        else:
            task.call, task.firsts = keep(), frozenset({asked.places.index(0)})
        self.tasks.add(task)

    def _compare(self, name: str, bucket: str, keys: tuple[str, ...], asked: Asked) -> None:
        """Find one file key with two runner lists or two runner configurations.

        Tasks of one ``bucket`` may share a key: its entry answers them all.
        """
        for key, switches in zip(keys, asked.switches, strict=True):
            first = self._owner_of_key.setdefault(key, bucket)
            if first == bucket:
                before = self.tasks.switches_of(name)[keys.index(key)]
                if before is not switches and before != switches:
                    self._unshare_for(self.tasks[name], before, switches)
                continue
            others = [t for t in self.tasks.values() if first in (t.id, t.bucket_id)]
            for task in (self.tasks[name], *others):
                self._unshare(task, "one file key is used by two runner lists")

    def _unshare_for(self, task: Task, before: Switches, switches: Switches) -> None:
        changed = sorted({name for name, _ in {*switches} ^ {*before}})
        self._unshare(task, f"one file key, runners that differ in {', '.join(changed)}")

    def _unshare(self, task: Task, reason: str) -> None:
        if task.state == "unshared":
            return
        task.state, task.reason = "unshared", reason
        self._tally = None
        if (task.op, reason) not in self._told:
            self._told.add((task.op, reason))
            logger.warning(
                "warmup-plugin: %s, and perhaps other sizes, is in no table: each rank tunes it "
                "for itself at every start: %s", task.label, reason,
            )  # fmt: skip

    def _judge(self, task: Task, asked: Asked, profile: Any) -> None:
        """Decide whether the agreed table answers the task, by FlashInfer's rule while tuning."""
        if asked.apart:
            self._unshare(task, asked.apart)
            return
        found, index, tactic = compat.look_up(
            self._tuner, task.op, asked.runners, task.shapes, asked.config, inputs=asked.inputs
        )
        entries = self._entries
        stored = [
            (at, entry) for at, key in enumerate(task.keys)
            if (entry := entries.get(key)) is not None
        ]  # fmt: skip
        place, held = stored[0] if len(stored) == 1 else (0, None)
        if held is not None and not compat.is_measured_as(asked.config, held.policy):
            held = None
        offers = None if held is None else self._offers(task, asked, place, held)
        if held is not None and offers is False:
            task.state = "refused"
            task.reason = f"{held.runner} does not offer tactic {held.tactic!r}"
        elif held is not None and (found or offers or asked.named[place][1].follows_batch):
            task.state = "known"
            # FlashInfer asks with the inputs at hand: their size is not the task's, which a runner
            # that can tell may refuse, and one whose key follows the batch looks elsewhere.
            runner = type(asked.runners[index]).__name__
            served = (runner, canonical_tactic(tactic)) if found else held[:2]
            task.is_agreed = served == held[:2]
            # Few answers differ; of equal ones one is kept, but to a dictionary True is 1.
            is_plain = type(served[1]) is int
            task.served = self._answers.setdefault(served, served) if is_plain else served
        elif self._is_default(task.id):
            task.state = "default"
        elif self._may_adopt(asked):
            legacy = [self._keys.legacy_key(task.op, name, profile) for name, _ in asked.named]
            old_keys = [
                old
                for new, old in zip(task.keys, legacy, strict=True)
                if new != old and old in self._entries
            ]
            if len(old_keys) == 1:
                self.adopted[task.id] = old_keys[0]

    @staticmethod
    def _offers(task: Task, asked: Asked, place: int, entry: Entry) -> bool | None:
        """Return whether an entry's runner still offers its tactic; None where it cannot tell.

        ``place``: of the entry's key among the task's.
        """
        runner = asked.runners[asked.places[place]]
        if type(runner).__name__ != entry.runner or not hasattr(runner, "validate_tactic"):
            return None
        inputs = asked.inputs
        if shapes_of(inputs) != task.shapes:  # what it says of another size is no answer
            try:
                inputs = asked.at(task.shapes)
            except OUT_OF_MEMORY:  # nothing speaks against it; FlashInfer asks again when it serves
                return True
        return compat.accepts(runner, inputs, entry.tactic)

    def _may_adopt(self, asked: Asked) -> bool:
        """Return whether an old file's entry, without extras and policy, can mean this call."""
        has_extras = any(extras.real for _, extras in asked.named)
        return not has_extras and compat.is_measured_as(asked.config, None)


def _keep_also(task: Task, kept: Call, asked: Asked, keep: Callable[[], Call]) -> None:
    """Keep of a further call of the task what its replay needs.

    The widest call is the best template: its buffers are large enough. Runners of the same key that
    may have other candidates are kept beside it, to compare.
    """
    calls = [kept, *task.rivals]
    same = (i for i, call in enumerate(calls) if not may_differ(asked.runners, call.runners))
    index = next(same, None)
    if index is None:
        task.rivals += (keep(),) if len(task.rivals) < MOST_RIVALS else ()
    elif calls[index].width < min(max(task.buckets, default=0), asked.width):
        calls[index] = keep()
        task.call, task.rivals = calls[0], tuple(calls[1:])
