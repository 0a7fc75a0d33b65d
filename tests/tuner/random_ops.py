# SPDX-License-Identifier: Apache-2.0
"""Ops drawn at random: which runners, keys, faults and calls, and what each tactic truly takes.

Owns the description of one example (`Example`, plain values, so that Hypothesis prints what it has
found and a test can write it down) and the runners it describes. Only simulated time passes, and
what a run takes follows from op, runner, bucket and tactic alone: that is the one invention here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import flashinfer
import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, autotune

from tests.tuner import toys
from tests.tuner.toys import BUCKETS, WEIGHT, ceil_bucket, floor_bucket, rows

#: What runs where nothing is tuned.
DEFAULT = -1

ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
    "MemoryError": MemoryError,
    "OutOfMemoryError": torch.cuda.OutOfMemoryError,
}

#: How a runner's key comes about. Views are what FlashInfer's own runners take of their inputs.
KEYS: dict[str, Callable[[list[Any]], tuple[Any, ...]]] = {
    "none": lambda _inputs: (),
    "dtype": lambda inputs: (str(inputs[0].dtype),),
    "transposed": lambda inputs: ("t", inputs[0].t().shape[0], inputs[0].T.stride(0)),
    "sliced": lambda inputs: ("s", inputs[0][:1].shape[1], inputs[1][:4].shape[0]),
    "narrowed": lambda inputs: ("n", inputs[0].narrow(0, 0, 1).numel()),
    "expanded": lambda inputs: ("e", inputs[0].unsqueeze(0).expand(2, -1, -1).shape[2]),
    "viewed": lambda inputs: ("v", inputs[0].view(torch.int32).shape[1], inputs[0].data_ptr() % 16),
    "raw batch": lambda inputs: ("m", inputs[0].shape[0]),
    "parity": lambda inputs: (inputs[0].shape[0] % 2 == 0,),
}
#: Keys by which FlashInfer stores a winner under another key than it looks up at some batches.
UNSTABLE = frozenset({"raw batch", "parity"})


@dataclass(frozen=True)
class Fault:
    """An error planted in a runner or in making inputs, from a batch on.

    ``place``: a tactic's number, -1 for the default; "candidates", "key", "preparation"; of an op
    "inputs" or "hook".
    """

    place: int | str
    error: str
    least: int = 1

    def meet(self, batch: int) -> None:
        if batch >= self.least:
            raise ERRORS[self.error](f"planted at {self.place}")


@dataclass(frozen=True)
class RunnerPlan:
    """One runner of a list. ``number`` tells it from the others; ``kind`` is its class.

    ``asks_itself``: its forward calls its own `get_valid_tactics` and takes each for a pair.
    ``validates``: how its `validate_tactic` answers; "" for a runner without one.
    """

    number: int
    kind: int
    tactics: int
    key: str = "dtype"
    asks_itself: bool = False
    validates: str = ""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class OpPlan:
    """One op. ``order``: how the batch at hand orders its runners, and so chooses the default."""

    name: str
    runners: tuple[RunnerPlan, ...]
    config: str = "floor"
    order: str = "fixed"
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Step:
    """One call of the forward. ``nested``: the context opened around it."""

    op: int
    batch: int
    nested: str = ""


@dataclass(frozen=True)
class Example:
    """A forward and how it is tuned. ``keeps_runners``: one object for all calls, else one each.

    ``others``: the steps of ranks 1, 2, ... where they are not ``steps``, too.
    """

    ops: tuple[OpPlan, ...]
    steps: tuple[Step, ...]
    others: tuple[tuple[Step, ...], ...] = ()
    context: str = "plain"
    margin: float = 0.0
    keeps_runners: bool = False

    @property
    def called(self) -> tuple[OpPlan, ...]:
        """The ops that the forward calls, in its order."""
        return tuple(dict.fromkeys(self.ops[step.op] for step in self.steps))


# -- time ----------------------------------------------------------------------------------------

#: Set in a process of several ranks: whose times these are.
noise = ""
_spent = 0.0


def pass_time(ms: float) -> None:
    """Let simulated time pass, for FlashInfer's clock and for `true_time`."""
    global _spent  # noqa: PLW0603  # a clock of the process
    _spent += ms
    toys.let_time_pass(ms)


def _cost(op: str, number: int, bucket: int, tactic: Any) -> float:
    """Milliseconds of one run; a default takes about what tactics take, so it wins at times."""
    told = repr((op, number, bucket, tactic, noise)).encode()
    return 1.0 + int.from_bytes(hashlib.blake2s(told, digest_size=4).digest()) / 2**32


def true_time(runner: Any, tactic: Any, batch: int) -> float:
    """Return what one run takes, infinity if it fails."""
    began = _spent
    try:
        runner([rows(batch), WEIGHT], tactic=tactic)
    except Exception:  # noqa: BLE001  # planted, or the runner's answer to a tactic it has not
        return float("inf")
    return _spent - began


# -- runners -------------------------------------------------------------------------------------

#: Ops whose runners ran while FlashInfer measured, and for which it made inputs.
timed: set[str] = set()
synthesised: set[str] = set()


class Drawn(TunableRunner):
    """A runner as its plan has it."""

    def __init__(self, op: OpPlan, plan: RunnerPlan) -> None:
        self.op, self.plan, self.config = op.name, plan, op.config

    def _meet(self, place: int | str, batch: int) -> None:
        for fault in self.plan.faults:
            if fault.place == place:
                fault.meet(batch)

    def get_cache_key_extras(self, inputs: list[Any]) -> tuple[Any, ...]:
        self._meet("key", inputs[0].shape[0])
        return KEYS[self.plan.key](inputs)

    def get_valid_tactics(self, inputs: list[Any], _profile: Any) -> list[Any]:
        self._meet("candidates", inputs[0].shape[0])
        return [(tactic, self.plan.kind) for tactic in range(self.plan.tactics)]

    def forward(
        self,
        inputs: list[Any],
        tactic: Any = DEFAULT,
        do_preparation: bool = False,  # noqa: FBT001, FBT002  # FlashInfer's signature
        **_kwargs: Any,
    ) -> torch.Tensor:
        batch, out = inputs[0].shape[0], inputs[0]
        if self.plan.asks_itself:
            for number, kind in self.get_valid_tactics(inputs, None):
                assert (type(number), kind) == (int, self.plan.kind)
        if do_preparation:
            self._meet("preparation", batch)
            return out  # type: ignore[no-any-return]
        number = DEFAULT if tactic == DEFAULT else self._number(tactic)
        self._meet(number, batch)
        if flashinfer.autotuner.is_in_profile_measurement():
            timed.add(self.op)
        bucket = ceil_bucket if self.config == "own size" else floor_bucket
        pass_time(_cost(self.op, self.plan.number, bucket(batch), number))
        return out  # type: ignore[no-any-return]

    def _number(self, tactic: Any) -> int:
        number, kind = tactic
        if kind != self.plan.kind or number >= self.plan.tactics:
            raise ValueError(f"not a tactic of this runner: {tactic!r}")
        return int(number)


class Validating(Drawn):
    """Says which tactics it still offers."""

    def validate_tactic(self, inputs: list[Any], tactic: Any) -> bool:
        if self.plan.validates == "raises":
            raise RuntimeError("planted in validate_tactic")
        if self.plan.validates == "even" and inputs[0].shape[0] % 2 and inputs[0].shape[0] > 1:
            return False
        return bool(tactic == DEFAULT or tactic[0] < self.plan.tactics)


@cache
def _class(kind: int, is_validating: bool) -> type[Drawn]:  # noqa: FBT001  # a key of the cache
    return type(f"Runner{kind}", (Validating if is_validating else Drawn,), {})


def _make(op: OpPlan, plan: RunnerPlan) -> Drawn:
    return _class(plan.kind, bool(plan.validates))(op, plan)


_CONFIGS = {
    "floor": toys.FLOOR, "cold": toys.COLD, "graph": toys.GRAPH, "static": toys.STATIC,
    "own size": toys.OWN_SIZE,
}  # fmt: skip


@cache
def _config(op: OpPlan) -> Any:
    """Return an op's tuning config: one object per op, as FlashInfer's are."""

    def initialise(shapes: Any, dtype: Any, device: Any) -> torch.Tensor:
        synthesised.add(op.name)
        for fault in op.faults:
            if fault.place == "inputs":
                fault.meet(shapes[0])
        return torch.zeros(shapes, dtype=dtype, device=device)

    def hook(inputs: list[Any]) -> list[Any]:
        for fault in op.faults:
            if fault.place == "hook":
                fault.meet(inputs[0].shape[0])
        return inputs

    changes: dict[str, Any] = {"tensor_initializers": ((0, initialise),)}
    if any(fault.place == "hook" for fault in op.faults):
        changes["inputs_pre_hook"] = hook
    return replace(_CONFIGS[op.config], **changes)


class Model:
    """The ops of one example, as one process holds them."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self._kept: dict[tuple[str, int], Drawn] = {}

    def _runner(self, op: OpPlan, plan: RunnerPlan) -> Drawn:
        if not self.example.keeps_runners:
            return _make(op, plan)
        key = (op.name, plan.number)
        return self._kept.setdefault(key, _make(op, plan))

    def choose(self, op: OpPlan, batch: int) -> tuple[Drawn, Any]:
        """Ask FlashInfer as the op does at this batch."""
        runners = [self._runner(op, plan) for plan in _in_order(op, batch)]
        inputs = [rows(batch), WEIGHT]
        runner, tactic = AutoTuner.get().choose_one(op.name, runners, _config(op), inputs)
        return runner, tactic

    def forward(self) -> None:
        """Run the steps as a model does: choose, then run the choice."""
        for step in self.example.steps:
            op = self.example.ops[step.op]
            with _nested(step.nested, op.name):
                runner, tactic = self.choose(op, step.batch)
                runner([rows(step.batch), WEIGHT], tactic=tactic)


def _in_order(op: OpPlan, batch: int) -> tuple[RunnerPlan, ...]:
    is_small = batch < BUCKETS[2]
    if op.order == "reversed" and is_small:
        return op.runners[::-1]
    if op.order == "without the last" and is_small:
        return op.runners[:-1] or op.runners
    return op.runners


@contextlib.contextmanager
def _nested(name: str, op: str) -> Iterator[None]:
    options = {
        "skip": (False, {op}), "skip another": (False, {"another"}), "tune": (True, None),
        "no tuning": (False, None),
    }  # fmt: skip
    if not name:
        yield
        return
    is_tuning, skip_ops = options[name]
    with autotune(is_tuning, skip_ops=skip_ops):
        yield


@contextlib.contextmanager
def _vllm() -> Iterator[None]:
    """Two contexts, the inner one with the ops' own buckets, under inference mode."""
    with torch.inference_mode(), autotune(True), autotune(True, tuning_buckets=BUCKETS):
        yield


@contextlib.contextmanager
def _sglang() -> Iterator[None]:
    """A memory-only v2 context, in which the default races, inside a plain one."""
    with autotune(True), flashinfer.autotune_v2(mode="tune", persistent_cache=False):
        yield


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "plain": lambda: autotune(True),
    "vllm": _vllm,
    "sglang": _sglang,
    "skipping": lambda: autotune(True, skip_ops={"op0"}),
}
