# SPDX-License-Identifier: Apache-2.0
"""When SGLang's `/health` answers, which the Kubernetes probes of examples/sglang stand on."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

#: SGLang's own function, asked while it starts, when it serves, and when nothing comes back.
ASK = """
import asyncio, time
from types import SimpleNamespace
from sglang.srt.entrypoints import http_server
from sglang.srt.managers.tokenizer_manager import ServerStatus

answers = True
manager = SimpleNamespace(
    gracefully_exit=False, server_status=ServerStatus.Starting, is_generation=True,
    last_receive_tstamp=0.0, rid_to_state={},
)

async def generate_request(asked, _request):
    manager.rid_to_state[asked.rid] = None
    if answers:
        manager.last_receive_tstamp = time.time() + 0.001
    yield {}

manager.generate_request = generate_request
http_server._global_state = SimpleNamespace(tokenizer_manager=manager)
http_server.get_disagg = lambda: SimpleNamespace(disaggregation_mode="null")
request = SimpleNamespace(url=SimpleNamespace(path="/health"))

def ask():
    began = time.monotonic()
    status = asyncio.run(http_server.health_generate(request)).status_code
    print("ANSWER", status, time.monotonic() - began)

ask()
manager.server_status = ServerStatus.Up
ask()
answers = False
ask()
"""


def test_it_takes_more_than_a_second_and_at_most_twenty() -> None:
    """503 at once while it starts; 200 after a second at the earliest; 503 after 20 seconds."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert len(lines) == 3, done.stderr[-3000:]
    (starting, at_once), (up, after_s), (silent, late_s) = lines
    assert (starting, up, silent) == ("503", "200", "503")
    assert float(at_once) < 1.0
    assert float(after_s) > 1.0
    assert 20.0 <= float(late_s) < 25.0
