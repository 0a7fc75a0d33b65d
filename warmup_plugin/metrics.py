# SPDX-License-Identifier: Apache-2.0
"""Figures of the last start for Prometheus: a text file that the node exporter reads.

Owns the names of the metrics. One file per node, written by its first rank, replaced at each start.
Why a file: neither engine hands a worker's figures to its exporter. vLLM's stat loggers
(``vllm.stat_logger_plugins``) run in the API server, which gets a fixed set of scheduler figures.
Pure, but for `write`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warmup_plugin.files import write_files
from warmup_plugin.report import WarmupReport

Rows = list[tuple[Mapping[str, object], float]]


def write(path: Path, report: WarmupReport) -> None:
    """Put the file in place, whole; raises `OSError`."""
    write_files({path: render(report).encode()})


def render(report: WarmupReport) -> str:
    """Return the file in Prometheus' text format."""
    lines: list[str] = []
    for name, meaning, rows in _families(report):
        lines += [f"# HELP warmup_plugin_{name} {meaning}", f"# TYPE warmup_plugin_{name} gauge"]
        lines += [f"warmup_plugin_{name}{_labels(labels)} {value:.15g}" for labels, value in rows]
    return "\n".join(lines) + "\n"


def _families(report: WarmupReport) -> Iterator[tuple[str, str, Rows]]:
    about = {
        "engine": report.engine, "engine_version": report.engine_version,
        "plugin_version": report.plugin_version, "flashinfer_version": report.flashinfer_version,
        "mode": report.mode, "strategy": report.strategy, "identity": report.identity[:12],
    }  # fmt: skip
    yield "info", "What the last warm-up ran with.", [(about, 1)]
    yield "finished_timestamp_seconds", "When it was over.", [({}, round(report.at, 3))]
    yield "ranks", "Ranks of the job.", [({}, report.world_size)]
    agreed = [({"agreement": report.agreement}, 1.0)]
    yield "agreement", "What the ranks serve: certified is good.", list(agreed)
    outcomes = {name: n for name, n in report.tasks.items() if name != "seen"}
    rows: Rows = [({"outcome": name}, number) for name, number in outcomes.items()]
    yield "tasks", "Tasks of this node's first rank, by what became of them.", rows
    yield "tactics_timed", "Tactics timed on this rank.", [({}, report.tactics_timed)]
    rows = [({"step": step}, seconds) for step, seconds in report.seconds.items()]
    yield "step_seconds", "Seconds by step on this rank.", rows
    moved: Rows = [
        ({"direction": "sent"}, report.bytes_sent),
        ({"direction": "received"}, report.bytes_received),
    ]
    yield "bytes", "Bytes between ranks.", moved
    waits = sum(float(row["seconds"]) for row in report.waited)
    yield (
        "waited_seconds",
        "Seconds that ranks waited for the last one, longest waits.",
        [({}, round(waits, 4))],
    )
    if gain := over_default(report.winners):
        yield (
            "speed_over_default",
            "Default's time over the winner's, geometric mean.",
            [({}, gain)],
        )


def over_default(winners: tuple[Mapping[str, Any], ...]) -> float | None:
    """Return the geometric mean of default over winner; None where no default was timed."""
    gains = [math.log(row["default_ms"] / row["ms"]) for row in winners
             if row.get("ms") and row.get("default_ms")]  # fmt: skip
    return round(math.exp(sum(gains) / len(gains)), 4) if gains else None


def _labels(labels: Mapping[str, object]) -> str:
    cells = [f'{name}="{_escaped(str(value))}"' for name, value in labels.items()]
    return f"{{{','.join(cells)}}}" if cells else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
