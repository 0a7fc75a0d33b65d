# SPDX-License-Identifier: Apache-2.0
"""How ranks find a store that all of them reach: every pattern of blocks, and real sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination import addresses, listeners, opening
from warmup_plugin.coordination.base import JOB_STORE
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.listeners import Listeners, probe
from warmup_plugin.coordination.offers import Choice
from warmup_plugin.coordination.opening import ADDRESS, LOOPBACK, NONE, PROBE, Opening
from warmup_plugin.coordination.sockets import local_addresses
from warmup_plugin.settings import Settings

SETTINGS = Settings.from_env({}, silence_s=5.0)

#: What a rank of the model may reach, or not.
REACHES = ("loopback", "first", "second", "joins", "job")


def run(ranks: Sequence[Opening]) -> tuple[str, list[StoreLink | None], list[str]]:
    """Take the ranks through the offers; return what each has in the end, and the ways offered."""
    usable: list[bool] | None = None
    offered: list[str] = []
    for _ in range(10):
        card = ranks[0].offer(usable)
        offered.append(card.way or "error")
        answers = [rank.answer(card) for rank in ranks]
        for number, answer in enumerate(answers):
            if answer.failure:
                return f"rank {number} {answer.failure}", [None] * len(ranks), offered
        usable = [all(found) for found in zip(*(a.usable for a in answers), strict=True)]
        links = [rank.settled(usable) for rank in ranks]
        assert len({link is None for link in links}) == 1, "some go on and some do not"
        if links[0] is not None:
            return "", links, offered
    raise AssertionError(f"no end: {offered}")


# -- every pattern ---------------------------------------------------------------------------------


class Network:
    """What is blocked between rank 0 and the others, in place of a network."""

    def __init__(self, reaches: Sequence[Mapping[str, bool]]) -> None:
        self.reaches = reaches
        self.open: list[str] = []


class Modelled(Opening):
    """A rank whose sockets are a `Network`; the offers and the answers are the package's."""

    def __init__(self, rank: int, network: Network) -> None:
        super().__init__(rank, len(network.reaches) + 1, SETTINGS)
        self._network = network
        self._job_store: Any = self
        self.host, self.port = "job", 1

    def _open(self, way: str, host: str, listen: Any) -> Choice | None:
        del listen
        self.link = self._a_link(way)
        return host, 1

    def _open_in_job(self, store: Any) -> bool:
        del store
        self.link = self._a_link(JOB_STORE)
        return True

    def _listeners(self) -> Any:
        return ModelledListeners()

    def _join(self, host: str, port: int) -> str:
        del host, port
        how = {LOOPBACK: "loopback", ADDRESS: "joins", JOB_STORE: "job"}[self._way]
        if not self._network.reaches[self._rank - 1][how]:
            return "blocked"
        self.link = self._a_link(self._way)
        return ""

    def _a_link(self, way: str) -> Any:
        self._network.open.append(way)
        return ModelledLink(self._network, way)


class ModelledListeners:
    choices = (("first", 1), ("second", 2))

    def close(self) -> None:
        pass


class ModelledLink:
    def __init__(self, network: Network, way: str) -> None:
        self.network, self.way = network, way

    def close(self) -> None:
        self.network.open.remove(self.way)


def expected(reaches: Sequence[Mapping[str, bool]]) -> tuple[str, list[str]]:
    """Return the way on which the ranks should meet, and what should have been offered before."""

    def do_all(what: str) -> bool:
        return all(one[what] for one in reaches)

    if do_all("loopback"):
        return LOOPBACK, [LOOPBACK]
    offered = [LOOPBACK, PROBE]
    if do_all("first") or do_all("second"):
        offered.append(ADDRESS)
        if do_all("joins"):
            return ADDRESS, offered
    offered.append(JOB_STORE)
    return (JOB_STORE, offered) if do_all("job") else (NONE, [*offered, NONE])


def test_whatever_is_blocked_all_ranks_end_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, each pattern of what two of them reach: one store for all, or none for any."""
    patterns = [
        dict(zip(REACHES, found, strict=True))
        for found in itertools.product((True, False), repeat=len(REACHES))
    ]
    asked: list[Mapping[str, bool]] = []

    def modelled_probe(choices: Sequence[Choice], nonce: str, limit_s: float) -> list[str]:
        del nonce, limit_s
        reach = asked.pop(0)
        return ["" if reach[host] else "blocked" for host, _ in choices]

    monkeypatch.setattr(opening, "probe", modelled_probe)
    for reaches in itertools.product(patterns, repeat=2):
        asked[:] = reaches
        network = Network(reaches)
        ranks = [Modelled(rank, network) for rank in range(3)]
        failure, links, offered = run(ranks)
        way, ways = expected(reaches)
        assert offered == ways, reaches
        for rank in ranks:
            rank.close()
        if way == NONE:
            blocked = next(i for i, one in enumerate(reaches, 1) if not one["job"])
            assert failure.startswith(f"rank {blocked} cannot reach rank 0's store: "), failure
            assert network.open == [], "nothing stays open"
        else:
            assert not failure
            assert [link.way for link in links if link] == [way] * 3
            assert network.open == [way] * 3, "what was joined on the way there is let go of"


def test_ranks_of_which_no_two_reach_the_same_address_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is in the way alone: they end alike all the same."""
    faults = iter([["", "blocked"], ["blocked", ""]])
    monkeypatch.setattr(opening, "probe", lambda *_: next(faults))
    monkeypatch.setattr(Modelled, "_open_in_job", lambda *_: False)
    reach = dict.fromkeys(REACHES, False)
    failure, _, offered = run([Modelled(rank, Network([reach, reach])) for rank in range(3)])
    assert offered == [LOOPBACK, PROBE, NONE, NONE]
    assert failure.startswith("rank 1 cannot reach rank 0's store: ")
    assert failure.endswith(f"({opening._HELP})")


# -- real sockets ----------------------------------------------------------------------------------


def own_address() -> str:
    """Return an address of this machine that is not the loopback interface's."""
    found = addresses.offered(0, {})
    try:
        socket.create_server((found[0], 0)).close()
    except OSError:
        pytest.skip("this machine has the loopback interface alone: tests/hosts has such networks")
    return found[0]


def listening(port: int) -> set[str]:
    """Return the addresses at which anybody listens on a port, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, its_port = local.split(":")
            if state == "0A" and int(its_port, 16) == port:
                found.add(address)
    return found


def hexed(address: str) -> str:
    return socket.inet_aton(address)[::-1].hex().upper()


@contextlib.contextmanager
def two_ranks(job_store: Any = None, **settings: Any) -> Iterator[list[Opening]]:
    found = Settings.from_env({}, silence_s=5.0, **settings)
    ranks = [Opening(rank, 2, found, job_store, "hello") for rank in range(2)]
    yield ranks
    for rank in ranks:
        rank.close()


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no two ranks have a loopback interface in common."""
    places = itertools.count()
    monkeypatch.setattr(opening, "place", lambda: str(next(places)))


def exchange(links: Sequence[StoreLink | None]) -> None:
    """Show that the links lead to one store, another connection of theirs, too."""
    rank_0, rank_1 = links
    assert rank_0 is not None
    assert rank_1 is not None
    rank_1.set("key", b"from rank 1")
    again = rank_0.clone()
    assert again.get_now("key") == b"from rank 1"
    again.close()
    assert rank_1.greeting == "hello"


def test_on_one_machine_it_listens_on_the_loopback_interface_alone() -> None:
    with two_ranks() as ranks:
        failure, links, offered = run(ranks)
        assert (failure, offered) == ("", [LOOPBACK])
        assert links[1] is not None
        assert links[1].way == LOOPBACK
        assert listening(links[1].port) == {hexed("127.0.0.1")}
        exchange(links)
        for link in reversed(links):
            assert link is not None
            link.close()


def test_otherwise_it_listens_at_the_one_address_that_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address of the engine's that is not this machine's is none, and costs nothing."""
    address = own_address()
    apart(monkeypatch)
    monkeypatch.setenv("VLLM_HOST_IP", "192.0.2.7")
    monkeypatch.setenv("MASTER_ADDR", address)
    began = time.monotonic()
    with two_ranks() as ranks:
        failure, links, offered = run(ranks)
        assert (failure, offered) == ("", [LOOPBACK, PROBE, ADDRESS])
        assert links[1] is not None
        assert links[1].way == f"{ADDRESS} {address}"
        assert listening(links[1].port) == {hexed(address)}
        exchange(links)
        for link in reversed(links):
            assert link is not None
            link.close()
    assert time.monotonic() - began < opening.PROBE_S


def test_where_no_new_port_is_reached_a_part_of_the_jobs_store_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the session leaves there is taken away at its end, and nothing else."""
    apart(monkeypatch)
    monkeypatch.setattr(addresses, "offered", lambda *_: [])
    job = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job.set("the engine's", "own")
    before = set(job.list_keys())
    with two_ranks(job) as ranks:
        failure, links, offered = run(ranks)
        assert (failure, offered) == ("", [LOOPBACK, JOB_STORE])
        exchange(links)
        assert [link.way for link in links if link] == [JOB_STORE] * 2
        assert len(set(job.list_keys())) > len(before)
        for link in reversed(links):
            assert link is not None
            link.close()
    assert set(job.list_keys()) == before


def test_two_sessions_on_the_jobs_store_have_no_key_in_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart(monkeypatch)
    monkeypatch.setattr(addresses, "offered", lambda *_: [])
    job = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with two_ranks(job) as first, two_ranks(job) as second:
        _, (one, _), _ = run(first)
        _, (_, other), _ = run(second)
        assert one is not None
        assert other is not None
        one.set("key", b"1")
        assert not other.has(["key"])
        assert other.compare_set("key", "2") == b"2"
        assert one.claim("task")
        assert other.claim("task")
        assert not one.claim("task")


def test_the_address_that_is_named_is_the_one_that_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it is a router's, and so no address of this machine: then it listens at all."""
    apart(monkeypatch)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with two_ranks(address="localhost") as ranks:
        card = ranks[0].offer()
        assert [rank.answer(card).usable for rank in ranks] == [[True], [False]]
        assert [rank.settled([False]) for rank in ranks] == [None, None]
        card = ranks[0].offer([False])
        assert [host for host, _ in card.choices] == ["localhost"]
    elsewhere = Listeners(["192.0.2.7"], "nonce", anywhere=True)
    assert listening(elsewhere.choices[0][1]) == {"0" * 8}
    elsewhere.close()
    assert Listeners(["192.0.2.7"], "nonce").choices == []


# -- which addresses -------------------------------------------------------------------------------


def test_the_engines_own_come_first() -> None:
    """Its host's, then the job's, then its interface's; numbers that lead nowhere are left out."""
    environ = {
        "MASTER_ADDR": "10.9.0.1", "VLLM_HOST_IP": "10.9.0.2", "SGLANG_HOST_IP": "[fd00:9::1]",
        "GLOO_SOCKET_IFNAME": "lo,none-such",
    }  # fmt: skip
    assert addresses.offered(0, environ)[:3] == ["10.9.0.2", "fd00:9::1", "10.9.0.1"]
    assert len(addresses.offered(0, environ)) <= addresses.MOST
    nowhere = {"MASTER_ADDR": "127.0.1.1", "VLLM_HOST_IP": "::", "SGLANG_HOST_IP": "fe80::1"}
    assert not {*nowhere.values(), "::1", "127.0.0.1"} & {*addresses.offered(0, nowhere)}


def test_an_interface_has_its_addresses() -> None:
    assert "127.0.0.1" in addresses.of_interface("lo")
    assert list(addresses.of_interface("none-such")) == []


def test_the_ends_of_this_processs_connections_are_known() -> None:
    """Those to the job's store first: that is the network by which the ranks have met."""
    with (
        socket.create_server(("127.0.0.3", 0)) as other,
        socket.create_server(("127.0.0.2", 0)) as listener,
        socket.create_connection(other.getsockname(), source_address=("127.0.0.4", 0)),
        socket.create_connection(listener.getsockname(), source_address=("127.0.0.5", 0)),
    ):
        found = local_addresses(listener.getsockname()[1])
    assert found.index("127.0.0.5") < found.index("127.0.0.4")


# -- the probe -------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent() -> Iterator[Choice]:
    """A port at which somebody takes connections and says nothing, as behind a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "127.0.0.1", listener.getsockname()[1]


@pytest.fixture
def here() -> Iterator[Listeners]:
    found = Listeners(["127.0.0.1", "127.0.0.2"], "ours")
    yield found
    found.close()


def test_addresses_are_probed_at_the_same_time(here: Listeners) -> None:
    """Three that do not answer take as long as one, and one that does ends it."""
    with silent() as one, silent() as two, silent() as three:
        began = time.monotonic()
        faults = probe([one, two, three], "ours", 0.5)
        assert all("no answer within" in fault for fault in faults)
        assert 0.4 < time.monotonic() - began < 1.2
        began = time.monotonic()
        assert probe([here.choices[0], one], "ours", 30.0)[0] == ""
        assert [bool(f) for f in probe([one, here.choices[1]], "ours", 30.0)] == [True, False]
        assert time.monotonic() - began < 10


def test_a_port_where_nobody_listens_or_a_stranger_does_is_told(here: Listeners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = "127.0.0.1", gone.getsockname()[1]
    choices = [closed, here.choices[0]]
    assert probe(choices, "theirs", 5.0) == ["Connection refused", "somebody else answers"]


def test_strangers_who_stay_hold_nobody_up(here: Listeners) -> None:
    """A hundred connections that say nothing, or noise: the ranks are answered all the same."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stranger = stack.enter_context(socket.create_connection(here.choices[0]))
            if number % 2:
                with contextlib.suppress(OSError):  # it has been hung up already
                    stranger.send(os.urandom(1000))
        assert probe(here.choices, "ours", 5.0)[0] == ""


def test_a_socket_that_is_kept_has_no_stranger_waiting(here: Listeners) -> None:
    """Whoever had come while it was probed is no client of the store that is opened on it."""
    kept = here.keep(0)
    assert listening(here.choices[0][1])
    assert not listening(here.choices[1][1])
    kept.setblocking(False)
    with pytest.raises(BlockingIOError):
        kept.accept()
    kept.close()


def test_what_this_process_lacks_is_not_the_networks_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(listeners, "_dialled", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        probe([("127.0.0.1", 1)], "ours", 1.0)
