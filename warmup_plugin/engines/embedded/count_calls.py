# SPDX-License-Identifier: Apache-2.0
"""Counts how often functions are entered, replacing none of them.

Owns the interpreter's profiling hook while it counts: `sys.monitoring` from Python 3.12 on, at no
cost to any other function; `sys.setprofile` in this thread and in threads started meanwhile before
that, which slows every call. A count is taken where the code starts to run, so it cannot be missed
by whoever holds a reference, nor be influenced by the package under test.
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

    ``reductions`` is left out in releases that have no tuning group.
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
    names: dict[CodeType, str] = {}
    for name, function in functions.items():
        names[inspect.unwrap(function).__code__] = name
    counts = dict.fromkeys(functions, 0)

    def count(code: CodeType) -> None:
        name = names.get(code)
        if name is not None:
            counts[name] += 1

    with _hooked(names, count):
        yield counts


if sys.version_info >= (3, 12):

    @contextlib.contextmanager
    def _hooked(codes: dict[CodeType, str], count: Callable[[CodeType], None]) -> Iterator[None]:
        monitoring = sys.monitoring
        # 0 to 2 and 5 are for debuggers, coverage, profilers and optimizers.
        tool = next(number for number in (3, 4) if monitoring.get_tool(number) is None)
        monitoring.use_tool_id(tool, "warmup_plugin.count_calls")
        started = monitoring.events.PY_START
        monitoring.register_callback(tool, started, lambda code, _offset: count(code))
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
    def _hooked(_codes: object, count: Callable[[CodeType], None]) -> Iterator[None]:
        before = sys.getprofile()

        def on_event(frame: FrameType, event: Any, arg: Any) -> None:
            if event == "call":
                count(frame.f_code)
            if before is not None:
                before(frame, event, arg)

        threading.setprofile(on_event)
        sys.setprofile(on_event)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before)
