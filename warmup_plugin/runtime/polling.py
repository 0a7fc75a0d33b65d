# SPDX-License-Identifier: Apache-2.0
"""The one wait of this package: until a condition holds, never without a look at the ranks.

Owns how often is asked. The caller says what to look at meanwhile and how that ends the wait, by
raising; so no wait is longer than the bound its caller looks after.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Asked again after this long, seconds: at first, and at most; in between after this share of the
#: wait so far, so that nobody who waited briefly waits much longer than needed.
_PAUSE_S = (0.0002, 0.05)
_SHARE = 1 / 8
#: How long a wait counts as brief, seconds.
_BRIEF_S = 1.0
#: How often the waiting one looks round, seconds.
_LOOK_S = 0.25


def wait_until(
    is_there: Callable[[], bool], look: Callable[[float], None], *, brief_pause_s: float = 1.0
) -> None:
    """Ask until ``is_there``; call ``look`` with the seconds waited, a few times a second.

    ``brief_pause_s``: the longest pause while the wait is brief, which most are.
    Raises what ``look`` raises: that is how a wait ends that has nothing to wait for any more.
    """
    began = looked = time.monotonic()
    now = began
    while not is_there():
        most = min(brief_pause_s, _PAUSE_S[1]) if now - began < _BRIEF_S else _PAUSE_S[1]
        time.sleep(min(max((now - began) * _SHARE, _PAUSE_S[0]), most))
        now = time.monotonic()
        if now - looked > _LOOK_S:
            look(now - began)
            looked = now


def within(limit_s: float) -> Callable[[float], None]:
    """Return a look that ends the wait after ``limit_s`` seconds with a `TimeoutError`."""

    def look(waited_s: float) -> None:
        if waited_s > limit_s:
            raise TimeoutError

    return look
