# SPDX-License-Identifier: Apache-2.0
"""This process's connections to a store, by their descriptors: bounded, and hung up.

Owns what torch's client does not do by itself. It waits without a bound for a byte from a store
whose process is stopped; it honours a limit of the socket, and a socket that is shut down. The
second matters at the end of a process: a thread that comes back from the making of a connection
into an interpreter that is being finalised ends the process by abort (status 134), so what such
threads wait for is hung up before that. Never raises.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import resource
import socket
import stat
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from warmup_plugin.runtime.polling import wait_until, within

#: More numbers of open files than this are not looked at one by one.
_MOST_DESCRIPTORS = 1 << 16
#: What a connection fails for that says nothing of the other side.
OWN_LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_INTERNET = (socket.AF_INET, socket.AF_INET6)
#: How long the end of a process waits for its threads that make connections, seconds.
_PART_S = 10.0

#: Threads that make a connection: to which port, and which connections to it are not ours to close.
_making: dict[threading.Thread, tuple[int, frozenset[int]]] = {}


def connected(port: int) -> Iterator[int]:
    """Yield the descriptors of this process's connections to a port."""
    for descriptor in _descriptors():
        is_it = False
        with _held(descriptor) as found:
            is_it = found is not None and found.getpeername()[1:2] == (port,)
        if is_it:
            yield descriptor


def local_addresses(port: int) -> list[str]:
    """Return this host's end of each of this process's connections, those of a port first.

    ``port``: of either end.
    """
    found: list[tuple[bool, str]] = []
    for descriptor in _descriptors():
        with _held(descriptor) as held:
            if held is None or held.family not in _INTERNET:
                continue
            here, there = held.getsockname(), held.getpeername()
            address = str(here[0]).removeprefix("::ffff:")
            found.append((port not in (here[1], there[1]), address))
    return list(dict.fromkeys(address for _, address in sorted(found, key=lambda one: one[0])))


def own_ends(port: int) -> set[str]:
    """Return this process's ends of its connections to a port, as the other side sees them."""
    found = set[str]()
    for descriptor in connected(port):
        with _held(descriptor) as held:
            if held is not None:
                found.add(_end(held.getsockname()))
    return found


def other_ends(port: int, ends: Collection[str], silence_s: float) -> set[str]:
    """Return which of these ends are connected to a port of this process.

    Of each the kernel then asks whether it is there, so that one whose host is gone, or behind a
    network that is cut, is no connection any more after a silence.
    """
    found = set[str]()
    for descriptor in _descriptors():
        with _held(descriptor) as held:
            if held is None or held.family not in _INTERNET or held.getsockname()[1] != port:
                continue
            if (end := _end(held.getpeername())) in ends:
                found.add(end)
                _keep_asking(held, silence_s)
    return found


def _keep_asking(connection: socket.socket, silence_s: float) -> None:
    every_s = max(1, int(silence_s / 4))
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1000, int(silence_s * 1000))),
    ):
        connection.setsockopt(level, option, value)


def _end(name: tuple[Any, ...]) -> str:
    """Return one end of a connection as text; an IPv4 address may be in its IPv6 form."""
    return f"{str(name[0]).removeprefix('::ffff:')} {name[1]}"


def bound_answers(port: int, limit_s: float, *, but: Collection[int] = ()) -> None:
    """Let this process wait no longer than that for a byte from the store at a port.

    torch bounds the wait for a key by a clock of the store's process, and nothing else by any: a
    call to a stopped process would not end.
    """
    limit = struct.pack("ll", int(limit_s), int(limit_s % 1 * 1e6))
    _for_each(port, but, lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit))


def hang_up(port: int, *, but: Collection[int] = ()) -> None:
    """End the wait of this process's threads for the store at a port, which is gone."""
    _for_each(port, but, lambda s: s.shutdown(socket.SHUT_RDWR))


def on_thread(
    make: Callable[[], None], name: str, port: int, *, but: Collection[int] = ()
) -> threading.Thread:
    """Start a thread that makes a connection to a port, ``but`` for those that are there already.

    It does not outlive the interpreter. Raises `RuntimeError` where no thread can be had.
    """
    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    for ended in [known for known in _making if not known.is_alive()]:
        _making.pop(ended, None)
    _making[thread] = port, frozenset(but)
    return thread


def part(*threads: threading.Thread, limit_s: float = _PART_S) -> None:
    """Hang up on what these threads wait for, all of them without any, until they have ended.

    ``limit_s``: how long they are waited for, seconds.
    """

    def is_over() -> bool:
        living = [thread for thread in threads or [*_making] if thread.is_alive()]
        for port, but in {_making[thread] for thread in living if thread in _making}:
            hang_up(port, but=but)
        return not living

    with contextlib.suppress(TimeoutError):
        wait_until(is_over, within(limit_s))


def _for_each(port: int, but: Collection[int], act: Callable[[socket.socket], None]) -> None:
    for descriptor in connected(port):
        if descriptor not in but:
            with _held(descriptor) as found:
                if found is not None:
                    act(found)


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[socket.socket | None]:
    """Hold a descriptor as a socket, None where it is none; it stays open.

    Not a copy of it: by now it may be the end of another module's pipe, for whose closing a process
    waits.
    """
    found = None
    with contextlib.suppress(OSError):  # closed meanwhile
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            found = socket.socket(fileno=descriptor)
    try:
        with contextlib.suppress(OSError):  # not connected, or closed meanwhile
            yield found
    finally:
        if found is not None:
            found.detach()


def _descriptors() -> Iterable[int]:
    """Return the numbers of this process's open files; all there may be where it cannot be told."""
    try:
        return [*map(int, os.listdir("/proc/self/fd"))]  # noqa: PTH208  # a third of the time
    except OSError:  # no /proc, or no descriptor to read it with
        return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_DESCRIPTORS))


atexit.register(part)
