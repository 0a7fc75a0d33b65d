# SPDX-License-Identifier: Apache-2.0
"""`flock` as far as it can be trusted: never waited for, never believed alone.

Owns what is known of locks on a file system. A call may not come back (a server that is gone), so
it runs on a thread that is not waited for; a lock may be granted to everybody (Lustre, GPFS, many
NFS mounts), so one that is granted says nothing until another has been refused beside it. Raises
nothing: a lock that cannot be had is an answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Final, Literal

#: ``taken``: ours now. ``held``: somebody else's. ``none``: there are no locks here, or no answer.
Answer = Literal["taken", "held", "none"]

#: Longer than this no answer of a file system takes, seconds.
_ANSWER_S: Final = 2.0
#: File systems that have not answered: nobody asks them again.
_silent: set[int] = set()


def try_lock(descriptor: int, *, shared: bool = False) -> Answer:
    """Try to lock an open file; the lock ends with the descriptor."""
    device = _device(descriptor)
    if device in _silent:
        return "none"
    answers: list[Answer] = []
    asking = threading.Thread(
        target=_ask, args=(descriptor, shared, answers), name="warmup-flock", daemon=True
    )
    try:
        asking.start()
    except RuntimeError:  # no thread to be had: rather no lock than a wait without an end
        return "none"
    asking.join(timeout=_ANSWER_S)
    if answers:
        return answers[0]
    if device is not None:
        _silent.add(device)
    return "none"


def _device(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_dev
    except OSError:
        return None


def _ask(descriptor: int, shared: bool, answers: list[Answer]) -> None:  # noqa: FBT001  # of a thread
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        answers.append("held")
    except OSError:
        answers.append("none")
    else:
        answers.append("taken")


def is_let_go(path: Path) -> bool:
    """Return whether no process holds a lock of this file that was locked by its writer.

    False wherever that cannot be told: also where the system would grant the lock to any process.
    """
    with contextlib.ExitStack() as stack:
        try:
            first, second = (_opened(path, access, stack) for access in (os.O_RDONLY, os.O_RDWR))
        except OSError:
            return False
        # Readers do not disturb each other; the second one asks for what the first one forbids.
        return try_lock(first, shared=True) == "taken" and try_lock(second) == "held"


def _opened(path: Path, access: int, stack: contextlib.ExitStack) -> int:
    flags = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, access | flags)
    except PermissionError:  # another user's: to read it is enough, but for a lock over NFS
        descriptor = os.open(path, os.O_RDONLY | flags)
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor
