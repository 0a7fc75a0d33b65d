# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a session find a store that all of them reach.

Owns the order in which rank 0 offers one. Each `Offer` reaches all ranks; each rank tries what
is in it and says what it can use, and all hear what all can use: over the group that is given
(`connect`), or over the job's store (`engines/readiness.py`). Until there is a store for all:

1. rank 0's own, on the loopback interface, for ranks that have it in common;
2. its addresses, the engine's first, probed all at the same time (`addresses.py`, `listeners.py`);
3. its own store, on the first address that all have reached;
4. a part of the job's store, which all have reached before: where no new port can be.

So it listens on one interface and no other, and a rank that cannot join makes no other rank wait.
Raises `SessionError` on every rank alike where no way is left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination.base import JOB_STORE
from warmup_plugin.coordination.connecting import CONNECT_S, in_time, patient_client
from warmup_plugin.coordination.kv_client import StoreLink, default_store, innermost, link_beside
from warmup_plugin.coordination.listeners import Listeners, listen_at, probe
from warmup_plugin.coordination.offers import Choice, Offer, place, read_offer
from warmup_plugin.coordination.roll_call import call_the_roll, tell
from warmup_plugin.coordination.seals import KEY_BYTES, Seal
from warmup_plugin.coordination.sockets import OWN_LACK, connected, own_ends
from warmup_plugin.coordination.versions import of_this_build, readable_by_older
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.standard_streams import hold_standard_streams
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: The ways, as offers name them; the last is that of one that offers nothing any more.
LOOPBACK, PROBE, ADDRESS, NONE = "loopback", "probe", "address", "none"
_STORES: Final = (LOOPBACK, ADDRESS, JOB_STORE)
_LOOPBACK_ADDRESS: Final = "127.0.0.1"
_ANYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # what an address is compared with
#: How long a rank waits for an answer from rank 0's addresses, seconds: a lost packet is sent again
#: after one.
PROBE_S: Final = 3.0
_HELP: Final = "WARMUP_PLUGIN_ADDRESS on rank 0 names the address to use"


class Answer(NamedTuple):
    """What one rank makes of an offer: which choices it can use, and what it cannot do."""

    usable: Sequence[bool]
    failure: str = ""


class Opening:
    """One rank's part in the opening of a session.

    ``job_store``: this process's connection to the store of the job, None where it has none.
    ``greeting``: rank 0's is known to all afterwards; a hundred characters at most.
    """

    def __init__(
        self, rank: int, size: int, settings: Settings, job_store: Any = None, greeting: str = ""
    ) -> None:
        self._rank, self._size, self._settings = rank, size, settings
        self._job_store = innermost(job_store)
        self._greeting, self._leader = greeting, host_name()[:64]
        self._nonce, self._secret = secrets.token_hex(8), secrets.token_bytes(KEY_BYTES)
        self._offers = self._series()
        self._way = ""
        #: This rank's connection to the store on offer, until it is settled.
        self.link: StoreLink | None = None
        #: Why nothing of what this rank tried was of use.
        self._tried: list[str] = []
        #: Whether nothing of the last offer was; and how often nothing was left to be offered.
        self._is_blocked, self._ends = False, 0

    # -- rank 0 ------------------------------------------------------------------------------------

    def offer(self, usable: Sequence[bool] | None = None) -> Offer:
        """Return rank 0's next offer; ``usable``: which choices of the last one all ranks can use.

        An error of rank 0's own is an offer, too, since the others wait for one.
        """
        try:
            way, choices = next(self._offers) if usable is None else self._offers.send(usable)
        except Exception as error:  # noqa: BLE001  # whatever it is, all hear of it
            return Offer(error=ascii(f"{type(error).__name__}: {error}")[1:-1][:400])
        if usable is not None:
            return Offer(way, choices, self._nonce)
        return Offer(
            way, choices, self._nonce, place(), self._leader, self._greeting, self._secret.hex()
        )

    def _series(self) -> Generator[tuple[str, list[Choice]], Sequence[bool], None]:
        """Yield one offer after the other, as long as there is no store for all."""
        if at := self._open(LOOPBACK, _LOOPBACK_ADDRESS, lambda: listen_at(_LOOPBACK_ADDRESS)):
            yield LOOPBACK, [at]
        with contextlib.closing(self._listeners()) as listeners:
            usable = (yield PROBE, listeners.choices) if listeners.choices else ()
            at = None
            if True in usable:
                index = list(usable).index(True)
                host, _ = listeners.choices[index]
                at = self._open(ADDRESS, host, lambda: listeners.keep(index))
        if at:
            yield ADDRESS, [at]
        if self._job_store is not None and self._open_in_job(self._job_store):
            yield JOB_STORE, [(self._job_store.host, self._job_store.port)]
        while True:
            yield NONE, []

    def _listeners(self) -> Listeners:
        from warmup_plugin.coordination.addresses import offered  # most jobs are on one host

        port = 0 if self._job_store is None else self._job_store.port
        named = self._settings.address
        addresses = [named] if named else offered(port, os.environ)
        return Listeners(addresses, self._nonce, anywhere=bool(named))

    def _open(self, way: str, host: str, listen: Callable[[], socket.socket]) -> Choice | None:
        """Open a store of rank 0's own on a socket that listens; return where it is."""
        hold_standard_streams()
        try:
            with listen() as listener:
                own, port = listener.getsockname()[:2]
                store = TCPStore(
                    _LOOPBACK_ADDRESS if own in _ANYWHERE else own, port, is_master=True,
                    wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S),
                    master_listen_fd=listener.detach(),
                )  # fmt: skip
            self.link = self._linked(store, way, host)
            self.link.set("nonce", self._nonce.encode())
        except (RuntimeError, OSError) as error:
            self._tried.append(f"cannot open a store at {host}: {error}")
            self.link = None
            return None
        return host, port

    def _open_in_job(self, store: TCPStore) -> bool:
        try:
            self.link = self._in_job(store, self._nonce)
            self.link.set("nonce", self._nonce.encode())
        except (OSError, RankLostError) as error:
            self._tried.append(f"cannot use the job's store: {error}")
        return self.link is not None

    # -- every rank --------------------------------------------------------------------------------

    def answer(self, offer: Offer) -> Answer:
        """Try what is offered; return what this rank can use of it.

        Raises `RankLostError` where the process of rank 0, which holds its store, is stopped.
        """
        if offer.error:
            return Answer((), f"cannot open a store: {offer.error}")
        self._way, self._nonce = offer.way, offer.nonce
        if self._rank and offer.place is not None:
            self._leader, self._greeting = offer.leader, offer.greeting
        try:
            if self._rank and offer.place is not None:
                self._secret = bytes.fromhex(offer.secret)
            return self._answer(offer)
        except RankLostError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it lacks: all hear of it
            return Answer((), f"cannot join: {type(error).__name__}: {error}")

    def _answer(self, offer: Offer) -> Answer:
        choices = offer.choices
        if self._way == NONE:
            self._ends += 1
            return Answer((), self._no_way())
        if self._rank == 0:
            return Answer([True] * len(choices))
        if self._way == PROBE:
            faults = probe(choices, self._nonce, PROBE_S)
        elif self._way == LOOPBACK and offer.place != place():
            return Answer([False])
        else:
            faults = [self._join(*choices[0])]
        for (host, port), fault in zip(choices, faults, strict=True):
            if fault:
                self._tried.append(f"{host} port {port}: {fault}")
        self._is_blocked = all(faults)
        return Answer([not fault for fault in faults])

    def _join(self, host: str, port: int) -> str:
        """Join the store there; return why that cannot be, or an empty text."""
        before = set[str]() if self._way == LOOPBACK else own_ends(port)
        try:
            if self._way != JOB_STORE:
                store = self._joined(host, port)
                link = self._linked(store, self._way, host)
            elif self._job_store is None:
                return "this rank has no such store of the job"
            else:
                link = self._in_job(self._job_store, self._nonce)
            if (link.get_now("nonce") or b"").decode(errors="replace") != self._nonce:
                link.close()
                return "another store answers"
        except OSError as error:
            if error.errno in OWN_LACK:
                raise
            return error.strerror or str(error)
        except RankLostError as error:
            if self._way != JOB_STORE:  # else it need not be rank 0's process that holds it
                raise
            return error.reason
        except RuntimeError as error:
            return str(error)
        if self._way != LOOPBACK:  # else its process is seen without that
            link.end = next(iter(own_ends(port) - before), "")
        self.link = link
        return ""

    def _joined(self, host: str, port: int) -> TCPStore:
        hold_standard_streams()
        others = frozenset(connected(port))
        return in_time(
            lambda patience: patient_client(host, port, patience),
            port, self._settings.silence_s, but=others,
        )  # fmt: skip

    def _linked(self, store: TCPStore, way: str, host: str) -> StoreLink:
        return StoreLink(
            store, self._rank, self._size, self._settings.silence_s, self._greeting,
            leader=self._leader, way=way if way == LOOPBACK else f"{way} {host}",
            seal=Seal(self._secret),
        )  # fmt: skip

    def _in_job(self, store: TCPStore, nonce: str) -> StoreLink:
        """Return a connection to a part of the job's store that is this session's alone."""
        link = link_beside(store, self._rank, self._size, self._settings.silence_s)
        link.greeting, link.leader, link.way = self._greeting, self._leader, JOB_STORE
        link.seal = Seal(self._secret)
        link.prefix, link.sweeps = f"warmup_plugin/session/{nonce}/", self._rank == 0
        return link

    def settled(self, usable: Sequence[bool]) -> StoreLink | None:
        """Return the session's store if all ranks have joined it, None where they go on looking."""
        link, self.link = self.link, None
        if link is not None and self._way in _STORES and usable[:1] == [True]:
            return link
        if link is not None:
            link.close()
        return None

    def close(self) -> None:
        """Let go of what is open and not settled."""
        self._offers.close()
        self.settled([])

    def _no_way(self) -> str:
        """Return what this rank says where nothing is left: first those that are in the way."""
        if self._rank == 0:
            return "; ".join(self._tried)
        if self._is_blocked or self._ends > 1:
            tried = "; ".join(self._tried) or "none of its addresses is reached by all ranks"
            return f"cannot reach rank 0's store: {tried} ({_HELP})"
        return ""


def connect(group: dist.ProcessGroup | None, settings: Settings, greeting: str = "") -> StoreLink:
    """Open the session's store on rank 0 and join it on the others.

    Every rank of ``group`` (None: the default group) must call it. ``greeting``: see `Opening`.
    Raises `SessionError` on every rank where one of them cannot open the store or reach it.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    usable: Sequence[bool] | None = None
    with contextlib.closing(Opening(rank, size, settings, _job_store(), greeting)) as opening:
        while True:
            offer = opening.offer(usable).to_json() if rank == 0 else None
            if offer is not None and usable is None:
                offer = readable_by_older(offer)
            found = opening.answer(read_offer(of_this_build(tell(offer, group), rank)))
            reason, usable = call_the_roll(found.failure, found.usable, group)
            if reason:
                raise SessionError(reason)
            if (link := opening.settled(usable)) is not None:
                return link


def _job_store() -> Any:
    """Return the store of the job; None where torch has none, or keeps it elsewhere."""
    with contextlib.suppress(Exception):  # a private name of torch's: whoever needs it hears of it
        return default_store()
    return None
