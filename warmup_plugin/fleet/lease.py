# SPDX-License-Identifier: Apache-2.0
"""The lease of an identity: which host tunes it for the fleet, and whether that host still lives.

Owns the document and the rule of its expiry, which compares no clocks: the holder renews a number,
and a host that waits sees on its own clock for how long the number stands still. An optimisation
and no lock: two holders only tune twice, and their tables are united. Bad bytes are a `Miss`, and
expire like the lease of a dead holder. Pure but for the clock that is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from warmup_plugin.fleet import document
from warmup_plugin.runtime.safe_json import Miss

SCHEMA: Final = 1
#: A lease that has not been renewed for so many of its holder's beats is taken over.
MISSED: Final = 6
#: It has been looked at as often as this meanwhile: a host that was stopped itself looks again.
_LOOKS: Final = 4
#: Of so many tasks a lease tells that they failed; a host that waits tells of one more.
MOST_FAILED: Final = 64
#: The beat of a holder whose lease cannot be read, and the bounds of what one may say, seconds.
_BEAT_S: Final = 5.0
_BEATS_S: Final = (0.1, 60.0)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One state of an identity's lease.

    ``holder``: the host that tunes, in words; empty where the lease is free. ``token``: unique to
    the process that wrote it. ``generation``: one more at each renewal. ``beat_s``: how often its
    holder renews it. ``failed``: tasks that the last holder has tuned without a result: a host that
    lacks no others has no turn to wait for.
    """

    schema: int
    identity: str
    token: str
    generation: int
    holder: str = ""
    beat_s: float = _BEAT_S
    failed: tuple[str, ...] = ()


_LEASE: Final = msgspec.json.Decoder(Lease)


def parse_lease(data: bytes, identity: str) -> Lease | Miss:
    """Read the lease of an identity."""
    return document.parse("lease", _LEASE, data, schema=SCHEMA, identity=identity)


def render_lease(lease: Lease) -> bytes:
    """Return the document."""
    return msgspec.json.encode(lease) + b"\n"


def is_free(lease: Lease | Miss | None) -> bool:
    """Return whether no host holds the lease; one that cannot be read may be held."""
    return lease is None or (isinstance(lease, Lease) and not lease.holder)


def beat_of(lease: Lease | Miss | None) -> float:
    """Return how often the holder of a lease renews it."""
    return bounded(lease.beat_s if isinstance(lease, Lease) else _BEAT_S)


def bounded(beat_s: float) -> float:
    """Return a beat within the bounds of all holders: a host that waits relies on no longer one."""
    return min(max(beat_s, _BEATS_S[0]), _BEATS_S[1])


class Watch:
    """How long a lease has stood still, as one host sees it on its own monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._state: object = None
        self._since, self._looks = 0.0, 0

    def is_still(self, state: object, beat_s: float) -> bool:
        """Note the state of a look; return whether the holder has missed too many beats."""
        now = self.clock()
        if state != self._state:
            self._state, self._since, self._looks = state, now, 0
        self._looks += 1
        return self._looks >= _LOOKS and now - self._since >= MISSED * beat_s

    @property
    def stands_still(self) -> bool:
        """Whether the state was at the last look as at the one before."""
        return self._looks > 1

    def begin_anew(self) -> None:
        """Forget what was seen: a look has failed, and the holder may have failed to renew it."""
        self._state = None
