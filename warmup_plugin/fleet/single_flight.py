# SPDX-License-Identifier: Apache-2.0
"""One host tunes for the fleet, the others wait: the process's side of the lease.

Owns how the lease is taken, renewed and freed, and the wait of a host that has not got it. Each
write is a compare-and-swap on the state that was read, so of two hosts that take a dead holder's
place one is refused. A holder frees its lease after it has published: who reads a free lease and
then the pointer misses no table. Where the store fails for as long as a holder may be silent, the
wait ends with that as its reason.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from warmup_plugin.fleet.lease import (
    MISSED,
    MOST_FAILED,
    SCHEMA,
    Lease,
    Watch,
    beat_of,
    bounded,
    is_free,
    parse_lease,
    render_lease,
)
from warmup_plugin.fleet.objects import FleetError, Objects, Seen
from warmup_plugin.fleet.pointer import Pointer, Whose, parse_pointer
from warmup_plugin.fleet.pull import Pulled
from warmup_plugin.runtime.safe_json import Miss

#: A host that waits looks once in a beat of the holder, more or less by this share of it.
_JITTER: Final = 0.25
#: While the holder renews the lease, a long wait takes at most this much longer: thousands of hosts
#: look ever more rarely, and do not fetch the table in the same few seconds.
_RARER: Final = 0.1
#: Of so many looks one is at the pointer as well: a host without the lease may have published.
_LOOKS_A_POINTER: Final = 6
#: More often than this no other host is faster, one after the other.
_MOST_TAKES: Final = 3

#: Tells the engine of a state before the last one.
Tell = Callable[[dict[str, Any]], None]


class Turn:
    """This host's hold on an identity's lease. ``is_held``: until another host has taken it over.

    ``holder``: this host in words; ``beat_s``: how often it renews the lease.
    """

    def __init__(
        self, objects: Objects, whose: Whose, holder: str, beat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._objects, self._whose = objects, whose
        self._holder, self._beat_s, self._clock = holder, bounded(beat_s), clock
        self._token, self._generation = secrets.token_hex(8), 0
        self._seen: Seen | None = None
        self._due = 0.0
        self._failed: tuple[str, ...] = ()
        self.is_held = False

    def take(self, seen: Seen | None) -> bool:
        """Become the holder where the lease is still as it was seen."""
        lease = parse_lease(seen.data, self._whose.identity) if seen else None
        self._seen, self._failed = seen, lease.failed if isinstance(lease, Lease) else ()
        self.is_held = self._write(self._holder)
        return self.is_held

    def beat(self) -> None:
        """Renew the lease if that is due; a store that fails is asked again at the next beat."""
        if not self.is_held or self._clock() < self._due:
            return
        self._due = self._clock() + self._beat_s
        try:
            self.is_held = self._write(self._holder)
        except FleetError:
            return

    def tell_failed(self, tasks: Iterable[str]) -> None:
        """Have the lease say, once it is free, which tasks this host has tuned without a result."""
        self._failed = tuple(tasks)[:MOST_FAILED] or self._failed

    def free(self) -> None:
        """Give the lease back, if it is this host's; otherwise it expires."""
        if self.is_held:
            self.is_held = False
            try:
                self._write("")
            except FleetError:
                return

    def _write(self, holder: str) -> bool:
        """Write the next generation; return False where the lease is another host's by now.

        A write that was tried again after its answer was lost is refused although it was done.
        """
        for _ in range(2):
            self._generation += 1
            data = render_lease(Lease(
                schema=SCHEMA, identity=self._whose.identity, token=self._token, holder=holder,
                generation=self._generation, beat_s=self._beat_s, failed=self._failed,
            ))  # fmt: skip
            done = self._objects.swap_lease(self._whose, data, self._seen)
            now = done or self._objects.lease(self._whose)
            if now is None or not self.is_mine(now):
                return False
            self._seen, self._due = now, self._clock() + self._beat_s
            if now.data == data:
                return True
        return False

    def is_mine(self, seen: Seen) -> bool:
        """Return whether this host has written a state of the lease."""
        lease = parse_lease(seen.data, self._whose.identity)
        return isinstance(lease, Lease) and lease.token == self._token


class Asked(NamedTuple):
    """What a host waits with. ``turn``: None for a host that may not write.

    ``bundle``: the latest that its engine knows; ``tasks``: those that it lacks, not all where they
    are many; ``pull``: places the fleet's latest one.
    """

    objects: Objects
    whose: Whose
    turn: Turn | None
    bundle: str
    tasks: frozenset[str]
    pull: Callable[[], Pulled]
    tell: Tell


def await_turn(
    asked: Asked, *, pause: Callable[[float], None] = time.sleep, watch: Watch | None = None
) -> dict[str, Any]:
    """Return as soon as this host is to tune, or has another bundle than its engine knows.

    ``held``: the lease is this host's; ``free``: no host holds it, and this one may not; ``tried``:
    another host has had no result for what is left; ``failed``: the store does not answer; else as
    `pull` answers. While another host holds it the
    engine is told ``waits``. The caller bounds the wait.
    """
    wait = looks(asked, watch or Watch())
    while True:
        try:
            pause(next(wait))
        except StopIteration as end:
            found: dict[str, Any] = end.value
            return found


def looks(asked: Asked, watch: Watch) -> Generator[float, None, dict[str, Any]]:
    """Look once at each step, yield how long to pause before the next, and return as above."""
    wait = _Wait(asked, watch)
    began: float | None = None
    while True:
        try:
            found = wait.look()
            began = None
        except FleetError as error:
            watch.begin_anew()
            now = watch.clock()
            began = now if began is None else began
            if not wait.holder or now - began > MISSED * wait.beat_s:
                return {"state": "failed", "reason": str(error)}
            found = None
        if found is not None:
            return found
        yield wait.pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret


class _Wait:
    """The looks of one wait. ``holder``: who tunes, empty before that is known."""

    def __init__(self, asked: Asked, watch: Watch) -> None:
        self.watch, self.beat_s = watch, beat_of(None)
        self.holder = ""
        self._asked, self._looks, self._began = asked, 0, watch.clock()

    @property
    def pause_s(self) -> float:
        """How long to wait before the next look, more or less."""
        if self.watch.stands_still:
            return self.beat_s
        return max(self.beat_s, _RARER * (self.watch.clock() - self._began))

    def look(self) -> dict[str, Any] | None:
        """Look at the lease; return how the wait ends, None where it goes on."""
        asked = self._asked
        for _ in range(_MOST_TAKES):
            seen = asked.objects.lease(asked.whose)
            lease = parse_lease(seen.data, asked.whose.identity) if seen else None
            self.beat_s = beat_of(lease)
            if isinstance(lease, Lease) and asked.tasks and asked.tasks <= {*lease.failed}:
                return {"state": "tried", "holder": self.holder}
            is_dead = not is_free(lease) and self.watch.is_still(seen, self.beat_s)
            if not (is_free(lease) or is_dead or self._is_own(seen)):
                return self._wait(lease)
            if found := self._bundle():
                return found
            if asked.turn is None:
                return {"state": "free", "holder": self.holder}
            if asked.turn.take(seen):
                return {"state": "held", "holder": self.holder, "is_takeover": is_dead}
            self.watch.begin_anew()  # another host was faster
        return None

    def _is_own(self, seen: Seen | None) -> bool:
        """Return whether this host has written it, in a request that was answered by an error."""
        turn = self._asked.turn
        return turn is not None and seen is not None and turn.is_mine(seen)

    def _wait(self, lease: Lease | Miss | None) -> dict[str, Any] | None:
        holder = lease.holder if isinstance(lease, Lease) else "a host whose lease cannot be read"
        if holder != self.holder:
            self.holder = holder
            self._asked.tell({"state": "waits", "holder": holder})
        self._looks += 1
        return self._bundle() if self._looks % _LOOKS_A_POINTER == 0 else None

    def _bundle(self) -> dict[str, Any] | None:
        """Place the fleet's latest bundle; None where its engine knows it, or it is not used."""
        asked = self._asked
        seen = asked.objects.pointer(asked.whose)
        pointer = parse_pointer(seen.data, asked.whose.identity) if seen else None
        if not isinstance(pointer, Pointer) or pointer.bundle == asked.bundle:
            return None
        asked.tell({"state": "fetches", "holder": self.holder})
        found = asked.pull()
        if found.state == "failed":
            raise FleetError(found.reason)
        if found.state not in ("fetched", "kept"):
            return None
        return {**msgspec.to_builtins(found), "holder": self.holder}
