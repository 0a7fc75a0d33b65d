# SPDX-License-Identifier: Apache-2.0
"""Two hosts: ranks meet wherever the engine's own group does, cold and warm, within seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hosts.hosts import Hosts

pytestmark = pytest.mark.multiprocess

#: How the ranks hear of rank 0's offers: over a group of torch's, or over the store of the job.
HOW = ("group", "store")
Start = Callable[..., list[Any]]


def assert_met_on(way: str, found: list[Any]) -> None:
    assert {rank["met_on"] for rank in found} == {way}


@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_on_one_wire(
    make_hosts: Callable[..., Hosts], both_starts: Start, how: str, per_host: int
) -> None:
    """No default route at all, and a host name that leads to the host itself, as Debian has it."""
    hosts = make_hosts(2)
    for host in hosts.hosts:
        host.own_name = "127.0.1.1"
    found = both_starts(hosts, per_host, how)
    assert_met_on("address 10.9.0.1", found)
    assert all(rank["seconds"] < 3 for rank in found), found


@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_two_cards_of_which_one_leads_to_the_other_host(
    make_hosts: Callable[..., Hosts], both_starts: Start, how: str, per_host: int
) -> None:
    """The default route is on the other one."""
    hosts = make_hosts(2)
    hosts.give_another_card()
    found = both_starts(hosts, per_host, how)
    assert_met_on("address 10.9.0.1", found)
    assert all(rank["seconds"] < 3 for rank in found), found


@pytest.mark.parametrize("how", HOW)
def test_an_engine_that_has_been_told_the_wrong_card(
    make_hosts: Callable[..., Hosts], both_starts: Start, how: str
) -> None:
    """What its own group uses is tried at the same time."""
    hosts = make_hosts(2)
    hosts.give_another_card()
    found = both_starts(hosts, 1, how, VLLM_HOST_IP="192.168.77.1")
    assert_met_on("address 10.9.0.1", found)
    assert all(rank["seconds"] < 5 for rank in found), found


@pytest.mark.parametrize("how", HOW)
def test_one_family_of_addresses(
    make_hosts: Callable[..., Hosts], both_starts: Start, how: str
) -> None:
    """IPv6 alone."""
    found = both_starts(make_hosts(2, family=6), 1, how)
    assert_met_on("address fd00:9::1", found)
    assert all(rank["seconds"] < 3 for rank in found), found


@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_no_port_but_those_of_the_job(
    make_hosts: Callable[..., Hosts], both_starts: Start, how: str, per_host: int
) -> None:
    """What is sent to another is dropped: the session is on a part of the job's store."""
    hosts = make_hosts(2)
    hosts.block_new_ports()
    found = both_starts(hosts, per_host, how)
    assert_met_on("job store", found)
    assert all("job's store" in " ".join(rank["warnings"]) for rank in found), found
    assert all(rank["seconds"] < 10 for rank in found), found


@pytest.mark.parametrize("how", HOW)
def test_one_boot_id(make_hosts: Callable[..., Hosts], both_starts: Start, how: str) -> None:
    """Containers of one machine, or clones of one snapshot: each has its own directory."""
    hosts = make_hosts(2)
    for host in hosts.hosts:
        host.boot_id = hosts.hosts[0].boot_id
    found = both_starts(hosts, 1, how)
    assert_met_on("address 10.9.0.1", found)
    assert all(rank["seconds"] < 3 for rank in found), found
