# SPDX-License-Identifier: Apache-2.0
"""Where a failure leads: the engine warms up as without this package, or the job ends. Pure.

Owns the two laws of this package about failures. **What a live rank lacks** (a thread, a
descriptor, a directory, another rank's version) is nobody's end: every rank lets the engine warm up
as without this package, at once. **Where a rank is lost** (dead, stopped, cut off) nobody falls
back: the engine's own warm-up is full of collectives in which the others would wait for it, so each
rank that lives ends and names it. Adapters ask here and have no rule of their own. Every rank meets
the same failure, since it crosses ranks as one record (`coordinator.py`, `engines/readiness.py`).
"""

from __future__ import annotations

import enum

from warmup_plugin.errors import ForwardError, LateError, WarmupError, loss_in


class Failure(enum.Enum):
    """What can come of a warm-up instead of a receipt."""

    NOT_READY = "the ranks are not ready to warm up together"
    CANNOT_GO_ON = "a rank that lives cannot go on"
    FORWARD = "the engine's forward has failed"
    RANK_LOST = "a rank is dead, stopped or cut off"
    TOO_LATE = "a rank has failed after the last record: the others do not warm up any more"
    NOT_OURS = "an exception that this package has not made: a signal, the engine's own"


class Way(enum.Enum):
    """Where it leads, on every rank alike."""

    AS_WITHOUT = "the engine warms up as without this package"
    RAISE = "the exception is the engine's to handle"
    END = "the job ends by name: this process enters no collective any more"


_WAYS = {
    Failure.NOT_READY: Way.AS_WITHOUT,
    Failure.CANNOT_GO_ON: Way.AS_WITHOUT,
    Failure.FORWARD: Way.RAISE,
    Failure.RANK_LOST: Way.END,
    Failure.TOO_LATE: Way.RAISE,
    Failure.NOT_OURS: Way.RAISE,
}


def failure_of(error: BaseException | str) -> Failure:
    """Return which failure an exception stands for; a text is why the ranks are not ready."""
    if isinstance(error, str):
        return Failure.NOT_READY
    if loss_in(error) is not None:
        return Failure.RANK_LOST
    if isinstance(error, ForwardError):
        return Failure.FORWARD
    if isinstance(error, LateError):
        return Failure.TOO_LATE
    return Failure.CANNOT_GO_ON if isinstance(error, WarmupError) else Failure.NOT_OURS


def way_of(failure: Failure, mode: str) -> Way:
    """Return where a failure leads. In mode ``require-complete`` there is nothing to fall back to.

    That mode serves what is stored or does not start; the engine's own warm-up would time.
    """
    way = _WAYS[failure]
    return Way.RAISE if way is Way.AS_WITHOUT and mode == "require-complete" else way
