# SPDX-License-Identifier: Apache-2.0
"""The keyed digest in front of each value of a session's store, and what is there without one.

Owns the session's key: rank 0 makes it, and it reaches the others with rank 0's offer, so never
over the port whose values it signs. torch's store has no password: every process that reaches the
port may write. A value that a stranger has written, or moved from another key, has a wrong digest:
it counts as absent, is counted and named, and the rank that had written there is asked to write its
value again.
Where strangers are still at it after a silence the session ends, on all ranks alike
(`coordinator.py`). Never raises.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import secrets
import time
from collections import Counter
from typing import Final, NamedTuple

logger = logging.getLogger("warmup_plugin")

KEY_BYTES: Final = 32
#: The key under which a reader asks the other ranks to write again what is theirs: its rank, the
#: number of the question, and the keys at which it has found a stranger's value.
AGAIN: Final = "again"
_DIGEST_BYTES: Final = 16
#: The most values of strangers that one rank logs; all are counted.
_MOST_LOGGED: Final = 5
#: Written anew by their rank all the time, or of no use to it a second time.
_NOT_KEPT: Final = ("beat/", "take/")
#: How long a value may be on its way to the store, seconds, before it is missed there.
_ARRIVED_S: Final = 0.25
#: How often a rank asks, seconds, and for how long after it has found the stranger's value.
_ASKS_S: Final = 0.25
_WANTED_S: Final = 1.0
#: Strangers that have not been there for so long, seconds, have stopped.
_PAUSE_S: Final = 60.0


class _Left(NamedTuple):
    value: bytes
    at: float


class Seal:
    """The key of one session on one rank, and what it has found; shared by its connections.

    Args:
        key: the session's key; empty on a store whose values carry no digest.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        #: What a question for a value expects, so that it sets nothing where there is none.
        self.nothing = secrets.token_bytes(_DIGEST_BYTES)
        self._strange: Counter[str] = Counter()
        self._began = self._last = 0.0
        #: Which value of a stranger's was found last, by key, as a hash.
        self._latest: dict[str, int] = {}
        #: When this rank has found one, by key; its last question, and each other rank's.
        self._wanted: dict[str, float] = {}
        self._asked, self._asks = -math.inf, 0
        self._heard: dict[int, int] = {}
        #: What this rank has left in the store, by key.
        self._kept: dict[str, _Left] = {}
        self._missed: set[str] = set()

    @property
    def is_in_force(self) -> bool:
        """Return whether the values of this store carry a digest."""
        return bool(self._key)

    def put_on(self, key: str, value: bytes) -> bytes:
        """Return a value as it stands in the store under that key."""
        return self._digest(key, value) + value if self._key else value

    def cut_off(self, key: str, sealed: bytes) -> bytes | None:
        """Return the value, None where no rank of this session has written it under that key."""
        if not self._key:
            return sealed
        value = sealed[_DIGEST_BYTES:]
        is_ours = hmac.compare_digest(sealed[:_DIGEST_BYTES], self._digest(key, value))
        return value if is_ours else None

    def _digest(self, key: str, value: bytes) -> bytes:
        found = hashlib.blake2b(key.encode() + b"\0", digest_size=_DIGEST_BYTES, key=self._key)
        found.update(value)
        return found.digest()

    # -- strangers ---------------------------------------------------------------------------------

    def note(self, key: str, value: bytes) -> None:
        """Count that a stranger has been at a key: once, as long as that value stands there."""
        now = time.monotonic()
        if not self.is_recent(_PAUSE_S):
            self._began = now
        self._last = now
        if self._latest.get(key) == (found := hash(value)):
            return
        self._latest[key] = found
        self._strange[key] += 1
        if self._strange.total() <= _MOST_LOGGED:
            logger.warning("warmup-plugin: %s", self.told)

    @property
    def told(self) -> str:
        """What strangers have done, empty where there were none."""
        if not self._strange:
            return ""
        number, others = self._strange.total(), len(self._strange) - 1
        more = f" and {others} others" if others else ""
        return (
            "a value in the session's store was not written by its ranks, or taken away: "
            f"key {next(iter(self._strange))!r}{more}, {number} in all; none was used"
        )

    def is_recent(self, limit_s: float) -> bool:
        """Return whether strangers were there within that time."""
        return bool(self._strange) and time.monotonic() - self._last < limit_s

    def lasted_s(self) -> float:
        """Return for how long strangers have been at it, without a pause of a minute."""
        return self._last - self._began if self.is_recent(_PAUSE_S) else 0.0

    # -- what this rank has left there -------------------------------------------------------------

    def keep(self, key: str, value: bytes) -> None:
        """Remember what this rank has written."""
        if self._key and not key.startswith(_NOT_KEPT):
            self._kept[key] = _Left(value, time.monotonic())
            self._latest.pop(key, None)

    def kept(self) -> dict[str, bytes]:
        """Return what must have arrived by now."""
        until = time.monotonic() - _ARRIVED_S
        return {key: left.value for key, left in self._kept.copy().items() if left.at < until}

    def missing(self, gone: set[str]) -> set[str]:
        """Return which of these were not there at the last look either."""
        found = gone & self._missed
        self._missed = gone - found
        return found

    # -- what others have left there ---------------------------------------------------------------

    def asks(self, rank: int, key: str) -> bytes:
        """Return how this rank asks for what a stranger hides; empty where it has just asked."""
        if key.startswith(_NOT_KEPT):
            return b""
        now = time.monotonic()
        if key != AGAIN:
            self._wanted[key] = now
        if now - self._asked < _ASKS_S:
            return b""
        self._asked, self._asks = now, self._asks + 1
        wanted = [key for key, at in self._wanted.copy().items() if now - at < _WANTED_S]
        return json.dumps([rank, self._asks, wanted]).encode()

    def asked(self, question: bytes) -> list[str]:
        """Return the keys that a rank asks for; none of a question that was heard before."""
        rank, number, keys = json.loads(question)
        if number <= self._heard.get(rank, 0):
            return []
        self._heard[rank] = number
        return list(keys)
