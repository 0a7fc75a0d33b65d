# SPDX-License-Identifier: Apache-2.0
"""A forward pass of all ranks, guarded: a rank whose peer failed or is lost does not wait in it.

Owns what a thread of its own looks for while this rank is inside the engine and may be stuck in one
of the model's collectives, and how the process ends, by name, where it cannot come back.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from typing import Protocol

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.messages import FAILED
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.exit_status import EXIT_ABANDONED

logger = logging.getLogger("warmup_plugin")


class Tell(Protocol):
    """Tells the others which rank is lost, and why, before this process ends.

    ``misses_store``: the store has not answered for a silence.
    """

    def __call__(self, rank: int, reason: str, /, *, misses_store: bool) -> None: ...


def _tell_nobody(_rank: int, _reason: str, /, *, misses_store: bool) -> None:
    """Do not tell the others: this guard knows none of them."""


class ForwardGuard:
    """Ends this process when it is stuck in a forward that cannot come back.

    A rank whose forward failed says so under a key of the store, one for each forward; a rank that
    died or was stopped is found by its heartbeat. The others may be in a collective with it, where
    nothing of ours runs but this. They get ``grace_s`` to come back; then each logs rank and error
    and leaves with `EXIT_ABANDONED`, so that the engine sees a dead worker in seconds and not after
    its collective's time-out.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        grace_s: float,
        key: str = FAILED,
        *,
        leave: Callable[[int], None] = os._exit,
        tell: Tell = _tell_nobody,
        host_of: Callable[[int], str] = lambda _rank: "",
    ) -> None:
        self._others = set(range(size)) - {rank}
        self._grace_s = grace_s
        self._key = key
        self._leave, self._tell, self._host_of = leave, tell, host_of
        self._failed: tuple[int, str, float] | None = None
        self._misses_store = False
        self.is_over = False

    def look(self, detector: FailureDetector) -> None:
        """See whether a forward has failed anywhere; leave once the grace period is over."""
        if self._failed is None or self._misses_store:
            body = detector.link.get_now(self._key)
            self._find_store()
            if body is not None:
                self._fail_as_told(detector, body)
            try:
                detector.look(self._others)
            except RankLostError as error:
                fail = self.miss_store if detector.is_cut_off else self.give_up
                fail(error)
        self._maybe_leave()

    def _fail_as_told(self, detector: FailureDetector, body: bytes) -> None:
        try:
            found = messages.read(messages.Failed, body, 0, "word of a failed forward")
        except RankLostError as error:
            self.fail(error.rank, error.reason)
        else:
            self.fail(*self._culprit(detector, found))

    def _culprit(self, detector: FailureDetector, failed: messages.Failed) -> tuple[int, str]:
        """Return the rank at fault: one that has died, rather than one whose collective noticed."""
        for rank in sorted(self._others - {failed.rank}):
            if detector.view(rank) == "gone":
                return rank, f"process gone, hence rank {failed.rank}: {failed.reason}"
        return failed.rank, failed.reason

    def give_up(self, error: RankLostError) -> None:
        """Take a rank for lost."""
        self.fail(error.rank, error.reason)

    def miss_store(self, error: RankLostError) -> None:
        """Take the store's rank for lost, unless it answers again within the grace period."""
        self._misses_store |= self._failed is None
        self.fail(error.rank, error.reason)

    def _find_store(self) -> None:
        if self._misses_store:
            logger.warning("warmup-plugin: rank 0's store answers again")
            self._failed, self._misses_store = None, False

    def fail(self, rank: int, reason: str) -> None:
        """Start the grace period, once."""
        if self._failed is None:
            self._failed = (rank, reason, time.monotonic())
            logger.error(
                "warmup-plugin: the forward cannot complete: rank %d%s: %s; waiting %.0f s for it "
                "to come back",
                rank, self._where(rank), reason, self._grace_s,
            )  # fmt: skip
        self._maybe_leave()

    def left_s(self) -> float:
        """Return the seconds until the grace period is over, for ever where none has begun."""
        if self._failed is None:
            return math.inf
        return max(0.0, self._failed[2] + self._grace_s - time.monotonic())

    def _where(self, rank: int) -> str:
        host = self._host_of(rank)
        return f" (host {host})" if host else ""

    def _maybe_leave(self) -> None:
        if self._failed is None or time.monotonic() - self._failed[2] < self._grace_s:
            return
        if not self.is_over:
            rank, reason, _ = self._failed
            logger.critical(
                "warmup-plugin: this process ends (status %d): rank %d's forward failed%s and this "
                "one has not come back for %.0f s: %s",
                EXIT_ABANDONED, rank, self._where(rank), self._grace_s, reason,
            )  # fmt: skip
            self.is_over = True
            # Else who is waiting elsewhere would name this process.
            self._tell(rank, reason, misses_store=self._misses_store)
            self._leave(EXIT_ABANDONED)
