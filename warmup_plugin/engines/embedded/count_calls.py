# SPDX-License-Identifier: Apache-2.0
"""Counts how often functions are entered, or tells of each entry, replacing none of them.

Owns the interpreter's profiling hook while it does: `sys.monitoring` from Python 3.12 on, at no
cost to any other function; `sys.setprofile` in this thread and in threads started meanwhile before
that, which slows every call. A count is taken where the code starts to run, so it cannot be missed
by code that holds a reference, nor be influenced by the package under test.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

#: What FlashInfer does when a call is tuned: (name in the counts, attribute of its module).
_TUNING = {
    "profile_single_kernel": "AutoTuner._profile_single_kernel",
    "prepare_input_tensors": "AutoTuner._prepare_input_tensors",
    "reductions": "_sync_oom_across_tune_group",
}


def tuning_functions() -> dict[str, Callable[..., Any]]:
    """Return FlashInfer's own functions that run when, and only when, a call is tuned.

    ``reductions`` is left out in releases that have no tuning group, or reduce while they profile.
    """
    tuner = importlib.import_module("flashinfer.autotuner").AutoTuner
    module = sys.modules[tuner.__module__]
    found = {}
    for name, path in _TUNING.items():
        owner: Any = module
        for part in path.split("."):
            owner = getattr(owner, part, None)
        if owner is not None:
            found[name] = owner
    return found


@contextlib.contextmanager
def count_calls(**functions: Callable[..., Any]) -> Iterator[dict[str, int]]:
    """Count the entries of each function while the body runs, under its keyword."""
    counts = dict.fromkeys(functions, 0)

    def count(name: str, _frame: FrameType) -> None:
        counts[name] += 1

    with telling_calls(count, **functions):
        yield counts


@contextlib.contextmanager
def telling_calls(tell: Callable[[str, FrameType], None], **functions: Any) -> Iterator[None]:
    """Tell of each entry of a function while the body runs: its keyword, and its frame.

    The frame holds the arguments; of a generator it is told when its body begins.
    """
    names: dict[CodeType, str] = {}
    for name, function in functions.items():
        names[inspect.unwrap(function).__code__] = name

    with _hooked(names, lambda frame: tell(names[frame.f_code], frame)):
        yield


if sys.version_info >= (3, 12):

    @contextlib.contextmanager
    def _hooked(codes: dict[CodeType, str], tell: Callable[[FrameType], None]) -> Iterator[None]:
        monitoring = sys.monitoring
        # 0 to 2 and 5 are for debuggers, coverage, profilers and optimizers.
        tool = next(number for number in (3, 4) if monitoring.get_tool(number) is None)
        monitoring.use_tool_id(tool, "warmup_plugin.count_calls")
        started = monitoring.events.PY_START

        def on_start(*_: object) -> None:
            frame = inspect.currentframe()
            if frame is not None and frame.f_back is not None:
                tell(frame.f_back)

        monitoring.register_callback(tool, started, on_start)
        for code in codes:
            monitoring.set_local_events(tool, code, started)
        try:
            yield
        finally:
            for code in codes:
                monitoring.set_local_events(tool, code, monitoring.events.NO_EVENTS)
            monitoring.register_callback(tool, started, None)
            monitoring.free_tool_id(tool)

else:

    @contextlib.contextmanager
    def _hooked(codes: dict[CodeType, str], tell: Callable[[FrameType], None]) -> Iterator[None]:
        before = sys.getprofile()
        begun: list[FrameType] = []

        def on_event(frame: FrameType, event: Any, arg: Any) -> None:
            if event == "call" and frame.f_code in codes and frame not in begun:
                if frame.f_code.co_flags & inspect.CO_GENERATOR:
                    begun.append(frame)  # each time it goes on is such an event, too
                tell(frame)
            if before is not None:
                before(frame, event, arg)

        threading.setprofile(on_event)
        sys.setprofile(on_event)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before)
