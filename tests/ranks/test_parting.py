# SPDX-License-Identifier: Apache-2.0
"""The end of a process of which a thread makes a connection: its own exit status, no abort.

The store's process is stopped, and wakes up just when the interpreter of the other one is being
finalised, so that torch comes back to it then.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from warmup_plugin.coordination.connecting import in_time
from warmup_plugin.errors import RankLostError

pytestmark = pytest.mark.multiprocess

BOUND_S = 40.0
STATUS = 3

STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(60)
"""

LEAVING = """
import os, signal, subprocess, sys, time
from torch.distributed import TCPStore
from warmup_plugin.errors import RankLostError
from warmup_plugin.coordination.reconnecting import RenewedLink
from warmup_plugin.coordination.kv_client import StoreLink, link_beside

store = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
)
port = int(store.stdout.readline())
own = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
store.send_signal(signal.SIGSTOP)
{then}

class WokenAtTheEnd:
    def __del__(self, signal_to=store.send_signal, sleep=time.sleep):
        signal_to(18)  # SIGCONT
        sleep(0.5)
        signal_to(9)

kept = WokenAtTheEnd()
print("leaves", flush=True)
sys.exit({status})
"""

BESIDE = """
try:
    link_beside(own, 1, 2, 0.5)
except RankLostError as error:
    print(error, flush=True)
"""
RENEWED = """
link = RenewedLink(StoreLink(own, 1, 2, 5.0))
link.connect()
time.sleep(0.3)
assert link.is_connecting
"""


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(BESIDE, id="a connection that was given up"),
        pytest.param(RENEWED, id="a connection in the making"),
    ],
)
def test_a_process_ends_with_its_own_status(then: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c",
         LEAVING.format(then=then, status=STATUS), STORE],
        capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert "leaves" in done.stdout, done.stderr
    assert done.returncode == STATUS, done.stderr[-2000:]
    assert time.monotonic() - began < BOUND_S


def test_a_connection_that_was_given_up_is_given_back_at_once() -> None:
    """Nobody need wait for it at the end of the process, nor does a thread of it live on."""
    told = BESIDE + "import threading; print(len(threading.enumerate()), 'thread', flush=True)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", LEAVING.format(then=told, status=0), STORE],
        capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert "its store accepts no connection for 0.5 s" in done.stdout
    assert "1 thread" in done.stdout, done.stdout


def test_a_thread_that_does_not_come_back_is_not_waited_for() -> None:
    """Its caller knows by then that the rank is lost, and all others wait to hear of it."""
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(RankLostError, match=r"accepts no connection for 0\.2 s"):
        in_time(lambda _patience: never.wait(30.0), 9, 0.2, but=())
    assert time.monotonic() - began < 5.0
    never.set()
