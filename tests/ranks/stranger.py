# SPDX-License-Identifier: Apache-2.0
"""A stranger at the port of a session's store, as a process of its own: `stranger.py FOLDER HOW`.

Waits for the file ``port`` in the folder, connects, makes the file ``here``, and goes on until the
file ``over`` is there or the store is gone. Then writes what it has done to ``did``, as JSON. HOW:

    once    puts a forgery under each key, as soon as it is there, and under keys that will be
    always  the same again and again
    take    takes each key away, once
    idle    three hundred connections that say nothing, half of them as clients of the store
    noise   connections that send random bytes and hang up
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

#: What ranks would obey, had one of them written it.
FORGERY = json.dumps({"lost": 1, "reason": "forged", "go": "install", "lives": False})
#: Keys that this stranger is the first to write.
AHEAD = (
    "lost", "beat/0", "bye/0", "bye/1", "card/1", "open/1", "open/record", "certify/record",
    "share/record", "take/queue0/0", "take/queue0/1", "offer",
)  # fmt: skip
_MOST_S = 60.0
did: Counter[str] = Counter()


def connect(port: int) -> TCPStore:
    limit = timedelta(seconds=5)
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=limit)


def forge(store: TCPStore, key: str) -> None:
    store.set(key, FORGERY)


def take(store: TCPStore, key: str) -> None:
    store.delete_key(key)


def at_keys(port: int, act: Callable[[TCPStore, str], None], *, again: bool) -> Callable[[], None]:
    store, seen = connect(port), set[str]()

    def go() -> None:
        for key in store.list_keys():
            if again or key not in seen:
                seen.add(key)
                act(store, key)
                did[key] += 1

    if act is forge:
        for key in AHEAD:
            act(store, key)
            did[key] += 1
            seen.add(key)
    return go


def idle(port: int) -> Callable[[], None]:
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
    stores = [connect(port) for _ in range(150)]
    did["connections"] = len(held) + len(stores)
    return lambda: time.sleep(0.05)


def noise(port: int) -> Callable[[], None]:
    chance = random.Random(1)  # noqa: S311  # noise, no secret

    def go() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(chance.randbytes(chance.randrange(1, 5000)))
            did["connections"] += 1
        time.sleep(0.002)

    return go


def main(folder: Path, how: str) -> None:
    until = time.monotonic() + _MOST_S
    while not (folder / "port").exists() and time.monotonic() < until:
        time.sleep(0.002)
    port = int((folder / "port").read_text())
    go = {
        "once": lambda: at_keys(port, forge, again=False),
        "always": lambda: at_keys(port, forge, again=True),
        "take": lambda: at_keys(port, take, again=False),
        "idle": lambda: idle(port),
        "noise": lambda: noise(port),
    }[how]()
    (folder / "here").touch()
    with contextlib.suppress(RuntimeError, OSError):  # the store is gone
        while time.monotonic() < until and not (folder / "over").exists():
            go()
    (folder / "part").write_text(json.dumps(did))
    (folder / "part").rename(folder / "did")
    os._exit(0)  # torch's clients of a store that is gone are in no hurry


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
