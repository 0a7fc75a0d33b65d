# SPDX-License-Identifier: Apache-2.0
"""The manifests' probes on a server that tunes: never ready too early, never killed.

A simulated kubelet for each manifest asks one server every second, through a cold start, a warm one
and one in which the plugin does nothing. The server listens when its start is done, later than the
warm-up's own word for it: `toy_server.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes import manifests
from tests.kubernetes.kubelet import Kubelet

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(240)]

SERVER = Path(__file__).with_name("toy_server.py")
PORTS = {"vllm": 8000, "sglang": 30000}
#: How long the server is watched once it listens: SGLang's liveness probe asks three times.
LISTENS_S = 6.0


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in found]


@dataclass
class Watched:
    """One start: its moments, the kubelets by manifest, the progress file's words with times."""

    moments: dict[str, float]
    kubelets: dict[str, Kubelet]
    told: list[tuple[float, dict[str, Any]]]


@contextlib.contextmanager
def serving(root: Path, mode: str, ports: list[int], moments: Path, told: Path) -> Iterator[None]:
    words = [str(root), mode, "2", *map(str, ports), str(moments)]
    process = subprocess.Popen(
        [sys.executable, str(SERVER), *words], start_new_session=True,
        env={**os.environ, "WARMUP_PLUGIN_PROGRESS_FILE": str(told)},
    )  # fmt: skip
    try:
        yield
        assert process.poll() is None, "the server has ended"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def containers(told: Path) -> dict[str, dict[str, Any]]:
    """Every manifest's container, and three that must not do: the controls."""
    found = {manifests.name_of(path): manifests.engine_of(path) for path in manifests.served()}
    volume = found["vllm/deployment-volume.yaml"]
    says_ready = ["grep", "-q", '"state": "ready"', str(told)]
    early = {**volume, "startupProbe": {"exec": {"command": says_ready}, "failureThreshold": 720}}
    never = {**early, "startupProbe": {**early["startupProbe"], "failureThreshold": 8}}
    hasty = dict(found["sglang/deployment-volume.yaml"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        hasty[name] = {n: v for n, v in hasty[name].items() if n != "timeoutSeconds"}
    return {**found, "control: early": early, "control: never": never, "control: hasty": hasty}


def watch(root: Path, mode: str, folder: Path) -> Watched:
    """Start the server, let every kubelet ask it each second, until some time after it listens."""
    folder.mkdir()
    ports, moments, told = free_ports(2), folder / "moments.json", folder / "progress.json"
    served = dict(zip(PORTS.values(), ports, strict=True))
    kubelets = {name: Kubelet(found, served) for name, found in containers(told).items()}
    words: list[tuple[float, dict[str, Any]]] = []
    with serving(root, mode, ports, moments, told):
        for kubelet in kubelets.values():
            kubelet.begin()
        deadline, until = time.monotonic() + 150.0, float("inf")
        while time.monotonic() < min(until, deadline):
            if moments.exists() and until == float("inf"):
                until = time.monotonic() + LISTENS_S
            with contextlib.suppress(OSError, ValueError):
                words.append((time.monotonic(), json.loads(told.read_text())))
            time.sleep(0.1)
        for kubelet in kubelets.values():
            kubelet.end()
    return Watched(json.loads(moments.read_text()), kubelets, words)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    """A cold, a warm and a left-alone start."""
    folder = tmp_path_factory.mktemp("probes")
    root = folder / "root"
    root.mkdir()
    with ThreadPoolExecutor() as pool:
        cold = pool.submit(watch, root, "on", folder / "cold")
        alone = pool.submit(watch, root, "off", folder / "alone")
        found = {"cold": cold.result(), "alone": alone.result()}
    return {**found, "warm": watch(root, "on", folder / "warm")}


@pytest.mark.parametrize("start", ["cold", "warm", "alone"])
def test_ready_when_it_listens_and_never_killed(starts: dict[str, Watched], start: str) -> None:
    """By every manifest's probes, in every kind of start."""
    found = starts[start]
    for name, kubelet in found.kubelets.items():
        if not name.startswith("control"):
            assert kubelet.killed == "", name
            assert kubelet.started is not None, name
            assert kubelet.started >= found.moments["listening"], name
            if "readinessProbe" in kubelet.container:
                assert kubelet.ready is not None, name
                assert kubelet.ready >= found.moments["listening"], name
            assert kubelet.asked > 5


def test_they_were_asked_while_it_tuned(starts: dict[str, Watched]) -> None:
    """The cold start tunes for some ticks, the others do not; no word before `ready` is a lie."""
    tuning = {name: [at for at, word in found.told if word["step"] == "tune"]
              for name, found in starts.items()}  # fmt: skip
    assert tuning["cold"][-1] - tuning["cold"][0] > 2.0
    assert tuning["warm"] == tuning["alone"] == []
    assert starts["alone"].told == []


def test_the_word_ready_comes_before_the_server(starts: dict[str, Watched]) -> None:
    """Why the progress file is no probe: a pod that takes it for one is killed, warm or cold."""
    for name in ("cold", "warm"):
        found = starts[name]
        ready = next(at for at, word in found.told if word["state"] == "ready")
        assert ready < found.moments["listening"] - 2.0
        assert found.kubelets["control: early"].killed == "livenessProbe failed 3 times"
    assert starts["alone"].kubelets["control: never"].killed == "startupProbe failed 8 times"


def test_a_second_is_too_short_for_sglang(starts: dict[str, Watched]) -> None:
    """Its `/health` never answers within the default of `timeoutSeconds`."""
    for found in starts.values():
        assert found.kubelets["control: hasty"].started is None
