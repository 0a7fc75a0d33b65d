# SPDX-License-Identifier: Apache-2.0
"""What the nine steps need from the other ranks, and how a single process does without them.

Owns the interface: one primitive, `meet`, in which each rank hands in its vote and all act on one
decision; bodies beside it, by their sha256; and what is said of a rank at work. `coordinator.py`
does it for several ranks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from warmup_plugin.coordination.rounds import D, Decide, Round, V
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.safe_json import digest

#: How ranks have met that found no other way, in `Rendezvous.way`.
JOB_STORE: Final = "job store"
#: Told a rank, its step and its task.
Listener = Callable[[int, str, str], None]


class Rendezvous(Protocol):
    """What the nine steps need from the other ranks."""

    rank: int
    size: int
    #: Of each meeting: its name, when this rank came (monotonic), how long until the record.
    waits: list[tuple[str, float, float]]
    #: How the ranks have found the store on which they meet.
    way: str

    @property
    def bytes_sent(self) -> int:
        """How much this rank has handed to the store."""
        ...

    @property
    def bytes_received(self) -> int:
        """How much it has taken from it."""
        ...

    @property
    def strangers(self) -> str:
        """What others than the ranks have done to the store, empty where they have not."""
        ...

    def meet(self, held: Round[V, D], vote: V, decide: Decide[V, D]) -> D:
        """Hand in this rank's vote, return the one decision all ranks act on."""
        ...

    def put(self, body: bytes, sha256: str = "") -> str:
        """Offer a body to all ranks; return its sha256, by which they get it, unless known here."""
        ...

    def offer(self, body: bytes, sha256: str) -> None:
        """Put, on rank 0, a body that the next meeting will most likely agree on."""
        ...

    def expect(self) -> None:
        """Take such a body while this rank waits in the next meeting."""
        ...

    def get(self, sha256: str) -> bytes:
        """Return the body of that sha256, checked."""
        ...

    def take(self, name: str) -> int:
        """Count one more of something that is given once; return how many before; as `confirm`."""
        ...

    def note(self, step: str, task: str = "") -> None:
        """Tell the others, through the heartbeat, what this rank is at; find out as `confirm`."""
        ...

    def confirm(self) -> None:
        """Make sure, before this rank writes or installs, that the others have not gone on."""
        ...

    def follow(self, listener: Listener | None) -> None:
        """Have the other ranks' heartbeats told from now on, on another thread; None ends it."""
        ...

    def in_forward(self) -> contextlib.AbstractContextManager[None]:
        """Look after the engine's forward in the body, and tell the others if it raises."""
        ...

    def abandon(
        self, reason: str, *, of: int | None = None, lives: bool = False
    ) -> RankLostError | None:
        """Tell the others that this rank, or another, leaves unfinished; ``lives``: and lives.

        Returns the loss by which the session had ended before.
        """
        ...

    def name_hosts(self, nodes: list[list[int]], hosts: list[str]) -> None:
        """Say on which machines the ranks are."""
        ...

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's machine, as far as it is known."""
        ...

    def close(self) -> None:
        """Leave; nothing of the session stays behind."""
        ...


class Alone:
    """The rendezvous of a single process."""

    rank = 0
    size = 1
    way = ""
    bytes_sent = 0
    bytes_received = 0
    strangers = ""

    def __init__(self) -> None:
        self.waits: list[tuple[str, float, float]] = []
        self._bodies: dict[str, bytes] = {}
        self._taken: Counter[str] = Counter()

    def meet(self, held: Round[V, D], vote: V, decide: Decide[V, D]) -> D:
        """Decide from the only vote there is."""
        del held
        return decide({0: vote})

    def put(self, body: bytes, sha256: str = "") -> str:
        """Keep the body for `get`."""
        name = sha256 or digest(body)
        self._bodies[name] = body
        return name

    def offer(self, body: bytes, sha256: str) -> None:
        """Nobody lacks it."""

    def expect(self) -> None:
        """Nobody offers anything."""

    def get(self, sha256: str) -> bytes:
        """Return a body put before; raises `KeyError` for another."""
        return self._bodies[sha256]

    def take(self, name: str) -> int:
        """Count one more; nobody else does."""
        self._taken[name] += 1
        return self._taken[name] - 1

    def note(self, step: str, task: str = "") -> None:
        """Nobody is listening."""

    def confirm(self) -> None:
        """Nobody else decides."""

    def follow(self, listener: Listener | None) -> None:
        """There are no others."""

    def in_forward(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else waits."""
        return contextlib.nullcontext()

    def abandon(self, reason: str, *, of: int | None = None, lives: bool = False) -> None:
        """Nobody else is left."""

    def name_hosts(self, nodes: list[list[int]], hosts: list[str]) -> None:
        """There are no others."""

    def host_of(self, rank: int) -> str:
        """There are no others."""
        del rank
        return ""

    def close(self) -> None:
        """Forget the bodies."""
        self._bodies.clear()
