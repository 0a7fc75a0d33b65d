# SPDX-License-Identifier: Apache-2.0
"""Whether a process lives, as seen from outside it.

Owns the one question a heartbeat cannot answer: a thread that is silent may be stopped or dead, or
only waiting for an interpreter lock that a long compile holds. Its machine knows. Processes of
another machine or another PID namespace are "unseen", never guessed at.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from warmup_plugin.topology import machine_id

View = Literal["runs", "stopped", "gone", "cut off", "unseen"]


class ProcessCard(msgspec.Struct, frozen=True):
    """What tells one process from all others.

    Attributes:
        pid: its process id.
        started: its start in clock ticks since boot, as the kernel has it: a process id that has
            been given out again belongs to another start.
        place: its machine and PID namespace.
    """

    pid: int
    started: int
    place: str

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON values.

        Returns:
            Every field by name.
        """
        return msgspec.structs.asdict(self)


def own_card() -> ProcessCard:
    """Return this process's card; not cached, since a fork is another process."""
    pid = os.getpid()
    return ProcessCard(pid, _stat(pid)[1], _place())


def _place() -> str:
    pid = os.getpid()
    with contextlib.suppress(OSError):
        # Not so where a container has the host's /proc: it numbers processes otherwise.
        if Path("/proc/self").readlink() == Path(str(pid)):
            return f"{machine_id()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{machine_id()}/process {pid}"  # nobody else's: every other process is unseen


def view(card: ProcessCard) -> View:
    """Return what this process sees of another."""
    if card.place != _place():
        return "unseen"
    state, started = _stat(card.pid)
    if started != card.started or state in "ZX":
        return "gone"
    return "stopped" if state in "tT" else "runs"


def _stat(pid: int) -> tuple[str, int]:
    """Return (state letter, start time) of a process; ("X", -1) for one that is not there."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The command's name stands in brackets and may hold anything, brackets too.
    fields = text[text.rfind(")") + 2 :].split()
    try:
        return fields[0], int(fields[19])
    except (IndexError, ValueError):  # it ended while it was read
        return "X", -1


def began(pid: int) -> float | None:
    """Return when a process of this PID namespace began, in unix seconds; None if none runs."""
    state, started = _stat(pid)
    if state in "ZX":
        return None
    return (
        time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started / os.sysconf("SC_CLK_TCK")
    )
