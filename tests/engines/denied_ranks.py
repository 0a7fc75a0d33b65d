# SPDX-License-Identifier: Apache-2.0
"""What a live rank of an engine is denied while it warms up: it comes up, cold and warm.

Owns the rows, and what must come of each: all ranks serve one certified table, which is taken from
the disk where there is one, and the next start under the same denial comes up as well. The engine
alone under the same denial is run beside it, and what it comes to is written down here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: A sound start takes seconds; an engine alone that has not ended after this long hangs.
HANG_S = 15.0


@dataclass(frozen=True)
class Denial:
    """What a rank lacks.

    ``alone``: what the engine alone comes to, on an empty cache and over its own files:
    up | crash | hang.
    """

    fault: str
    alone: tuple[str, str]
    #: Ranks that have it; empty: all.
    ranks: str = ""

    @property
    def planted(self) -> str:
        """The fault for `engine_faults.py`, on ranks that may not read whatever they like."""
        named = f"{self.fault}+unprivileged"
        return f"{named}@{self.ranks}" if self.ranks else named

    def __str__(self) -> str:
        return f"{self.fault}, {'rank ' + self.ranks if self.ranks else 'all ranks'}"


#: Both engines come to the same alone.
ROWS = [
    Denial("umask_0777", ("crash", "up")),
    Denial("umask_0777", ("up", "up"), ranks="1"),
    Denial("no_error_stream", ("up", "up")),
    Denial("no_error_stream", ("up", "up"), ranks="1"),
]


def verdict(start: Any) -> str:
    """Return what a start came to."""
    return "hang" if start.hung else "crash" if start.errors else "up"


def check(denial: Denial, job: Any, *, is_cold: bool) -> None:
    """Start under a denial with this package, twice."""
    if not is_cold:
        job.start()
    for _ in range(2):
        start = job.start(fault=denial.planted)
        assert len(start.certificate) == 64
        assert not start.disputed
        assert is_cold or start.timed == [0] * len(start.ranks)
        assert not [line for rank in start.ranks for line in rank["lines"] if "lost" in line]


def check_alone(denial: Denial, job: Any, *, is_cold: bool) -> None:
    """Start the engine alone under a denial."""
    if not is_cold:
        job.start(plugin=False)
    start = job.start(plugin=False, fault=denial.planted, may_fail=True, limit_s=HANG_S)
    assert verdict(start) == denial.alone[not is_cold], start.errors
