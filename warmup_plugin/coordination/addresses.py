# SPDX-License-Identifier: Apache-2.0
"""The addresses at which the other hosts may reach this one: those that the engine uses already.

Owns where they are looked for and which is tried first. An engine whose ranks are on several hosts
has been told which network to use, by a variable or by the connections that its groups have made;
the route to the internet may be on another one that the other hosts cannot reach. Resolves no name
while there is a number. Raises nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from warmup_plugin.coordination.roll_call import MOST_CHOICES
from warmup_plugin.coordination.sockets import local_addresses
from warmup_plugin.topology import host_name

#: More than these are not offered: each is one socket, and one entry of a card of fixed size.
MOST: Final = MOST_CHOICES
#: Variables by which an engine is told the address of its host; the last is rank 0's of the job.
_HOST_VARIABLES: Final = ("VLLM_HOST_IP", "SGLANG_HOST_IP", "MASTER_ADDR")
#: Variables that name network interfaces, with commas between them.
_INTERFACE_VARIABLES: Final = ("GLOO_SOCKET_IFNAME",)
_SIOCGIFADDR: Final = 0x8915
_IF_INET6: Final = Path("/proc/net/if_inet6")


def offered(port: int, environ: Mapping[str, str]) -> list[str]:
    """Return numeric addresses of this host, likeliest first; where there is none, its name.

    ``port``: that of the job's store, 0 where it has none: connections to it are looked at first.
    """
    found = list[str]()
    for address in _numbers(port, environ):
        if address not in found and _is_of_use(address):
            found.append(address)
    return found[:MOST] or [host_name()[:200]]


def _numbers(port: int, environ: Mapping[str, str]) -> Iterator[str]:
    for variable in _HOST_VARIABLES:
        yield environ.get(variable, "").strip("[]")
    for variable in _INTERFACE_VARIABLES:
        for interface in environ.get(variable, "").split(","):
            yield from of_interface(interface.strip())
    yield from local_addresses(port)
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing; it only asks which interface would be used.
        # These addresses are reserved for documentation.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            yield str(probe.getsockname()[0])


def of_interface(name: str) -> Iterable[str]:
    """Return the addresses of a network interface, none where there is no such one."""
    found = list[str]()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        request = struct.pack("256s", name.encode()[:15])
        answer = fcntl.ioctl(any_one.fileno(), _SIOCGIFADDR, request)
        found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError, ValueError):
        for line in _IF_INET6.read_text(encoding="ascii").splitlines():
            digits, *_, its_name = line.split()
            if its_name == name:
                found.append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def _is_of_use(address: str) -> bool:
    """Return whether this is a number at which another host could reach one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)
