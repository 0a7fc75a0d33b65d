# SPDX-License-Identifier: Apache-2.0
"""When figures are told, and by whom; each process of a test is a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BEGIN = """
import os, dataclasses
from warmup_plugin.observability import exposition
from warmup_plugin.observability.exposition import Figures, failed, left_alone, of_rank
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.settings import Settings
from warmup_plugin.topology import RankInfo

settings = Settings.from_env()
def rank(identity="target", **given):
    return of_rank(RankInfo(**given), ("vllm", "0.33.0"), settings, identity)
def report(agreement="certified"):
    return WarmupReport(
        engine="vllm", engine_version="0.33.0", plugin_version="0", flashinfer_version="0.7",
        rank=0, world_size=1, mode="on", strategy="leader", agreement=agreement)
"""

Told = Callable[..., tuple[dict[str, str], str]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Run lines in a process; return its states, by ``device/session``, and what it logged."""

    def run(lines: str, **env: str) -> tuple[dict[str, str], str]:
        file = tmp_path / "warmup.prom"
        environ = {**os.environ, "WARMUP_PLUGIN_METRICS_FILE": str(file), "POD_NAME": "pod-1"}
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + lines], env={**environ, **env}, check=True,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        found = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            if line.startswith("warmup_plugin_state{") and line.endswith(" 1"):
                labels = dict(cell.split("=") for cell in line[20:-3].split(","))
                cells = {name: text.strip('"') for name, text in labels.items()}
                assert (cells["engine"], cells["host"]) == ("vllm", "pod-1")
                found[f"{cells['device']}/{cells['session']}"] = cells["state"]
        return found, done.stderr

    return run


CASES = {
    "begun": ("rank().begin()", {"0/0": "warming"}),
    "ended": ("f = rank(); f.begin(); f.end(report())", {"0/0": "certified"}),
    "on defaults": ("rank().end(report('defaults'))", {"0/0": "defaults"}),
    "failed": ("rank().fail()", {"0/0": "failed"}),
    "failed, and tried again": ("rank().fail(); rank().end(report())", {"0/0": "certified"}),
    "failed, and left to the engine": (
        "rank().fail(); left_alone(('vllm', ''), settings)", {"0/0": "left_alone"},
    ),
    "one after the other": (
        "rank().end(report()); rank('draft').begin()", {"0/0": "certified", "0/1": "warming"},
    ),
    "the same once more": ("rank().end(report()); rank().begin()", {"0/0": "warming"}),
    "the first of two again": (
        "rank().fail(); rank('draft').end(report()); rank().end(report('none'))",
        {"0/0": "none", "0/1": "certified"},
    ),
    "the second left to the engine": (
        "rank(device_index=2).end(report()); left_alone(('vllm', ''), settings)",
        {"2/0": "certified", "2/1": "left_alone"},
    ),
    "left alone at once": ("left_alone(('vllm', ''), settings)", {"/0": "left_alone"}),
    "not ready": ("failed(('vllm', ''), settings)", {"/0": "failed"}),
    "a second rank": ("f = rank(local_rank=1); f.begin(); f.fail()", {}),
    "a second rank, left alone": (
        "rank(local_rank=1).fail(); left_alone(('vllm', ''), settings)", {},
    ),
    "a first rank by the record": (
        "f = rank(local_rank=5); f.begin(); f.tells(is_first=True); f.end(report())",
        {"0/0": "certified"},
    ),
    "a forked child": (
        "rank().end(report())\nif os.fork():\n  os.wait()\nelse:\n  rank(device_index=1).fail()",
        {"1/0": "failed"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "states"), CASES.values(), ids=CASES)
def test_states(told: Told, lines: str, states: dict[str, str]) -> None:
    """What stands in the file at the end."""
    assert told(lines)[0] == states


def test_the_device_is_as_cuda_numbers_it_on_the_host(told: Told) -> None:
    """Two engines of one host see their GPU as 0 each."""
    found, _ = told("rank(device_index=1).end(report())", CUDA_VISIBLE_DEVICES="4, 6")
    assert found == {"6/0": "certified"}


def test_a_name_that_is_no_text_ends_nothing(told: Told, tmp_path: Path) -> None:
    """An engine's server would answer with an error instead of its page."""
    lines = "os.environb[b'POD_NAME'] = b'pod-\\xff'; rank().end(report())"
    assert told(lines, WARMUP_PLUGIN_METRICS_FILE=f"{tmp_path}/x.prom")[0] == {}
    assert 'host="pod-?"' in (tmp_path / "x.prom").read_text()


def test_a_malformed_setting_is_told_of(told: Told) -> None:
    """The file is known although the settings are not; a malformed file is no figure."""
    lines = "os.environ['WARMUP_PLUGIN_MODE'] = 'On'; left_alone(('vllm', ''), None)"
    assert told(lines)[0] == {"/0": "left_alone"}
    lines = "os.environ['WARMUP_PLUGIN_METRICS_FILE'] = 'x'; left_alone(('vllm', ''), None)"
    assert "Traceback" not in told(lines)[1]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("WARMUP_PLUGIN_METRICS_FILE", "/proc/none/warmup.prom", "no metrics file: /proc/none"),
        ("PROMETHEUS_MULTIPROC_DIR", "/proc/none", "no figures on the engine's /metrics: /proc/"),
    ],
)
def test_what_cannot_be_shown_is_logged_once(told: Told, name: str, text: str, reason: str) -> None:
    """And nothing fails."""
    lines = "f = rank(); f.begin(); f.fail(); f.end(report())"
    _, log = told(lines, **{name: text})
    assert log.count(f"warmup-plugin: {reason}") == 1
    assert len(log.splitlines()) == 1


def test_no_file_can_be_opened(told: Told) -> None:
    """Not even a module of this package: the start goes on, and says so once."""
    states, logged = told(
        "import resource\n"
        "f = rank(); limit = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(limit, (3, resource.getrlimit(limit)[1]))\n"
        "f.begin(); f.end(report()); left_alone(('vllm', ''), settings)\n"
    )
    assert states == {}
    assert logged.count("no figures: ") == 1
    assert "Too many open files" in logged
