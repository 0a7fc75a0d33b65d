# SPDX-License-Identifier: Apache-2.0
"""One session's key-value store: our own `TCPStore`.

Owns the connection and how ranks find it: rank 0 opens the store on a free port and tells its
addresses over the given process group, where all then say that they have joined (`roll_call.py`).
Refuses a store that is not the session's (a nonce is compared), and turns every failure of the
connection into `RankLostError` of rank 0, whose process holds it: also its silence, since a stopped
process does not answer and does not hang up either. Public torch names only.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination.roll_call import call_the_roll, tell
from warmup_plugin.coordination.sockets import OWN_LACK, bound_answers, connected, on_thread, part
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.standard_streams import hold_standard_streams
from warmup_plugin.topology import host_name, machine_id

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: More than it takes a resolver to give up one name server (10 s by default): torch has it look up
#: the name of the other side of each connection, and counts that as time to connect.
_CONNECT_S = 12.0
_LOOPBACK = "127.0.0.1"
#: How long torch tries at first, seconds: it would ask a closed port for all the time it is given.
_TRY_S = 1.0
#: How often a value is asked for that torch gives up waiting for.
_MOST_TRIES = 5


class BeatLink(Protocol):
    """What a heartbeat needs of the store."""

    rank: int
    size: int

    def set(self, key: str, value: bytes) -> None: ...
    def get_now(self, key: str) -> bytes | None: ...
    def has(self, keys: list[str]) -> bool: ...
    def close(self) -> None: ...


class Link(BeatLink, Protocol):
    """What a meeting needs of it; `StoreLink` over the network, a model of it in tests."""

    #: The name of rank 0's machine, empty where it is not known.
    leader: str

    @property
    def port(self) -> int:
        """The port of its store, 0 where it has none."""
        ...

    def clone(self, *, is_slow: bool = False) -> Link: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str) -> int: ...
    def compare_set(self, key: str, value: str) -> bytes: ...


@dataclass
class StoreLink:
    """A connection to the session's store, used by one thread at a time.

    ``silence_s``: how long the store may leave a question unanswered; for ever without it.
    ``greeting``: what rank 0 has told all with the store's address.
    """

    store: TCPStore | None
    rank: int
    size: int
    silence_s: float = 0.0
    greeting: str = ""
    leader: str = ""
    _gone: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Bound every answer of the store."""
        if self.store is not None and self.silence_s:
            bound_answers(self.store.port, self.silence_s)
            # The wait for a key is not the socket's: a key that is got is there.
            self._call("set_timeout", timedelta(seconds=self.silence_s / 2))

    @property
    def port(self) -> int:
        """The port of the store, 0 once it is let go of."""
        return 0 if self.store is None else self.store.port

    def clone(self, *, is_slow: bool = False) -> StoreLink:
        """Return another connection to the same store, for another thread, which may make it.

        ``is_slow``: an earlier try has failed, so torch may take longer. Raises
        `RankLostError` where nobody listens any more, at once. Where the store's process is stopped
        this takes as long as it is.
        """
        if self.store is None:
            raise RankLostError(0, self._gone)
        at = self.store.host, self.store.port
        try:
            _check_listens(*at)
            store = _client(*at, _CONNECT_S if is_slow else _TRY_S)
        except (OSError, RuntimeError) as error:
            raise RankLostError(0, f"its store is gone: {error}") from error
        return StoreLink(store, self.rank, self.size, self.silence_s, leader=self.leader)

    def set(self, key: str, value: bytes) -> None:
        """Write a value. Waits for no answer, so a store that is only stopped gets it later."""
        self._call("set", key, value)

    def get(self, key: str) -> bytes:
        """Return the value of a key that exists."""
        value: bytes = self._ask("get", key, tries=_MOST_TRIES)
        return value

    def get_now(self, key: str) -> bytes | None:
        """Return the value of a key, or None where it does not exist yet."""
        return self.get(key) if self.has([key]) else None

    def add(self, key: str) -> int:
        """Count one more; return the count."""
        count: int = self._ask("add", key, 1)
        return count

    def compare_set(self, key: str, value: str) -> bytes:
        """Write the value unless the key exists; return the value that is there now."""
        found: bytes = self._ask("compare_set", key, "", value)
        return found

    def has(self, keys: list[str]) -> bool:
        """Return whether all keys exist now.

        Waiting is `Meeting._wait`'s: the store's own wait logs two warnings for each one that
        times out, and a wait here is as long as the tuning.
        """
        return bool(self._ask("check", keys))

    def close(self) -> None:
        """Let go of the store; its sockets and, on rank 0, its thread end with the object."""
        self.store, self._gone = None, "it is closed"

    def _ask(self, question: str, *args: Any, tries: int = 1) -> Any:
        if self._gone:  # an answer that comes late would be taken for the next one's
            raise RankLostError(0, self._gone)
        return self._call(question, *args, tries=tries)

    def _call(self, name: str, *args: Any, tries: int = 1) -> Any:
        try:
            return getattr(self.store, name)(*args)
        except (RuntimeError, AttributeError) as error:  # torch's errors derive from the first
            reason = str(error).split("Exception raised from")[0].strip()
            if tries > 1 and reason.startswith("wait timeout"):
                # torch has told the store so, and the store has answered that: it is only slow.
                return self._call(name, *args, tries=tries - 1)
            self._gone = self._gone or (
                f"its store has not answered for {self.silence_s:.1f} s"
                if reason == "Socket Timeout"
                else f"its store is gone: {reason}"
            )
            raise RankLostError(0, self._gone) from error


_Made = TypeVar("_Made")


def _in_time(
    make: Callable[[threading.Event], _Made],
    port: int,
    silence_s: float,
    *,
    but: Collection[int],
) -> _Made:
    """Call ``make`` on a thread of its own, and return what it returns within a silence.

    ``make`` connects to ``port``, and torch bounds no handshake with a store whose process is
    stopped. Its argument is an event that is set once this function has given up. ``but``: the
    process's older connections to that port, which are left alone. Raises what ``make`` raises,
    `RankLostError` where it takes longer, `OSError` where no thread can be started.
    """
    made: list[_Made | Exception] = []
    is_done, is_given_up = threading.Event(), threading.Event()

    def run() -> None:
        try:
            made.append(make(is_given_up))
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            made.append(error)
        is_done.set()

    try:
        maker = on_thread(run, "warmup-join", port, but=but)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    if not is_done.wait(silence_s):
        is_given_up.set()
        part(maker)
        raise RankLostError(0, f"its store lets nobody in for {silence_s:.1f} s")
    (found,) = made
    if isinstance(found, Exception):
        raise found
    return found


def link_beside(store: TCPStore, rank: int, size: int, silence_s: float) -> StoreLink:
    """Return a connection of our own to somebody else's store, whose own keeps having no bound.

    Raises `RankLostError` where nobody listens there any more, or lets anybody in for that long,
    `OSError` where this process lacks what it takes.
    """
    others = frozenset(connected(store.port))

    def make(is_given_up: threading.Event) -> StoreLink:
        is_slow = False
        while True:
            try:
                return StoreLink(store, rank, size).clone(is_slow=is_slow)
            except RankLostError as error:
                if isinstance(error.__cause__, OSError) or is_given_up.is_set():
                    raise  # refused, a lack of our own, or too late
                is_slow = True  # else torch has given up: the store may be slow

    try:
        link = _in_time(make, store.port, silence_s, but=others)
    except RankLostError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in OWN_LACK:
            raise error.__cause__ from error
        raise
    bound_answers(store.port, silence_s, but=others)
    link.silence_s, link.leader = silence_s, store.host
    return link


def connect(group: dist.ProcessGroup | None, settings: Settings, greeting: str = "") -> StoreLink:
    """Open the session's store on rank 0 and join it on the others.

    Every rank of ``group`` (None: the default group) must call it. ``greeting``: rank 0's is known
    to all afterwards; a hundred characters at most. Raises `SessionError` on every rank where one
    of them cannot open the store or reach it.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    link, card, failure = None, dict[str, Any](), ""
    try:
        if rank == 0:
            link, card = open_session(size, settings, greeting)
    except Exception as error:  # noqa: BLE001  # whatever it lacks: the others wait for its card
        card = {"error": ascii(f"{type(error).__name__}: {error}")[1:-1][:400]}
    card = tell(card if rank == 0 else None, group)
    try:
        if "error" in card:
            failure = f"cannot open a store: {card['error']}"
        elif rank:
            link = join_session(card, rank, size, settings)
    except RankLostError:
        raise  # the roll call would wait for it
    except SessionError as error:
        failure = str(error)
    except Exception as error:  # noqa: BLE001  # as above: they wait at the roll call
        failure = f"cannot join: {type(error).__name__}: {error}"
    reason = call_the_roll(failure, group)
    if link is None or reason:
        if link is not None:
            link.close()
        raise SessionError(reason)
    return link


def open_session(
    size: int, settings: Settings, greeting: str
) -> tuple[StoreLink | None, dict[str, Any]]:
    """Open the store on rank 0; return with it the card by which the others find it.

    Without a store the card says why, and `join_session` raises.
    """
    store, card = _open(settings)
    card["greeting"] = greeting
    if store is None:
        return None, card
    return StoreLink(store, 0, size, settings.silence_s, greeting, card["leader"]), card


def join_session(card: dict[str, Any], rank: int, size: int, settings: Settings) -> StoreLink:
    """Join the store that rank 0's card leads to.

    Raises `SessionError`, and `RankLostError` where rank 0's process is stopped.
    """
    if "error" in card:
        raise SessionError(f"rank 0 cannot open a store: {card['error']}")
    leader = str(card.get("leader", ""))
    others = frozenset(connected(card["port"]))
    store = _in_time(
        lambda is_given_up: _join(card, is_given_up), card["port"], settings.silence_s, but=others
    )
    return StoreLink(store, rank, size, settings.silence_s, card["greeting"], leader)


def _open(settings: Settings) -> tuple[TCPStore | None, dict[str, Any]]:
    nonce = secrets.token_hex(8)
    hold_standard_streams()
    try:
        store = TCPStore(
            _LOOPBACK, 0, is_master=True, wait_for_workers=False,
            timeout=timedelta(seconds=_CONNECT_S),
        )  # fmt: skip
        store.set("nonce", nonce)
    except (RuntimeError, OSError) as error:
        return None, {"error": ascii(str(error))[:400]}  # one byte a character: the card is small
    hosts = [settings.address] if settings.address else _addresses()
    return store, {
        "hosts": hosts, "port": store.port, "nonce": nonce, "machine": machine_id(),
        "leader": host_name()[:64],
    }  # fmt: skip


def _addresses() -> list[str]:
    """Return the names by which other nodes may reach this one, likeliest first."""
    found = []
    # Connecting a datagram socket sends nothing; it only asks which interface would be used. No
    # route is a machine with the loopback interface alone.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        probe.connect(("192.0.2.1", 9))  # an address reserved for documentation
        found.append(str(probe.getsockname()[0]))
    return [*found, host_name()[:200]]


def _client(host: str, port: int, try_s: float) -> TCPStore:
    """Return a connection to a store, for which torch tries for so many seconds.

    Raises `RuntimeError` where no store answers there by then.
    """
    limit = timedelta(seconds=try_s)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    store.set_timeout(timedelta(seconds=_CONNECT_S))
    return store


def _check_listens(host: str, port: int) -> None:
    """Raise `OSError` at once where nobody listens; torch would try for as long as it may."""
    socket.create_connection((host, port), timeout=_CONNECT_S).close()


def _patient_client(host: str, port: int, is_given_up: threading.Event) -> TCPStore:
    """Return a connection to a store that may be slow to answer, after a short try.

    Raises `OSError` where nobody listens any more, `RuntimeError` where no store answers. The short
    try leaves `_check_listens` out: each connection has the store look up a name while all ranks
    wait.
    """
    try:
        return _client(host, port, _TRY_S)
    except RuntimeError:
        if is_given_up.is_set():
            raise
        _check_listens(host, port)
        return _client(host, port, _CONNECT_S)


def _join(card: dict[str, Any], is_given_up: threading.Event) -> TCPStore:
    same_machine = card["machine"] == machine_id()
    hosts = [_LOOPBACK, *card["hosts"]] if same_machine else card["hosts"]
    refused = []
    hold_standard_streams()
    for host in hosts:
        try:
            store = _patient_client(host, card["port"], is_given_up)
            # Two containers of one machine share the boot id but not the loopback interface.
            if store.get("nonce").decode() == card["nonce"]:
                return store
            refused.append(f"{host}: another store answers")
        except (OSError, RuntimeError) as error:
            refused.append(f"{host}: {error}")
        if is_given_up.is_set():
            break
    raise SessionError(
        f"cannot reach rank 0's store on port {card['port']}: {'; '.join(refused)} "
        "(WARMUP_PLUGIN_ADDRESS on rank 0 names the address to use)"
    )
