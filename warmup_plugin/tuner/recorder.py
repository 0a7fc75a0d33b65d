# SPDX-License-Identifier: Apache-2.0
"""The tasks of the calls that a survey intercepts.

Owns what becomes of a call that is recorded: its tasks, what of it is copied for their replay, and
whether tasks that share a file key can share a winner. Reads FlashInfer, and answers no call.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner import capture, compat
from warmup_plugin.tuner.batch_fields import BatchFields
from warmup_plugin.tuner.intercepted_call import Asked, dynamic_inputs
from warmup_plugin.tuner.known_ops import KnownOps, own_numbers
from warmup_plugin.tuner.profiles import Profiles
from warmup_plugin.tuner.table_answer import TableAnswers
from warmup_plugin.tuner.task import (
    MOST_RIVALS,
    Call,
    Shapes,
    Switches,
    Task,
    canonical,
    may_differ,
    name_fields,
    numbers_of,
    options_of,
)
from warmup_plugin.tuner.task_summary import Tally
from warmup_plugin.tuner.task_table import Known, Register

logger = logging.getLogger("warmup_plugin")


class Recorder:
    """What is recorded of one rank's forward. ``tasks``: by id, in the order met.

    Unless ``is_vouched``, calls are kept also of tasks that the agreed table answers: its tactics
    are tried apart before they are served. ``is_checked``: of which others they are kept, too.
    ``clone_bytes``: how much may be copied, which ``budget`` keeps count of.
    """

    def __init__(
        self,
        tuner: Any,
        keys: compat.Keys,
        ops: KnownOps,
        ranks: RankInfo,
        answers: TableAnswers,
        *,
        clone_bytes: int,
        is_vouched: bool,
        is_checked: Callable[[Task], bool],
    ) -> None:
        self.tasks = Register()
        self.is_vouched, self._is_checked = is_vouched, is_checked
        self.budget = capture.Budget(clone_bytes)
        self._tuner, self._keys, self._answers = tuner, keys, answers
        self._ops, self._ranks = ops, ranks
        self._told: set[tuple[str, str]] = set()
        self._seen: set[tuple[Any, ...]] = set()
        self._marked: dict[Any, Any] = {}
        self._owner_of_key: dict[str, str] = {}
        self._buckets: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._profiles = Profiles(tuner)
        self._batch_fields = BatchFields(self._profiles)
        self._tally: Tally | None = None

    def tally(self) -> Tally:
        """Return what the tasks add up to as the forward has left them; kept until it changes."""
        if self._tally is None:
            self._tally = self.tasks.tally()
        return self._tally

    def distrust(self) -> None:
        """Record all anew, and with its calls: of what was vouched for nothing need be kept."""
        self.is_vouched = False
        self.tasks.clear()
        for noted in (self._answers.adopted, self._seen, self._owner_of_key):
            noted.clear()
        self._tally = None

    def drop(self, op: str) -> bool:
        """Forget the tasks of an op; return whether there were any."""
        recorded = [task.id for task in self.tasks.values() if task.op == op]
        for name in recorded:
            del self.tasks[name]
        self._tally = None
        return bool(recorded)

    def unshare(self, reasons: Mapping[str, str]) -> None:
        """Take tasks for unshared that plan or tuning have found to be. ``reasons``: by task id."""
        for name, reason in reasons.items():
            if name in self.tasks:
                self._unshare(self.tasks[name], reason)

    def record(
        self, op: str, runners: list[Any], config: Any, inputs: list[Any], kwargs: dict[str, Any]
    ) -> None:
        """Take in the tasks of an intercepted call, of which nothing is copied that need not be."""
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
        own = own_numbers(self._ops, op, self._ranks)
        named, apart = [], ""
        for runner, its_switches in zip(runners, switches, strict=True):
            real = runner.get_cache_key_extras(inputs)
            fields = self._batch_fields.of((op, runner, its_switches), real, config, inputs)
            name = type(runner).__name__
            named.append((name, name_fields(real, own, fields.batch)))
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
            if asked.apart:
                self._unshare(task, asked.apart)
            else:
                self._answers.judge(task, asked, profile)
            self._take_in(task, asked, keep)
        elif (held := self.tasks.held(name)) is not None and held.call is not None:
            held.firsts |= {asked.places.index(0)}
            _keep_also(held, held.call, asked, keep)
        self._compare(name, bucket, keys, asked)

    def _take_in(self, task: Task, asked: Asked, keep: Callable[[], Call]) -> None:
        is_answered = task.state == "known" and self.is_vouched and not self._is_checked(task)
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
