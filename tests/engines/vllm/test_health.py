# SPDX-License-Identifier: Apache-2.0
"""When vLLM listens, which the Kubernetes probes of examples/vllm stand on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from own_functions import take

pytestmark = pytest.mark.engine

LAUNCHER = "entrypoints/launchers/launcher.py"
ENTRY = "entrypoints/launchers/api_server/entry.py"


def nothing(*_args: Any, **_options: Any) -> None:
    """Stand for what has to do with logs, parsers and limits."""


def test_it_does_not_listen_while_the_engine_starts() -> None:
    """Its port is taken before, so that nobody else gets it; who knocks meanwhile is refused."""
    made = take(
        "vllm", LAUNCHER, "setup_server", "create_server_socket", socket=socket,
        is_valid_ipv6_address=lambda _address: False, log_version_and_model=nothing,
        log_non_default_args=nothing, init_parser_plugin=nothing, validate_api_server_args=nothing,
        set_ulimit=nothing, logger=None, VLLM_VERSION="",
    )  # fmt: skip
    said: list[str] = []
    held: list[socket.socket] = []

    def setup_server(args: Any, **options: Any) -> Any:
        address, own = made["setup_server"](args, **options)
        held.append(own)  # vLLM closes it when its server has ended, and here it never begins
        return address, own

    @contextlib.asynccontextmanager
    async def make_engine(args: Any, **_options: Any) -> AsyncIterator[None]:
        try:
            socket.create_connection((args.host, args.port), 1).close()
            said.append("connected")
        except ConnectionRefusedError:
            said.append("refused")
        raise KeyboardInterrupt
        yield

    served = take(
        "vllm", ENTRY, "run_server", "run_server_worker", signal=SimpleNamespace(
            signal=nothing, SIGTERM=signal.SIGTERM),
        decorate_logs=nothing, init_parser_plugin=nothing, setup_server=setup_server,
        build_async_engine_client=make_engine,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    args = SimpleNamespace(
        model="", host="127.0.0.1", port=port, uds=None, ssl_keyfile=None, ssl_certfile=None
    )
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(served["run_server"](args))
    held[0].close()
    assert said == ["refused"]
