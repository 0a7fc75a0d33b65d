# SPDX-License-Identifier: Apache-2.0
"""How a rank tells its launcher what it is at: one line of text, now and then.

Owns that line, both ways: `telling` makes the callable that `warm_up(progress=...)` takes, `parse`
reads what arrives. Refuses to flood the pipe: a step is told when it begins, its tasks at most ten
times a second. Imports no torch: the launcher's side reads too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_INTERVAL_S = 0.1


class Progress(NamedTuple):
    """A step and, where it works through tasks, the current one: number ``done`` of ``total``."""

    step: str
    task: str = ""
    done: int = 0
    total: int = 0


def telling(say: Callable[[str], None]) -> Callable[[str, str, int, int], None]:
    """Return a progress callable that says a line where there is news."""
    last_step, last_at = "", 0.0

    def progress(step: str, task: str, done: int, total: int) -> None:
        nonlocal last_step, last_at
        now = time.monotonic()
        if step == last_step and now - last_at < _INTERVAL_S:
            return
        last_step, last_at = step, now
        say(f"{step} {done}/{total} {task}")

    return progress


def parse(line: str) -> Progress | None:
    """Read a line that `telling` said; None for any other."""
    step, _, rest = line.partition(" ")
    count, _, task = rest.partition(" ")
    done, _, total = count.partition("/")
    if not (done.isdecimal() and total.isdecimal()):
        return None
    return Progress(step, task, int(done), int(total))
