# SPDX-License-Identifier: Apache-2.0
"""A connection to one session's key-value store, a `TCPStore`.

Owns the connection; `opening.py` has how the ranks find the store. It is rank 0's own, or a part of
the job's, the one that torch was initialised with. Turns every failure of the connection into
`RankLostError` of rank 0, whose process holds its own store: also its silence, since a stopped
process does not answer and does not hang up either. Public torch names only, but for the one by
which the job's store is found.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination.connecting import (
    CONNECT_S,
    TRY_S,
    Patience,
    check_listens,
    client,
    in_time,
)
from warmup_plugin.coordination.messages import LOST
from warmup_plugin.coordination.seals import AGAIN, Seal
from warmup_plugin.coordination.sockets import OWN_LACK, bound_answers, connected
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.topology import host_name

#: How often a rank tries to write where strangers write at the same time.
_MOST_TRIES = 100


@dataclass
class StoreLink:
    """A connection to the session's store, used by one thread at a time.

    An engine's adapter opens one where its ranks meet before the session begins; a runner does not
    need it.

    Args:
        store: torch's client of the store, None once the connection is closed.
        rank: this rank's number in the session.
        size: the number of ranks in the session.
        silence_s: the seconds that the store may leave a question unanswered; 0 means for ever.
        greeting: what rank 0 sent to all ranks with the store's address.
        leader: the name of rank 0's machine, empty where it is not known.
        way: how the ranks found the store, for the receipt.
        end: this process's end of the connection, where it leads to another host.
        prefix: the text before each key, where the store is the job's.
        sweeps: whether closing this connection deletes the keys with that prefix.
        seal: the digest of the values of this session; without a key they have none.
    """

    store: TCPStore | None
    rank: int
    size: int
    silence_s: float = 0.0
    greeting: str = ""
    leader: str = ""
    way: str = ""
    end: str = ""
    prefix: str = ""
    sweeps: bool = False
    seal: Seal = field(default_factory=Seal)
    _gone: str = field(default="", init=False)
    _claims: int = field(default=0, init=False)
    #: Its descriptors, where it stands beside another program's connection to the same store.
    _own: frozenset[int] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        """Bound every answer of the store; no question is one that waits in torch."""
        if self.store is not None and self.silence_s:
            bound_answers(self.store.port, self.silence_s)

    @property
    def port(self) -> int:
        """The port of the store, 0 once it is closed."""
        return 0 if self.store is None else self.store.port

    def hurry(self, limit_s: float) -> None:
        """Wait no longer than that for an answer from now on, where the connection stands apart."""
        if self._own and limit_s < self.silence_s:
            bound_answers(self.port, limit_s, but=frozenset(connected(self.port)) - self._own)
            self.silence_s = limit_s

    def clone(self, *, is_slow: bool = False, patience: Patience | None = None) -> StoreLink:
        """Return another connection to the same store, for another thread, which may make it.

        ``is_slow``: an earlier try has failed, so torch may take longer, within ``patience``.
        Raises `RankLostError` where no process listens any more, at once. Where the store's process
        is stopped this takes as long as it is.
        """
        if self.store is None:
            raise RankLostError(0, self._gone)
        at = self.store.host, self.store.port
        try:
            check_listens(*at)
            try_s = CONNECT_S if is_slow else TRY_S
            store = client(*at, patience.bound(try_s) if patience else try_s)
        except (OSError, RuntimeError) as error:
            raise RankLostError(0, f"{self._whose} store is gone: {error}") from error
        return StoreLink(
            store, self.rank, self.size, self.silence_s, leader=self.leader, prefix=self.prefix,
            seal=self.seal,
        )  # fmt: skip

    def set(self, key: str, value: bytes) -> None:
        """Write a value. Waits for no answer, so a store that is only stopped gets it later."""
        self._call("set", self.prefix + key, self.seal.put_on(key, value))
        self.seal.keep(key, value)

    def get_now(self, key: str) -> bytes | None:
        """Return the value of a key, or None where no rank of the session has written one yet.

        One question, which never waits: torch's own for a value does, where there is none.
        """
        nothing = self.seal.nothing
        found: bytes = self._ask("compare_set", self.prefix + key, nothing, nothing)
        if found == nothing:
            return None
        value = self.seal.cut_off(key, found)
        if value is None:
            self.seal.note(key, found)
            if asks := self.seal.asks(self.rank, key):
                self._call("set", self.prefix + AGAIN, self.seal.put_on(AGAIN, asks))
        return value

    def add(self, key: str) -> int:
        """Count one more; return the count, which has no digest."""
        count: int = self._ask("add", self.prefix + key, 1)
        return count

    def claim(self, key: str) -> bool:
        """Return whether this call is the first of all ranks' for that key."""
        self._claims += 1
        own = f"[{self.rank}, {self._claims}]"
        return self.compare_set(key, own) == own.encode()

    def compare_set(self, key: str, value: str) -> bytes:
        """Write the value unless a rank has written one; return the value that is there now."""
        return self._compare_set(key, value.encode())

    def _compare_set(self, key: str, value: bytes) -> bytes:
        own, expected = self.seal.put_on(key, value), b""
        for _ in range(_MOST_TRIES):
            found: bytes = self._ask("compare_set", self.prefix + key, expected, own)
            if found == own:
                self.seal.keep(key, value)
            if (known := self.seal.cut_off(key, found)) is not None:
                return known
            if found == expected:  # a stranger's, and not there any more
                expected = b""
            else:
                self.seal.note(key, found)
                expected = found
        raise SessionError(f"{self.seal.told} (and this rank cannot write there)")

    def restore(self) -> None:
        """Write again what strangers have taken away of this rank's, and what others ask for."""
        kept = self.seal.kept()
        if not kept:
            return
        asked = self.seal.asked(question) if (question := self.get_now(AGAIN)) else []
        again = kept.keys() & asked
        is_there = self.has([*kept])
        if is_there and not again:
            return
        if LOST not in kept and self.get_now(LOST) is not None:
            return  # the session is over, and who holds the store may have swept it
        gone = set[str]() if is_there else {key for key in kept if not self.has([key])}
        missing = self.seal.missing(gone)  # the others may be on their way
        for key in missing:
            self.seal.note(key, b"")
        with contextlib.suppress(SessionError):  # strangers are quicker: at the next look again
            for key in again | missing:
                self._compare_set(key, kept[key])

    def has(self, keys: list[str]) -> bool:
        """Return whether all keys exist now.

        Waiting is `Coordinator._wait`'s: the store's own wait logs two warnings for each one that
        times out, and a wait here is as long as the tuning.
        """
        return bool(self._ask("check", [self.prefix + key for key in keys]))

    def close(self) -> None:
        """Close the store; its sockets and, on rank 0, its thread end with the object."""
        if self.sweeps:
            self.sweeps = False
            with contextlib.suppress(RankLostError):  # it is gone, and they with it
                self._sweep()
        self.store, self._gone = None, "it is closed"

    def _sweep(self) -> None:
        """Delete the session's keys from a store that outlives it, but for that it is over."""
        if hasattr(self.store, "list_keys"):  # not in every torch; they are a few kilobytes
            for key in self._ask("list_keys"):
                if key.startswith(self.prefix) and key != f"{self.prefix}{LOST}":
                    self._call("delete_key", key)

    @property
    def _whose(self) -> str:
        return "the job's" if self.prefix else "its"

    def _ask(self, question: str, *args: Any) -> Any:
        if self._gone:  # an answer that comes late would be taken for the next one's
            raise RankLostError(0, self._gone)
        return self._call(question, *args)

    def _call(self, name: str, *args: Any) -> Any:
        try:
            return getattr(self.store, name)(*args)
        except (RuntimeError, AttributeError) as error:  # torch's errors derive from the first
            reason = reason_of(error)
            self._gone = self._gone or (
                f"{self._whose} store has not answered for {self.silence_s:.1f} s, as seen by rank "
                f"{self.rank} (host {host_name()[:64]})"
                if reason == "Socket Timeout"
                else f"{self._whose} store is gone: {reason}"
            )
            raise RankLostError(0, self._gone) from error


def reason_of(error: Exception) -> str:
    """Return what an error of torch says, without the C++ frames behind it."""
    return str(error).partition("Exception raised from")[0].strip()


def default_store() -> Any:
    """Return the store of the job that torch was initialised with."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()  # noqa: SLF001  # there is no public way to it


def innermost(store: Any) -> TCPStore | None:
    """Return the `TCPStore` that keeps what a store is given, None where there is none."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store if isinstance(store, TCPStore) else None


def link_beside(store: TCPStore, rank: int, size: int, silence_s: float) -> StoreLink:
    """Return a connection of our own to another program's store, whose own keeps having no bound.

    Raises `RankLostError` where no process listens there any more, or its store accepts no
    connection for that long, `OSError` where this process lacks what it takes.
    """
    others = frozenset(connected(store.port))

    def make(patience: Patience) -> StoreLink:
        is_slow = False
        while True:
            try:
                return StoreLink(store, rank, size).clone(is_slow=is_slow, patience=patience)
            except RankLostError as error:
                if isinstance(error.__cause__, OSError) or patience.is_over.is_set():
                    raise  # refused, a lack of our own, or too late
                is_slow = True  # else torch has given up: the store may be slow

    try:
        link = in_time(make, store.port, silence_s, but=others)
    except RankLostError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in OWN_LACK:
            raise error.__cause__ from error
        raise
    bound_answers(store.port, silence_s, but=others)
    link.silence_s, link.leader = silence_s, store.host
    link._own = frozenset(connected(store.port)) - others  # noqa: SLF001  # of the same file
    return link
