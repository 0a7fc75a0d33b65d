# SPDX-License-Identifier: Apache-2.0
"""A host clock where FlashInfer's profiler expects CUDA's.

Owns the stand-ins for the `torch.cuda` names below and for what FlashInfer builds to keep the GPU
busy while it measures (`BUILT`): nothing else is replaced, so `_profile_single_kernel`,
`choose_one`, `load_configs` and `save_configs` are FlashInfer's own. For the embedded engine's
child processes; everything is restored on exit.
Refuses to pose as a device: it has an L2 size, which cold-L2 profiling needs, but neither name nor
capability, so a table's environment stamp says "unknown" as it does without stand-ins.

Cold-L2 profiling (FlashInfer >= 0.7) asks for one CUDA tensor among the inputs: `DeviceParameter`
is a weight in host memory that says it is one. Graph capture runs the body once; each replay is
charged what the body took.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from warmup_plugin.engines.embedded.config import resolve

#: (op, runner class, batch, tactic) -> milliseconds of one call.
Timing = Callable[[str, str, int, Any], float]

_DEVICE = SimpleNamespace(L2_cache_size=64 * 1024, multi_processor_count=1)


class _Clock:
    """Host time plus simulated device time; only the latter when ``simulated``."""

    simulated = False
    device_ms = 0.0
    capturing = False

    def now_ms(self) -> float:
        host = 0.0 if self.simulated else time.perf_counter_ns() / 1e6
        return host + self.device_ms


_clock = _Clock()


def advance(ms: float) -> None:
    """Let simulated device time pass."""
    _clock.device_ms += ms


class HostStream:
    """Work runs when it is called, so there is never anything to wait for."""

    device = torch.device("cpu")
    cuda_stream = 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, _stream: object) -> None:
        pass

    def wait_event(self, _event: object) -> None:
        pass


class HostEvent:
    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self._at_ms = 0.0

    def record(self, _stream: object = None) -> None:
        self._at_ms = _clock.now_ms()

    def elapsed_time(self, end: HostEvent) -> float:
        return end._at_ms - self._at_ms

    def synchronize(self) -> None:
        pass


class HostGraph:
    """Remembers how long its body took."""

    body_ms = 0.0

    def replay(self) -> None:
        advance(self.body_ms)


class _Capture:
    """`torch.cuda.graph(...)`: run the body once, mark the time as capture."""

    def __init__(self, graph: HostGraph, *_args: Any, **_kwargs: Any) -> None:
        self._graph = graph
        self._began_ms = 0.0

    def __enter__(self) -> None:
        _clock.capturing = True
        self._began_ms = _clock.now_ms()

    def __exit__(self, *_exc: object) -> None:
        _clock.capturing = False
        self._graph.body_ms = _clock.now_ms() - self._began_ms


_STREAM = HostStream()

#: The names of `torch.cuda` that are replaced, all of them.
STAND_INS: dict[str, Any] = {
    "CUDAGraph": HostGraph,
    "Event": HostEvent,
    "Stream": HostStream,
    "current_device": lambda: 0,
    "current_stream": lambda _device=None: _STREAM,
    "empty_cache": lambda: None,
    "get_device_properties": lambda _device=None: _DEVICE,
    "graph": _Capture,
    "is_current_stream_capturing": lambda: _clock.capturing,
    "stream": contextlib.nullcontext,
    "synchronize": lambda _device=None: None,
}

#: Names of FlashInfer's tuner module that need a compiler: the kernel that delays a stream, and
#: from 0.7.4 on the module with it, which is built before inputs are warmed.
BUILT = ("delay_kernel", "get_trtllm_utils_module")


def install(*, simulated: bool = False) -> Callable[[], None]:
    """Put the stand-ins in place and return the function that takes them away again.

    With ``simulated`` only the time given to `advance` passes: what is measured is deterministic.
    """
    before = {name: getattr(torch.cuda, name) for name in STAND_INS}
    _put(torch.cuda, STAND_INS)
    # The name FlashInfer's profiler looks up is in the module that defines AutoTuner: one file in
    # older releases, a package in newer ones.
    tuner = importlib.import_module("flashinfer.autotuner").AutoTuner
    module: Any = sys.modules[tuner.__module__]
    built = {name: getattr(module, name) for name in BUILT if hasattr(module, name)}
    _put(module, dict.fromkeys(built, lambda *_arguments: None))
    was_simulated, _clock.simulated = _clock.simulated, simulated

    def restore() -> None:
        _put(torch.cuda, before)
        _put(module, built)
        _clock.simulated = was_simulated

    return restore


@contextlib.contextmanager
def host_clock(*, simulated: bool = False) -> Iterator[None]:
    """Run the body under `install`."""
    restore = install(simulated=simulated)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def device_answers() -> Iterator[None]:
    """Answer the device queries that some FlashInfer releases make while they are imported."""
    if torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_device_properties
    _put(torch.cuda, {"get_device_properties": STAND_INS["get_device_properties"]})
    try:
        yield
    finally:
        _put(torch.cuda, {"get_device_properties": before})


def _put(module: Any, names: dict[str, Any]) -> None:
    for name, value in names.items():
        setattr(module, name, value)


class DeviceParameter(torch.nn.Parameter):
    """A weight in host memory that counts as a CUDA tensor, for cold-L2 profiling."""

    is_cuda = True


def _variant(tactic: Any) -> int:
    """Return a tactic's number in its candidate list: compound tactics end with it."""
    return int(tactic[-1] if isinstance(tactic, tuple) else tactic)


def _deterministic(_rank: int) -> Timing:
    """Any winner, but the same one on every rank and every start."""

    def milliseconds(op: str, runner: str, batch: int, tactic: Any) -> float:
        return 1.0 + zlib.crc32(repr((op, runner, batch, tactic)).encode()) / 2**32

    return milliseconds


def _rank_noise(rank: int) -> Timing:
    """Tactic r is the fastest on rank r: ranks left to themselves disagree."""

    def milliseconds(_op: str, _runner: str, _batch: int, tactic: Any) -> float:
        variant = _variant(tactic)
        return 1.0 if variant == rank else 2.0 + 0.1 * variant

    return milliseconds


#: What `EngineConfig.timing` may name besides "host", as functions of the rank.
TIMINGS: dict[str, Callable[[int], Timing]] = {
    "deterministic": _deterministic,
    "rank_noise": _rank_noise,
}


def timing(name: str, rank: int) -> Timing | None:
    """Return the timing of one rank: None for "host", whose runners take the time they take.

    A reference (`config.resolve`) names a function of the rank that returns a timing.
    """
    if name == "host":
        return None
    if ":" not in name and name not in TIMINGS:
        known = ", ".join(["host", *sorted(TIMINGS)])
        raise ValueError(f"timing={name!r}: must be one of {known}, or module:function")
    timing_of: Callable[[int], Timing] = resolve(name) if ":" in name else TIMINGS[name]
    return timing_of(rank)
