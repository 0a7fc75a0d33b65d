# SPDX-License-Identifier: Apache-2.0
"""What `test_survey.py` runs in processes of their own: functions of an engine, for `launch`."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import flashinfer
import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, autotune

from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.engines.embedded.parallel import tuning_over
from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.kernel_warmup import Session
from warmup_plugin.observability.serving import serving_fallbacks
from warmup_plugin.settings import Settings
from warmup_plugin.tuner.known_ops import KNOWN_OPS

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.logs import logged
from tests.tuner import child, toys
from tests.tuner.toys import FLOOR, WEIGHT, RawBatch, Toy, call, rows, toy_call

#: Long enough for another rank to leave.
_LATE_S = 0.3


class Failing(Toy):
    """Fails as ``error`` says while it is tuned, and works with tactic -1."""

    error: type[Exception] = ValueError

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        if tactic != -1:
            raise self.error("planted")
        super().run(inputs, tactic, **kwargs)


class NoDefault(Toy):
    """Cannot run the default tactic."""

    def run(self, inputs: list[Any], tactic: Any, **kwargs: Any) -> None:
        if tactic == -1:
            raise ValueError(f"{self.op} needs a tactic")
        super().run(inputs, tactic, **kwargs)


class ByClass(Toy):
    """Tells the tuner's memory nothing but its class apart, as FlashInfer's MLA runners do."""

    def __hash__(self) -> int:
        return hash(type(self))


def planted_pair(engine: Engine) -> Any:
    """Two runners of one key: a flag differs in one op, a name in another; a third is clean."""

    def forward() -> None:
        for flag in (True, False):
            toy_call("flag", swizzled=flag)
        for name in ("silu", "gelu"):
            toy_call("name", activation=name)
        toy_call("clean", batch=4)

    return child.warm(engine, forward), child.saved()


def one_flag(engine: Engine) -> Any:
    """One runner of the pair, alone."""

    def forward() -> None:
        toy_call("flag", swizzled=True)
        toy_call("clean", batch=4)

    return child.warm(engine, forward)


def two_lists(engine: Engine) -> Any:
    """One op called with two runner lists: a key belongs to both."""

    def forward() -> None:
        call("lists", [Toy("lists"), toys.Other("lists")], FLOOR)
        call("lists", [Toy("lists")], FLOOR)

    return child.warm(engine, forward)


def lists_of_two_ranks(engine: Engine) -> Any:
    """As `two_lists`, but no rank sees both."""
    runners = [Toy("lists"), toys.Other("lists")]

    def forward() -> None:
        call("lists", runners[engine.ranks.rank :], FLOOR)
        toy_call("clean")

    return child.warm(engine, forward)


def rivals(engine: Engine, batches: tuple[int, int]) -> Any:
    """Two runners of one key that differ in a number: in one op so do their candidates."""

    def forward() -> None:
        for number, batch in enumerate(batches):
            call("same", [Toy("same", number=number)], FLOOR, rows(batch), WEIGHT)
            tactics = tuple(range(2 + number))
            call(
                "rivals",
                [Toy("rivals", tactics=tactics, number=number)],
                FLOOR,
                rows(batch),
                WEIGHT,
            )
            call("by class", [ByClass("by class", number=number)], FLOOR, rows(batch), WEIGHT)

    return child.warm(engine, forward)


def unstable(engine: Engine, batches: Sequence[int]) -> Any:
    """An op whose key holds the raw batch, which is a bucket or is not; beside a sound op."""

    def forward() -> None:
        for batch in batches:
            call("raw", [RawBatch("raw")], FLOOR, rows(batch), WEIGHT)
        toy_call()

    report, held = child.warm(engine, forward), child.saved()
    served = {
        batch: AutoTuner.get().choose_one("raw", [RawBatch("raw")], FLOOR, [rows(batch), WEIGHT])[1]
        for batch in (1, 4, 7, 16, 50, 64, 100)
    }
    return report, held, served


def single_row(engine: Engine) -> Any:
    """An op with the batch in its key at one row first, then at more."""

    def up_to(batch: int) -> tuple[int, ...]:
        return tuple(bucket for bucket in toys.BUCKETS if bucket <= batch)

    spec = replace(FLOOR.dynamic_tensor_specs[0], gen_tuning_buckets=up_to)
    config = replace(FLOOR, dynamic_tensor_specs=(spec,))

    def forward() -> None:
        for batch in (1, 100):
            call("raw", [RawBatch("raw")], config, rows(batch), WEIGHT)

    return child.warm(engine, forward)


class Unlisted(Toy):
    """A runner that finds no memory for listing its tactics."""

    def get_valid_tactics(self, *_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("planted")


def winnerless(engine: Engine, ops: Sequence[str], *, is_sound: bool = False) -> Any:
    """Ops that come to nothing, each in its way, unless ``is_sound``; and one that is sound."""

    def no_memory(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("planted")

    starved = replace(FLOOR, tensor_initializers=((0, no_memory),))

    def failing(name: str, error: type[Exception]) -> Failing:
        runner = Failing(name)
        runner.error = error
        return runner

    calls: dict[str, tuple[Any, Any]] = {
        "fails": (failing("fails", ValueError), FLOOR),
        "memory": (failing("memory", MemoryError), FLOOR),
        "oom": (failing("oom", torch.cuda.OutOfMemoryError), FLOOR),
        "starved": (Toy("starved"), starved),
        "unlisted": (Unlisted("unlisted"), FLOOR),
        "nothing": (Toy("nothing", tactics=()), FLOOR),
    }

    def forward() -> None:
        for op in ops:
            runner, config = calls[op]
            if is_sound:
                runner, config = Toy(op), FLOOR
                runner.__class__ = type(calls[op][0].__class__.__name__, (Toy,), {})
            call(op, [runner], config)
        toy_call()

    return child.warm(engine, forward)


class Hungry(Toy):
    """Tactics of known times; one of them finds no memory."""

    hungry = 0

    @staticmethod
    def may_fail() -> bool:
        """Whether this is a measurement, not the forward."""
        tuner = AutoTuner.get()
        return bool(tuner.is_tuning_mode) and "choose_one" not in vars(tuner)

    def run(self, inputs: list[Any], tactic: Any, **_kwargs: Any) -> None:
        del inputs
        if tactic == self.hungry and self.may_fail():
            raise torch.cuda.OutOfMemoryError("planted")
        toys.let_time_pass({-1: 9.0, 0: 1.0, 1: 2.0, 2: 1.5}[tactic])


class HungryDefault(Hungry):
    hungry = -1


def one_out_of_memory(engine: Engine) -> Any:
    """The fastest tactic finds no memory; the default finds none. With a margin it is timed."""
    one = Hungry("one", tactics=(0, 1, 2))
    default = HungryDefault("default", tactics=(1,))

    def forward() -> None:
        call("one", [one], toys.STATIC, rows(100), WEIGHT)
        call("default", [default], toys.STATIC, rows(100), WEIGHT)

    report = child.warm(engine, forward, settings=Settings.from_env(margin=0.03))
    served = {
        op: AutoTuner.get().choose_one(op, [runner], toys.STATIC, [rows(100), WEIGHT])[1]
        for op, runner in (("one", one), ("default", default))
    }
    return report, served


def two_tactics(engine: Engine) -> Any:
    report = child.warm(engine, lambda: toy_call(tactics=(0, 1)))
    return report, {bucket: toy_call(batch=bucket)[1] for bucket in toys.BUCKETS}


class CudnnToy(Toy):
    """FlashInfer loads no integer tactic of a class of this name."""


def odd_tactics(engine: Engine) -> Any:
    odd = Toy("odd", tactics=(object(),))
    cudnn = CudnnToy("cudnn", tactics=(1,))

    def forward() -> None:
        call("odd", [odd], FLOOR)
        call("cudnn", [cudnn], FLOOR)
        toy_call()

    report, choose = child.warm(engine, forward), AutoTuner.get().choose_one
    _, tactic = choose("odd", [odd], FLOOR, [rows(16), WEIGHT])
    _, number = choose("cudnn", [cudnn], FLOOR, [rows(16), WEIGHT])
    return report, {"odd": type(tactic).__name__, "cudnn": number}


def passed_through(engine: Engine) -> Any:
    """A listed op, a runner and a keyword that hold a process group; FlashInfer tunes these."""
    ops = KNOWN_OPS.plus(pass_through={"listed": "planted"})
    group = dist.group.WORLD

    def forward() -> None:
        toy_call("listed")
        toy_call("runner", group=group)
        call("keyword", [Toy("keyword")], FLOOR, group=group)
        toy_call()

    with tuning_over(group):
        report = child.warm(engine, forward, ops=ops)
    return report, child.saved(), child.left_behind()


def no_default(engine: Engine, raise_on: tuple[int, ...]) -> Any:
    """One op raises on the default tactic, on some ranks; it comes second of three."""
    runs = []

    def forward() -> None:
        runs.append(1)
        toy_call("first")
        kind = NoDefault if engine.ranks.rank in raise_on else Toy
        call("picky", [kind("picky")], FLOOR)
        toy_call("last")

    try:
        report = child.warm(engine, forward)
    except Exception as error:  # noqa: BLE001  # the parent looks at it
        return type(error).__name__, str(error), len(runs), child.saved()
    return report, len(runs), child.saved(), child.left_behind()


def no_default_in_a_body(engine: Engine, late: int) -> Any:
    """One op raises on the default tactic, in a body; a rank is late to look who is still there."""
    if engine.ranks.rank == late:
        own, names = Coordinator.confirm, cast("Any", Coordinator)

        def confirm(self: Coordinator) -> None:
            time.sleep(_LATE_S)
            own(self)

        names.confirm = confirm
    outcome = Session()
    try:
        with child.warming(engine) as outcome:
            call("picky", [NoDefault("picky")], FLOOR)
    except Exception as error:  # noqa: BLE001  # the parent looks at it
        return type(error).__name__, str(error), outcome.retry
    return outcome.report


def always_raises(engine: Engine) -> Any:
    """The first op raises whatever it gets, tuned or not."""
    runs = []

    def forward() -> None:
        runs.append(1)
        toy_call("broken")
        raise ZeroDivisionError("planted")

    try:
        child.warm(engine, forward)
    except ZeroDivisionError:
        return len(runs)
    return -1


def skipping(engine: Engine, *, skip: bool) -> Any:
    """Tune two ops, one of them excluded by the context on the second start."""

    def context() -> Any:
        return autotune(True, skip_ops={"skipped"} if skip else None)

    def forward() -> list[Any]:
        return [toy_call("skipped"), toy_call("kept")]

    report = child.warm(engine, forward, tuning_context=context)
    return report, forward()


def make_cache(_engine: Engine, cache: str, num_calls: int) -> None:
    """Let FlashInfer tune the calls of `own_cache` in its own way, and keep them in a file."""
    toys.flip_costs()
    with autotune(True, cache=cache):
        for op in ("inside", "before", "after")[:num_calls]:
            toy_call(op)


def own_cache(engine: Engine, cache: str) -> Any:
    """The forward opens its own ``autotune(cache=...)`` in the middle."""

    def forward() -> None:
        toy_call("before")
        with autotune(True, cache=cache):
            toy_call("inside")
        toy_call("after")

    with logged() as messages:
        report = child.warm(engine, forward)
    return report, child.saved(), messages


def persistent_store(engine: Engine, store: str, *, ambient: bool) -> Any:
    """A persistent autotune_v2 store is open around the forward, or was before."""

    def context() -> Any:
        return flashinfer.autotune_v2(mode="tune", cache_root=store)

    if ambient:
        with context():
            toy_call("earlier")
    options = {} if ambient else {"tuning_context": context}
    report = child.warm(engine, toy_call, **options)
    return report, toy_call()


def open_already(engine: Engine, rank: int) -> Any:
    """A tuning context is open on one rank when the session begins."""
    with autotune(engine.ranks.rank == rank):
        try:
            child.warm(engine, toy_call)
        except Exception as error:  # noqa: BLE001  # the parent looks at it
            return type(error).__name__, str(error)
    return None


def untouched(engine: Engine) -> Any:
    """Look at ``choose_one`` before, during and after."""
    before, tuner = AutoTuner.choose_one, AutoTuner.get()
    seen = []

    def forward() -> None:
        seen.append(AutoTuner.choose_one is before)
        toy_call()

    child.warm(engine, forward)
    seen += [AutoTuner.choose_one is before, tuner.choose_one == before.__get__(tuner)]
    return seen, child.left_behind()


class Telling(Toy):
    """Can tell which tactics it still offers, as few of FlashInfer's runners can."""

    refuses: tuple[Any, ...] = ()

    def validate_tactic(self, inputs: list[Any], tactic: Any) -> bool:
        if not inputs[0].shape[0]:
            raise ValueError("no rows")
        return tactic == -1 or (tactic in self.tactics and tactic not in self.refuses)


def telling(engine: Engine, tactics: tuple[Any, ...] = (0, 1, 2), refuse_on: int = -1) -> Any:
    """An op whose runner offers these; one rank's refuses them all."""
    refuses = tactics if engine.ranks.rank == refuse_on else ()

    def forward() -> None:
        call("telling", [Telling("telling", tactics=tactics, refuses=refuses)], FLOOR)
        toy_call()

    report = child.warm(engine, forward)
    return report, {key: row[1] for key, row in child.saved().items() if "telling" in key}


def serving(engine: Engine) -> Any:
    """What falls back after the warm-up, counted by op; what is left in the tuner meanwhile."""
    child.warm(engine, toy_call)
    before = serving_fallbacks()
    for _ in range(3):
        toy_call(batch=4)  # tuned
        call("toy", [Toy("toy")], FLOOR, torch.zeros(16, toys.WIDTH + 1), WEIGHT)
        call("toy", [Toy("toy")], FLOOR, torch.zeros(16, toys.WIDTH + 2), WEIGHT)
    return before, serving_fallbacks(), child.left_behind()


def answered(engine: Engine) -> Any:
    """What the forward is answered, and what is served afterwards."""
    during = []

    def forward() -> None:
        during.append({**toys.every_call(), "toy": [toy_call()]})

    report = child.warm(engine, forward)
    return report, during[-1], {**toys.every_call(), "toy": [toy_call()]}


def outside_tuning(engine: Engine) -> Any:
    """The forward closes tuning mode for one call."""

    def forward() -> None:
        tuner = AutoTuner.get()
        tuner.is_tuning_mode = False
        toy_call("serving")
        tuner.is_tuning_mode = True
        toy_call("tuning")

    return child.warm(engine, forward)


def alive_after(engine: Engine) -> Any:
    """Note every copy, stand-in, clone and closed-over tensor of a session, and what survives."""
    refs: list[tuple[str, Any]] = []
    table = torch.zeros(100, dtype=torch.int32)

    def initial(shapes: Any, dtype: Any, device: Any) -> Any:
        return torch.full(shapes, float(table[0]), dtype=dtype, device=device)

    def hook(tensors: list[Any]) -> list[Any]:
        return [*tensors[:1], tensors[1] + 0 * table[0]]

    config = replace(FLOOR, tensor_initializers=((0, initial),), inputs_pre_hook=hook)

    def forward() -> None:
        inner = Toy("inner")
        for flag in (True, False):
            call(
                "alive", [Toy("alive", inner=inner)], config, rows(16), torch.zeros(8), index=table
            )
            call("unshared", [Toy("unshared", flag=flag, inner=inner)], config, rows(16), WEIGHT)
        survey = AutoTuner.get().choose_one.__self__
        parts = [part for task in survey.tasks.values() for part in _parts(task.call)]
        refs.extend((name, weakref.ref(thing)) for name, thing in parts if thing is not table)

    report = child.warm(engine, forward)
    gc.collect()
    noted = sorted({name for name, _ in refs})
    return report, noted, sorted({name for name, ref in refs if ref() is not None})


def many_layers(engine: Engine) -> Any:
    """Sixty calls of one op, each with a config made anew over one routing table."""
    table = torch.zeros(100, dtype=torch.int32)
    seen = {}

    def forward() -> None:
        recorder = AutoTuner.get().choose_one.__self__._recorder
        before = recorder.budget.left
        for _ in range(60):
            function = lambda shapes, dtype, device: table.new_zeros(shapes, dtype=dtype)  # noqa: ARG005, E731
            config = replace(FLOOR, tensor_initializers=((0, function),))
            call("layer", [Toy("layer")], config)
        seen["used"] = before - recorder.budget.left
        seen["tasks"] = len(recorder.tasks)

    child.warm(engine, forward)
    return seen["used"], seen["tasks"]


def optional_inputs(engine: Engine) -> Any:
    """The first input a spec names is None."""
    spec = replace(FLOOR.dynamic_tensor_specs[0], input_idx=(1, 0), dim_idx=(0, 0))
    config = replace(FLOOR, dynamic_tensor_specs=(spec,))
    return child.warm(engine, lambda: call("optional", [Toy("optional")], config, rows(16), None))


def _parts(recorded: Any) -> list[tuple[str, Any]]:
    """Return what a recorded call holds that nobody else does."""
    parts = [("call", recorded), *(("runner", r) for r in recorded.runners)]
    parts += [("inner runner", r.inner) for r in recorded.runners]
    parts += [("stand-in", recorded.inputs[0])]
    parts += [("clone", t) for t in recorded.inputs[1:] if t is not WEIGHT]
    parts += [("keyword", t) for t in recorded.kwargs.values()]
    for _, function in (*recorded.config.tensor_initializers, (0, recorded.config.inputs_pre_hook)):
        parts += [("function", function)]
        parts += [("closure", cell.cell_contents) for cell in function.__closure__]
    return parts


def twins(engine: Engine, field: str) -> Any:
    """An op whose key holds this rank's number, and one where another number stands there."""
    ops = KNOWN_OPS.plus(twin_fields={"twin": {1: field}, "no twin": {1: field}})
    rank, size = getattr(engine.ranks, field), engine.ranks.tp_size

    def forward() -> list[Any]:
        answers = [toy_call("twin", batch, extras=("toy", rank)) for batch in toys.BUCKETS]
        toy_call("no twin", extras=("toy", 100 + (rank + 1) % size))
        return answers

    return child.warm(engine, forward, ops=ops), forward()


def listed_unstable(engine: Engine) -> Any:
    ops = KNOWN_OPS.plus(key_unstable={"shaky": "planted"})

    def forward() -> None:
        toy_call("shaky")
        toy_call()

    report = child.warm(engine, forward, ops=ops)
    return report, toy_call("shaky")
