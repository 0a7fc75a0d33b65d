# SPDX-License-Identifier: Apache-2.0
"""Hosts that share nothing but a fleet: real starts, each with a cache root of its own.

Owns the fleets (moto's S3 server and Azurite, started once; a folder) and the fixture `start`. The
ranks are the embedded engine's. What runs inside them is in `on_ranks.py`. Every wait is bounded,
and no server outlives the tests.
"""

from __future__ import annotations

import http.server
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin import FleetAnswer
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.fleet import waiting

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.fleet import azurite
from tests.fleet.counting_server import CountingServer

ON_RANKS = Path(__file__).with_name("on_ranks.py")
#: The smallest engine that has every op.
SMALL: Mapping[str, Any] = {"layers": 2, "hidden": 32, "ffn": 32, "vocab": 32}
#: Published as soon as it is certified.
AT_ONCE = {"WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S": "0"}
#: Long enough for a busy machine; what is bounded is measured by itself.
PATIENT = {"WARMUP_PLUGIN_FLEET_WAIT_S": "20"}


@dataclass(frozen=True)
class Started:
    """What one start came to, rank by rank; ``fleet``: rank 0's receipt of it."""

    ranks: list[Any]
    seen: list[dict[str, Any]]

    @property
    def fleet(self) -> FleetAnswer:
        found: FleetAnswer = self.ranks[0].report.fleet
        return found

    @property
    def timed(self) -> list[int]:
        """Tactics timed by each rank, counted inside FlashInfer."""
        return [rank.counts["profile_single_kernel"] for rank in self.ranks]

    @property
    def timed_of_tasks(self) -> int:
        """As above, in the whole job, without the op that keeps tactics of its own."""
        own: int = sum(rank.report.passed_through_tactics for rank in self.ranks)
        return sum(self.timed) - own

    @property
    def served(self) -> list[dict[str, Any]]:
        """What the tuner serves on each rank, but for that op."""
        return [
            {
                call: answer
                for call, answer in rank.served.items()
                if call.split()[0] not in rank.report.passed_through
            }
            for rank in self.ranks
        ]

    @property
    def published(self) -> dict[str, Any]:
        """What became of rank 0's one publication."""
        (found,) = self.seen[0]["outcomes"]
        return dict(found)

    @property
    def certificate(self) -> str:
        assert {rank.report.agreement for rank in self.ranks} == {"certified"}
        (found,) = {rank.report.certificate for rank in self.ranks}
        return str(found)


def start(
    root: Path, env: Mapping[str, str], *, script: str = "serving",
    arguments: Mapping[str, Any] | None = None, **config: Any,
) -> Started:  # fmt: skip
    """Start all ranks of one job on one host, with that host's cache root."""
    found = launch(
        EngineConfig(**{**SMALL, **config}),
        root=root,
        env={**AT_ONCE, **PATIENT, **env},
        script=f"{ON_RANKS}:{script}",
        arguments=arguments,
        timeout_s=90.0,
    )
    return Started([ranks for ranks, _ in found], [seen for _, seen in found])


@pytest.fixture(name="start", scope="session")
def _start() -> Callable[..., Started]:
    """Start all ranks of one job on one host: ``start(root, environment, tp=2)``."""
    return start


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of moto's S3 server, which has a bucket named tables."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("moto_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What reaches Azurite, which has a container named tables."""
    with azurite.serving(tmp_path_factory.mktemp("azurite")) as env:
        yield env


def s3_environment(address: str) -> dict[str, str]:
    """Return what reaches that server, with credentials of which it wants none in particular."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty fleet in a folder, which this process reaches as well."""
    (tmp_path / "shared").mkdir()
    env = {"WARMUP_PLUGIN_FLEET": f"file://{tmp_path}/shared"}
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", env["WARMUP_PLUGIN_FLEET"])
    return env


@pytest.fixture(params=["s3", "file"])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """An empty fleet: ``fleet("write")`` is the environment of a host with that role.

    This process reaches it as well.
    """
    if request.param == "file":
        env = {"WARMUP_PLUGIN_FLEET": f"file://{tmp_path}/shared"}
        (tmp_path / "shared").mkdir()
    elif request.param == "az":
        env = dict(request.getfixturevalue("azure_server"))
        env["WARMUP_PLUGIN_FLEET"] = f"az://tables/{secrets.token_hex(8)}"
    else:
        address = request.getfixturevalue("s3_server")
        env = s3_environment(address)
        env["WARMUP_PLUGIN_FLEET"] = f"s3://tables/{secrets.token_hex(8)}"
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    def as_role(role: str = "read") -> dict[str, str]:
        return {**env, "WARMUP_PLUGIN_FLEET_ROLE": role}

    return as_role


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An empty fleet on that server; the requests of this test so far."""
    CountingServer.objects.clear()
    CountingServer.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CountingServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield CountingServer.asked
        server.shutdown()


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """Whatever a test has begun early ends with it."""
    yield
    while waiting._waiting:
        waiting._waiting.pop().close()
