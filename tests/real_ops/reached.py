# SPDX-License-Identifier: Apache-2.0
"""Which call sites of FlashInfer's tuner a process comes by, with ops and runner classes.

Names a site as `wheel.py` does but for the op's source text, in whose place is the op itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flashinfer
from flashinfer.autotuner import AutoTuner

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
