# SPDX-License-Identifier: Apache-2.0
"""Figures for the node exporter: names frozen, the text format kept."""

from __future__ import annotations

import re
from pathlib import Path

from warmup_plugin import metrics
from warmup_plugin.report import WarmupReport

#: A dashboard that asks for one of these breaks when it is renamed.
NAMES = {
    "info", "finished_timestamp_seconds", "ranks", "agreement", "tasks", "tactics_timed",
    "step_seconds", "bytes", "waited_seconds", "speed_over_default",
}  # fmt: skip
LINE = re.compile(
    r'[a-z_]+(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? [-+0-9.e]+'
)

REPORT = WarmupReport(
    engine='an "engine"\\', engine_version="1\n2", plugin_version="0.1.0",
    flashinfer_version="0.7.2.post1", rank=0, world_size=4, mode="on", strategy="leader",
    agreement="certified", identity="ab" * 32, tasks={"seen": 5, "from_cache": 2, "tuned": 3},
    tactics_timed=1234567, seconds={"open": 0.25, "tune": 1.5}, bytes_sent=10, bytes_received=20,
    waited=({"at": "share", "ranks": [1], "for": 0, "seconds": 1.5},), at=1_790_000_000.123,
    winners=({"ms": 1.0, "default_ms": 2.0}, {"ms": 1.0, "default_ms": 8.0}, {"ms": 1.0}),
)  # fmt: skip


def test_format_and_names(tmp_path: Path) -> None:
    """Every line of Prometheus' text format, each family with help and type before it."""
    metrics.write(tmp_path / "warmup.prom", REPORT)
    text = (tmp_path / "warmup.prom").read_text()
    assert text.endswith("\n")
    families = re.findall(r"^# TYPE warmup_plugin_(\w+) gauge$", text, re.MULTILINE)
    assert set(families) == set(re.findall(r"^# HELP warmup_plugin_(\w+) .+$", text, re.MULTILINE))
    assert set(families) == NAMES
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert 'warmup_plugin_tasks{outcome="tuned"} 3' in lines
    assert "warmup_plugin_tactics_timed 1234567" in lines
    assert "warmup_plugin_finished_timestamp_seconds 1790000000.123" in lines
    assert "warmup_plugin_speed_over_default 4" in lines


def test_without_winners_there_is_no_gain() -> None:
    """A family without a figure is left out."""
    assert metrics.over_default(({"ms": None, "default_ms": 2.0},)) is None
