# SPDX-License-Identifier: Apache-2.0
"""Whether this process has what a session of several ranks takes, before any of it is taken.

Owns that list: descriptors, threads, address space, data. torch, and what it is made of, do not
fail cleanly in the middle: where the store cannot open one more socket a connection of the engine's
own may go with it. So all is asked for at once and given back, and a rank that lacks one of them
says so while all ranks can still do without. Raises nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import resource
import socket
import time
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.runtime.polling import wait_until, within

#: The files of a rank at a time: its store's, a journal, a lock, what FlashInfer reads.
_DESCRIPTORS: Final = 14
#: More on rank 0: the store's own, and two connections of each rank.
_DESCRIPTORS_OF_STORE: Final = 2
_DESCRIPTORS_OF_RANK: Final = 2
#: Heartbeat, its connection, and one for what can do without; on rank 0 that of the store.
_THREADS: Final = 3
_THREADS_OF_STORE: Final = 1
#: By limit: its name, how many MiB are needed, and of what. The C library reserves 64 MiB for each
#: thread, whatever it uses of that; its stack of 8 MiB counts as data. A thread that cannot be had
#: raises; one that has no memory to begin leaves `threading.Thread.start` waiting for ever.
_MEMORY: Final = {
    resource.RLIMIT_AS: ("RLIMIT_AS", 768, "address space"),
    resource.RLIMIT_DATA: ("RLIMIT_DATA", 96, "data"),
}
_MIB: Final = 1 << 20
#: Near the limit of threads: how often a process asks, and at least how long it pauses, seconds.
_TRIES: Final = 4
_APART_S: Final = 0.03
#: How long the end of threads is waited for that have nothing more to do, seconds.
_END_S: Final = 5.0


def lacking(rank: int, size: int) -> str:
    """Return what this process has too little of for a session, or an empty string."""
    descriptors, threads = _DESCRIPTORS, _THREADS
    if rank == 0:
        descriptors += _DESCRIPTORS_OF_STORE + _DESCRIPTORS_OF_RANK * size
        threads += _THREADS_OF_STORE
    return _lacks_memory() or _lacks_descriptors(descriptors) or lacks_threads(threads)


def _lacks_descriptors(number: int) -> str:
    with contextlib.ExitStack() as stack:
        for found in range(number):
            try:
                stack.enter_context(socket.socket(socket.AF_UNIX))
            except OSError as error:
                return f"{found} files more can be opened, {number} are needed: {error.strerror}"
    return ""


def lacks_threads(number: int) -> str:
    """Return why so many threads, or processes, cannot be started at a time, or an empty string.

    Where twice as many can be had, this waits for none of them: with another thread busy each wait
    takes milliseconds, in all of which the other ranks wait, too. Near the limit it waits for all,
    lest one that has not ended yet is the one too many; and it asks again, since a rank beside it
    that has the same limit asks, too, and holds for a moment what it gives back.
    """
    found = _start(2 * number)
    if not found.error:
        return ""
    for _ in range(_TRIES):
        found.let_end()
        found = _start(number)
        if not found.error:
            break
        time.sleep(_APART_S * (1 + os.getpid() % _TRIES))  # ranks do not ask in step
    found.let_end()
    if not found.error:
        return ""
    return f"{found.started} threads more can be started, {number} are needed: {found.error}"


def lacks_processes(number: int) -> str:
    """Return why so many processes cannot run beside a session that begins, or an empty string.

    Its ranks may be asking for twice the threads that it takes while the processes are started.
    """
    return lacks_threads(number + 2 * (_THREADS + _THREADS_OF_STORE))


class _Threads(msgspec.Struct, frozen=True):
    """Threads that were alive at one time: how many, why no more, and which have ended."""

    started: int
    error: str
    ended: list[None]

    def let_end(self) -> None:
        """Wait until they have ended, five seconds at most."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: len(self.ended) >= self.started, within(_END_S))


def _start(number: int) -> _Threads:
    """Start so many threads, or as many as can be had, and let them end."""
    over, ended = _thread.allocate_lock(), list[None]()

    def end_after() -> None:
        with over:
            ended.append(None)

    with over:
        for started in range(number):
            try:
                _thread.start_new_thread(end_after, ())
            except RuntimeError as error:
                return _Threads(started, str(error), ended)
    return _Threads(number, "", ended)


def _lacks_memory() -> str:
    """Return which memory the process has too little of, by its limits and what it has mapped."""
    try:
        mapped = Path("/proc/self/statm").read_text(encoding="ascii").split()
        pages = {resource.RLIMIT_AS: int(mapped[0]), resource.RLIMIT_DATA: int(mapped[5])}
    except (OSError, ValueError):
        return ""
    for which, (name, needed_mib, kind) in _MEMORY.items():
        limit, _ = resource.getrlimit(which)
        left_mib = (limit - pages[which] * resource.getpagesize()) // _MIB
        if limit != resource.RLIM_INFINITY and left_mib < needed_mib:
            return f"{left_mib} MiB of {kind} are left, {needed_mib} are needed ({name})"
    return ""
