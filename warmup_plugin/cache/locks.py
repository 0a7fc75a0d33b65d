# SPDX-License-Identifier: Apache-2.0
"""One publisher of a directory at a time, as far as its file system lets that be said.

Owns the lock: `flock` on the directory, which ends with its process, or, on a file system that
knows no locks, a file that only one process can create. Neither is held for ever: the file of a
holder that has not moved for a while, counted here and by no file's date, is taken away. Refuses
nothing: a process that waits too long goes on without, since locks only spare work (`store.py`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from warmup_plugin.cache.files import Mark, is_marked, mark_of
from warmup_plugin.cache.flock import try_lock
from warmup_plugin.runtime.polling import wait_until, within

#: The file of a holder where there are no locks.
CLAIM: Final = ".publishing.tmp"
#: A writer that holds the lock for longer than this is stopped or gone; go on without.
_LOCK_WAIT_S: Final = 5.0
#: A file that is still the same one after this long is that of a dead or stopped process.
_STALE_S: Final = 3.0


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other publishers of this directory out, as far as the file system knows locks.

    Raises `OSError` where the directory cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    claim = _Claim(directory / CLAIM)
    try:
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: _try_lock(descriptor, claim), within(_LOCK_WAIT_S))
        yield
    finally:
        claim.give_back()
        os.close(descriptor)


def _try_lock(descriptor: int, claim: _Claim) -> bool:
    answer = try_lock(descriptor)
    return claim.try_take() if answer == "none" else answer == "taken"


class _Claim:
    """A file that says who publishes, where no lock can."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: Mark | None = None
        self._other: Mark | None = None
        self._since = 0.0

    def try_take(self) -> bool:
        """Create the file; False while another's is there and was put there lately."""
        try:
            self._own = _create(self._path)
        except FileExistsError:
            self._give_up_the_dead()
            return False
        except OSError:
            return True  # no place to say it, such as a full disk: publishing will tell
        return True

    def _give_up_the_dead(self) -> None:
        try:
            other = mark_of(self._path.stat())
        except OSError:
            return
        now = time.monotonic()
        if other != self._other:
            self._other, self._since = other, now
        elif now - self._since > _STALE_S and is_marked(self._path, other):
            with contextlib.suppress(OSError):
                self._path.unlink()

    def give_back(self) -> None:
        """Take the file away again, unless another process has given this one up meanwhile."""
        if self._own is not None and is_marked(self._path, self._own):
            with contextlib.suppress(OSError):
                self._path.unlink()


def _create(path: Path) -> Mark:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        return mark_of(os.fstat(descriptor))
    except OSError:
        path.unlink()  # else nobody would know whose it is
        raise
    finally:
        os.close(descriptor)
