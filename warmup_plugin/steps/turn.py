# SPDX-License-Identifier: Apache-2.0
"""One session at a time in a process, since FlashInfer's tuner is one object for all its threads.

Owns whose turn it is. A session of a single process waits for the one on another thread, for
``replica_wait_s`` at most. One of several ranks does not wait: the same two jobs may stand in
another order in another process, and each would wait for the other. Nor does one that is opened
within another on the same thread. Both are refused: `SessionError`, on every rank alike.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import msgspec

from warmup_plugin.coordination.roll_call import stay_away
from warmup_plugin.errors import SessionError
from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from warmup_plugin.steps.options import Options

logger = logging.getLogger("warmup_plugin")


class _Holder(msgspec.Struct, frozen=True):
    """The session that is open: of which engine, on which thread."""

    engine: str
    thread: int
    name: str

    def __str__(self) -> str:
        return f"a session of {self.engine} on thread {self.name!r}"


class _Turn(msgspec.Struct):
    """Whose turn it is. ``lock`` is held for a moment only: nobody waits for it."""

    lock: threading.Lock
    holder: _Holder | None = None

    def take(self, holder: _Holder) -> _Holder:
        """Become the holder unless there is one; return who is."""
        with self.lock:
            self.holder = self.holder or holder
            return self.holder


_turn = _Turn(threading.Lock())


def _begin_anew() -> None:
    """Forget, in a child, the thread that has not come along."""
    _turn.lock, _turn.holder = threading.Lock(), None


os.register_at_fork(after_in_child=_begin_anew)


@contextlib.contextmanager
def own_turn(options: Options) -> Iterator[tuple[str, float]]:
    """Run the body as the only session of this process.

    Yields for whom this one has waited, and how many seconds. Raises `SessionError` where it is
    refused; the ranks of a group hear of that from each other, as of all that one of them lacks.
    """
    thread = threading.current_thread()
    own = _Holder(options.engine[0], thread.ident or 0, thread.name)
    waited = "", 0.0
    if (first := _turn.take(own)) is not own:
        waited = _wait(own, first, options)
    try:
        yield waited
    finally:
        _turn.holder = None


def _wait(own: _Holder, first: _Holder, options: Options) -> tuple[str, float]:
    limit_s = options.settings.replica_wait_s
    is_alone = options.ranks.world_size == 1 and options.group is None
    if first.thread == own.thread:
        _refuse(options, f"{first} is open, and this one is opened within it: must be closed first")
    if not is_alone:
        _refuse(options, f"{first} is open in this process: must end before one of several ranks")
    logger.warning("warmup-plugin: waiting, %g s at most, for %s to end", limit_s, first)
    began = time.monotonic()
    try:
        wait_until(lambda: _turn.take(own) is own, within(limit_s))
    except TimeoutError:
        limit = f"{limit_s:g} s (WARMUP_PLUGIN_REPLICA_WAIT_S)"
        raise SessionError(f"{first} has not ended: must end within {limit}") from None
    return str(first), time.monotonic() - began


def _refuse(options: Options, reason: str) -> NoReturn:
    """Raise `SessionError` on every rank."""
    if options.link is not None:
        from warmup_plugin.coordination.session_end import turn_away

        turn_away(options.link, reason, options.settings.silence_s)
    elif options.ranks.world_size > 1 or options.group is not None:
        stay_away(reason, options.group)
    raise SessionError(reason)
