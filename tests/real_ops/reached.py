# SPDX-License-Identifier: Apache-2.0
"""Which call sites of FlashInfer's tuner a process comes by, with ops and runner classes.

Names a site as `wheel.py` does but for the op's source text, in whose place is the op itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flashinfer
from flashinfer.autotuner import AutoTuner

from tests.real_ops.cases.case import Case
from tests.real_ops.cases.catalogue import CASES
from tests.real_ops.inside import ChildFailedError, alone, in_child

PACKAGE = Path(flashinfer.__file__).parent


@contextlib.contextmanager
def note_sites(found: list[list[Any]]) -> Iterator[None]:
    """Note [file, function, op, runner classes] of every call of the tuner in the body, once."""
    tuner: Any = AutoTuner
    original = tuner.choose_one

    def choose_one(this: Any, custom_op: str, runners: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):  # else it is the plugin's replay
            kinds = [type(runner).__name__ for runner in runners]
            name = path.relative_to(PACKAGE).as_posix()
            site = [name, frame.f_code.co_name, custom_op, kinds]
            if site not in found:
                found.append(site)
        return original(this, custom_op, runners, *args, **kwargs)

    tuner.choose_one = choose_one
    try:
        yield
    finally:
        tuner.choose_one = original


def sites_of(names: list[str]) -> dict[str, list[list[Any]]]:
    """Return the sites that each case comes by, in a process of its own: called once, then tuned.

    A call outside tuning comes by nearly all of them; some ops ask the tuner in tuning mode only.
    """
    return {name: _sites_of_one(CASES[name]) for name in names}


def _sites_of_one(case: Case) -> list[list[Any]]:
    def call(tune: Callable[[Callable[[], object]], object]) -> list[list[Any]]:
        found: list[list[Any]] = []
        step = case.make()
        with note_sites(found):
            tune(lambda: step(case.sizes[-1] if case.sizes[-1] <= 1000 else case.sizes[0]))
        return found

    try:
        found: list[list[Any]] = in_child(lambda: call(lambda forward: forward()))
        return found or in_child(lambda: call(alone))
    except ChildFailedError as error:
        return [["failed", str(error).strip().splitlines()[-1], "", []]]
