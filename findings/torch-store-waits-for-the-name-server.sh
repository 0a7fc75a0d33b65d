#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0: a `TCPStore` looks up the name of every client on its one thread; all ranks wait.
#
# torch has the resolver look up the address of the other side of each connection, on the client and
# on the store's only thread, though it uses the name for messages alone. An IPv4 address is asked
# for in its IPv6 form (`::ffff:127.0.0.1`), which no hosts file has, so even a connection over the
# loopback interface asks the name server. Where that answers late, or drops a question now and then
# (the resolver asks again after five seconds), each rank that joins holds the store for all the
# others. A client's own look-up counts against its `timeout`, though the connection is there, and
# fails it. Both backends of the store do it. A name server that never answers costs less: once a
# look-up has failed the process makes no other.
#
# Seen on 2026-11-29 with torch 2.13.0 (CPU build) in a network namespace whose name server takes three
# seconds for an answer, then gives none; the resolver gives up after two. Needs `unshare`, `ip` and
# the right to make namespaces. Output:
#
#     libuv: 2 questions for one connection; it takes 6 s, a get of another rank meanwhile 3 s
#     no libuv: 2 questions for one connection; it takes 6 s, a get of another rank meanwhile 3 s
#     without an answer: the first connection takes 2 s, the second 0 s
#
# Exit status 0 while that is so, 1 once it changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0

cat >"$work/look.py" <<'PYTHON'
import socket
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore

DELAY_S = 3.0
is_silent = sys.argv[1:] == ["silent"]
questions = []


def answer(server, data, peer):
    time.sleep(DELAY_S)
    # The same question back, as an answer that there is no such name.
    server.sendto(data[:2] + b"\x81\x83" + data[4:6] + b"\0" * 6 + data[12:], peer)


def serve(server):
    while True:
        data, peer = server.recvfrom(512)
        questions.append(data)
        if not is_silent:
            threading.Thread(target=answer, args=(server, data, peer), daemon=True).start()


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
threading.Thread(target=serve, args=(server,), daemon=True).start()


def connect(port=0, *, is_master, uv):
    limit = timedelta(seconds=60)
    return TCPStore("127.0.0.1", port, is_master=is_master, wait_for_workers=False, timeout=limit, use_libuv=uv)


def seconds(make):
    began = time.monotonic()
    made = make()
    return made, time.monotonic() - began


if is_silent:
    store, first = seconds(lambda: connect(is_master=True, uv=True))
    _, second = seconds(lambda: connect(store.port, is_master=False, uv=True))
    print(f"without an answer: the first connection takes {first:.0f} s, the second {second:.0f} s")
    sys.exit()

for name, uv in {"libuv": True, "no libuv": False}.items():
    store = connect(is_master=True, uv=uv)
    store.set("key", "value")
    rank = connect(store.port, is_master=False, uv=uv)
    questions.clear()
    took, waits = [], []

    def join(port=store.port, uv=uv, took=took):
        took.append(seconds(lambda: connect(port, is_master=False, uv=uv))[1])

    joining = threading.Thread(target=join)
    joining.start()
    while joining.is_alive():
        began = time.monotonic()
        rank.get("key")
        waits.append(time.monotonic() - began)
        time.sleep(0.05)
    print(
        f"{name}: {len(set(questions))} questions for one connection; it takes {took[0]:.0f} s, "
        f"a get of another rank meanwhile {max(waits):.0f} s",
        flush=True,
    )
PYTHON

cat >"$work/in_namespace.sh" <<'SHELL'
ip link set lo up
printf 'nameserver 127.0.0.1\noptions timeout:10\n' >"$1/resolv.conf"
printf 'hosts: files dns\n' >"$1/nsswitch.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf 2>/dev/null || true
"$1/venv/bin/python" "$1/look.py" 2>/dev/null
RES_OPTIONS="timeout:2 attempts:1" "$1/venv/bin/python" "$1/look.py" silent 2>/dev/null
SHELL
unshare --map-root-user --mount --net bash "$work/in_namespace.sh" "$work" | tee "$work/seen"

expected="libuv: 2 questions for one connection; it takes 6 s, a get of another rank meanwhile 3 s
no libuv: 2 questions for one connection; it takes 6 s, a get of another rank meanwhile 3 s
without an answer: the first connection takes 2 s, the second 0 s"
[ "$(cat "$work/seen")" = "$expected" ]
