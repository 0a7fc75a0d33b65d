# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus, scraping a real node exporter: what the tests of this folder ask.

Owns `Monitoring`, which runs them on loopback with the project's own alert rules. Debian's programs
are those of `tests/debian.py`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import debian
from tests.monitoring.board import EXAMPLES

WAIT_S = 60.0


def program(name: str) -> str:
    """Return the path of one of Debian's programs."""
    return debian.program(name, "prometheus", "prometheus, prometheus-node-exporter")


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool; return what became of it."""
    path = program("promtool")

    def run(*words: object, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [path, *map(str, words)], input=text, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip

    return run


@dataclass(frozen=True)
class Monitoring:
    """Prometheus with two node exporters; ``folders``: what each reads, by the job's name."""

    url: str
    exporters: dict[str, str]
    folders: dict[str, Path]

    def get(self, path: str, **parameters: str) -> Any:
        """Ask Prometheus' interface."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:  # noqa: S310  # of our own on loopback
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series that an expression has now."""
        rows = self.get("query", query=expression)["result"]
        return [(row["metric"], float(row["value"][1])) for row in rows]

    def hosts(self, expression: str) -> set[str]:
        """Return the hosts that an expression is about."""
        return {labels["host"] for labels, _ in self.query(expression)}

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds, a minute at most."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if holds():
                return
            time.sleep(0.3)
        pytest.fail(f"{what}: not within {WAIT_S:g} s")

    def exported(self, job: str) -> str:
        """Return what a node exporter says."""
        with urllib.request.urlopen(f"{self.exporters[job]}/metrics", timeout=10) as answer:  # noqa: S310  # of our own on loopback
            text: str = answer.read().decode()
        return text


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """Run all of them until the module's tests are over."""
    prometheus, exporter = program("prometheus"), program("prometheus-node-exporter")
    root = tmp_path_factory.mktemp("monitoring")
    ports = {name: _free_port() for name in ("prometheus", "node", "again")}
    exporters = {job: f"http://127.0.0.1:{ports[job]}" for job in ("node", "again")}
    folders = {job: root / job for job in exporters}
    _write_config(root / "prometheus.yml", ports)
    with ExitStack() as stack:
        for job, folder in folders.items():
            folder.mkdir()
            _start(
                stack, root / f"{job}.log", exporter, "--collector.disable-defaults",
                "--collector.textfile", f"--collector.textfile.directory={folder}",
                f"--web.listen-address=127.0.0.1:{ports[job]}",
            )  # fmt: skip
        log = root / "prometheus.log"
        _start(
            stack, log, prometheus, f"--config.file={root}/prometheus.yml",
            f"--storage.tsdb.path={root}/data", "--log.level=warn",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
        )  # fmt: skip
        found = Monitoring(f"http://127.0.0.1:{ports['prometheus']}", exporters, folders)
        found.wait_for(lambda: _is_ready(found), f"Prometheus answers; {log.read_text()}")
        yield found


def _write_config(path: Path, ports: dict[str, int]) -> None:
    scrapes = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{ports[job]}"]}]}
        for job in ("node", "again")
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(EXAMPLES / "alerts.yaml")],
        "scrape_configs": scrapes,
    }
    path.write_text(json.dumps(config))  # which is YAML as well


def _start(stack: ExitStack, log: Path, *command: str) -> None:
    sink = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(command, stdout=sink, stderr=sink)
    stack.callback(process.wait, 20)
    stack.callback(process.kill)


def _is_ready(monitoring: Monitoring) -> bool:
    try:
        return len(monitoring.query("up == 1")) == len(monitoring.exporters)
    except (OSError, urllib.error.HTTPError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
