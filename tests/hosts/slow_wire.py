# SPDX-License-Identifier: Apache-2.0
"""A wire between hosts that is slow and loses packets: `slow_wire.py NAMESPACE=ADDRESS ...`.

Makes a card ``fab0`` in each network namespace (a TUN device), says "ready", and hands each packet
on 100 ms later, but for one of twenty. In the place of `tc netem`, which many kernels are built
without.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import sys
import time
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_DELAY_S, _LOST = 0.1, 0.05
_MOST_BYTES = 1 << 16
_LIBC = ctypes.CDLL(None, use_errno=True)


def card(namespace: str) -> int:
    """Return the descriptor of a new card ``fab0`` in a namespace."""
    with Path(f"/run/netns/{namespace}").open("rb") as file:
        if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", b"fab0", _IFF_TUN | _IFF_NO_PI))
    return descriptor


def main() -> None:
    chance = random.Random(1)  # noqa: S311  # loss, no secret
    cards = {}
    for word in sys.argv[1:]:
        namespace, _, address = word.partition("=")
        cards[socket.inet_aton(address)] = card(namespace)
    print("ready", flush=True)  # noqa: T201  # it is what it is for
    under_way: list[tuple[float, int, int, bytes]] = []
    number = itertools.count()
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select(list(cards.values()), [], [], wait_s)
        for descriptor in ready:
            packet = os.read(descriptor, _MOST_BYTES)
            to = cards.get(packet[16:20]) if packet[:1] and packet[0] >> 4 == 4 else None
            if to is not None and chance.random() >= _LOST:
                heapq.heappush(under_way, (time.monotonic() + _DELAY_S, next(number), to, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            *_, to, packet = heapq.heappop(under_way)
            os.write(to, packet)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(error, flush=True)  # noqa: T201  # it is what it is for
