# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer measures during a session, seen from outside.

Owns pass-through attributes on the tuner *object* that count and note; FlashInfer's own functions
do all the work and stay where they are. Gone when the session ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from warmup_plugin.tuner import compat, device

if TYPE_CHECKING:
    from warmup_plugin.tuner.race.counts import Counts  # noqa: TC004  # of a struct never decoded

#: Runner class, tactic, milliseconds; infinity for a tactic that failed.
Time = tuple[str, Any, float]
#: What FlashInfer answers by giving the whole call up, where it has no process group.
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
_FAILED = float("inf")


class Observations(msgspec.Struct):
    """Counts of one session on one rank, and what was seen of the task in hand.

    ``passed_through``, ``passed_through_inputs``: those of ``tactics_timed`` and of
    ``inputs_synthesised`` that ops left to themselves have timed and made.
    Since `begin_task`: ``times``, (runner class, tactic, ms) of every tactic timed, infinity for
    one that failed, and ``tried``, (runner, tactic) of each; ``first_error``, what the first of
    these raised; ``out_of_memory``, whether one of them, or making inputs, ran out of memory;
    ``lookups``, how often FlashInfer has looked for a winner. ``counts``: with which counts
    FlashInfer measures, with its own where there are none.
    """

    tactics_timed: int = 0
    passed_through: int = 0
    inputs_synthesised: int = 0
    passed_through_inputs: int = 0
    times: list[Time] = msgspec.field(default_factory=list)
    first_error: str = ""
    out_of_memory: bool = False
    lookups: int = 0
    tried: list[tuple[Any, Any]] = msgspec.field(default_factory=list)
    counts: Counts | None = None
    _is_replaying: bool = False
    _last: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None

    def begin_task(self) -> None:
        """Forget the task before."""
        self.times, self.first_error, self.out_of_memory, self.lookups = [], "", False, 0
        self.tried, self._last = [], None

    @contextlib.contextmanager
    def passing_through(self) -> Iterator[None]:
        """Count what is timed and made in the body as an op's that is left to itself."""
        timed, made = self.tactics_timed, self.inputs_synthesised
        try:
            yield
        finally:
            self.passed_through += self.tactics_timed - timed
            self.passed_through_inputs += self.inputs_synthesised - made

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Let a tactic that finds no memory fail alone in the body; the others race.

        So FlashInfer does itself in a job with a process group, which step 5 takes away from it.
        """
        tuner = compat.tuner()
        search = tuner.search_cache

        def search_cache(*args: Any, **kw: Any) -> Any:
            self.lookups += 1
            return search(*args, **kw)

        tuner.search_cache = search_cache
        self._is_replaying = True
        try:
            yield
        finally:
            del tuner.search_cache
            self._is_replaying, self._last, self.tried = False, None, []

    def time_default(self, runner: Any, tactic: Any) -> None:
        """Have FlashInfer time one more tactic on the inputs that it has timed the others on.

        Nothing is timed where nothing else was; a failure is a time of infinity.
        """
        if self._last is None:
            return
        inputs, args, options = self._last
        try:
            compat.tuner()._profile_single_kernel(runner, inputs, tactic, *args, **options)
        except Exception:  # noqa: BLE001  # noted as a failed tactic, as FlashInfer notes its own
            device.clear_error()

    def time_again(self, runner: Any, tactic: Any, counts: Counts) -> float:
        """Have FlashInfer time one on the same inputs once more; infinity where it fails.

        It is counted, and stands in neither ``times`` nor ``tried``.
        """
        assert self._last is not None, "nothing of this task was timed"
        inputs, args, options = self._last
        before, noted = self.counts, len(self.times)
        self.counts = counts
        try:
            ms = compat.tuner()._profile_single_kernel(runner, inputs, tactic, *args, **options)
        except Exception:  # noqa: BLE001  # as `time_default`: this tactic is out
            device.clear_error()
            return _FAILED
        finally:
            self.counts = before
            del self.times[noted:], self.tried[noted:]
        return float(ms)

    def time_apart(self, runner: Any, inputs: list[Any], tactic: Any, *args: Any, **kw: Any) -> Any:
        """Have FlashInfer time one tactic on these inputs; what it raises is raised."""
        return compat.tuner()._profile_single_kernel(runner, inputs, tactic, *args, **kw)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave what is timed and made in the body out of the counts: it is no tuning."""
        timed, made = self.tactics_timed, self.inputs_synthesised
        try:
            yield
        finally:
            self.tactics_timed, self.inputs_synthesised = timed, made
            self.begin_task()

    def forget_inputs(self) -> None:
        """Let go of the inputs of the task in hand, before others are made."""
        self._last = None

    def _note_failure(self, runner: Any, tactic: Any, error: BaseException) -> None:
        self._note(runner, tactic, _FAILED)
        self.out_of_memory |= isinstance(error, OUT_OF_MEMORY)
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"[:400]

    def _note(self, runner: Any, tactic: Any, ms: float) -> None:
        self.times.append((type(runner).__name__, tactic, ms))
        if self._is_replaying:
            self.tried.append((runner, tactic))


@contextlib.contextmanager
def observe() -> Iterator[Observations]:
    """Count measurements and synthesised inputs in the body."""
    tuner, seen = compat.tuner(), Observations()
    if not compat.probe().can_record:
        yield seen
        return
    profile, prepare = tuner._profile_single_kernel, tuner._prepare_input_tensors

    def profile_single_kernel(runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
        seen.tactics_timed += 1
        if seen._is_replaying:
            seen._last = inputs, args, kw
        try:
            with compat.measuring(tuner, seen.counts, args) as given:
                ms = profile(runner, inputs, tactic, *given, **kw)
        except BaseException as error:
            seen._note_failure(runner, tactic, error)
            if seen._is_replaying and isinstance(error, OUT_OF_MEMORY):
                device.free_memory()
                return _FAILED
            raise
        if seen._is_replaying and not is_measurement(ms):
            reason = f"{ms!r} ms is no measurement: a time is finite and greater than 0"
            seen._note_failure(runner, tactic, ValueError(reason))
            return _FAILED
        seen._note(runner, tactic, ms)
        return ms

    def prepare_input_tensors(*args: Any, **kw: Any) -> Any:
        seen.inputs_synthesised += 1
        try:
            return prepare(*args, **kw)
        except OUT_OF_MEMORY:
            seen.out_of_memory = True
            raise

    tuner._profile_single_kernel = profile_single_kernel
    tuner._prepare_input_tensors = prepare_input_tensors
    try:
        yield seen
    finally:
        del tuner._profile_single_kernel, tuner._prepare_input_tensors


def is_measurement(ms: Any) -> bool:
    """Return whether a time in milliseconds can be one; a broken clock gives others."""
    return isinstance(ms, int | float) and 0 < ms < _FAILED
