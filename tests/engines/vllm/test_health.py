# SPDX-License-Identifier: Apache-2.0
"""When vLLM listens, which the Kubernetes probes of examples/vllm stand on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from vllm_jobs import ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

#: vLLM's own server, up to where it makes its engine: there somebody knocks at the port.
ASK = """
import asyncio, contextlib, socket
from vllm.entrypoints.common.cli_args import make_arg_parser
from vllm.entrypoints.launchers.api_server import entry
from vllm.utils.argparse_utils import FlexibleArgumentParser

with socket.create_server(("127.0.0.1", 0)) as found:
    port = found.getsockname()[1]
words = ["--model", "my/model", "--host", "127.0.0.1", "--port", str(port)]
args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)

@contextlib.asynccontextmanager
async def make_engine(*_args, **_options):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        print("ANSWER connected")
    except ConnectionRefusedError:
        print("ANSWER refused")
    raise SystemExit
    yield

entry.build_async_engine_client = make_engine
asyncio.run(entry.run_server(args))
"""


def test_it_does_not_listen_while_the_engine_starts() -> None:
    """Its port is taken before, so that nobody else gets it; who knocks is refused."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert said == ["ANSWER refused"], done.stderr[-3000:]
