# SPDX-License-Identifier: Apache-2.0
"""Figures: names, labels, help frozen; every label set in every state; the file's format kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import warmup_plugin
from warmup_plugin.cache.gains import over_default
from warmup_plugin.observability import metrics, textfile
from warmup_plugin.observability.metrics import Sample, State
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.observability.report_rows import Wait, Winner

#: A dashboard that asks for one of these breaks when it is renamed.
LABELS = {
    "info": (
        "engine_version", "plugin_version", "flashinfer_version", "mode", "strategy", "identity",
    ),
    "state": ("state",), "success": (), "warm": (), "started_timestamp_seconds": (),
    "finished_timestamp_seconds": (), "ranks": (), "tasks": ("outcome",), "tactics_timed": (),
    "passed_through_tactics_timed": (), "step_seconds": ("step",), "bytes": ("direction",),
    "waited_seconds": (), "fleet": ("state",), "fleet_seconds": (), "fleet_lease": ("state",),
    "fleet_lease_seconds": (), "fleet_checks": ("result",), "speed_over_default": (),
}  # fmt: skip
COMMON = ("engine", "host", "device", "session")
LINE = re.compile(r'[a-z_]+\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\} [-+0-9.e]+')


def tuned(ms: Any, default_ms: Any) -> Winner:
    """A tuned task with these times."""
    return Winner("t", "op", "1", 0, 0.0, 0.5, "R", ms, default_ms, "")


REPORT = WarmupReport(
    engine='an "engine"\\', engine_version="1\n2", plugin_version="0.1.0",
    flashinfer_version="0.7.2.post1", rank=0, world_size=4, mode="on", strategy="leader",
    agreement="certified", identity="ab" * 32, tasks={"seen": 5, "from_cache": 2, "tuned": 3},
    tactics_timed=1234567, passed_through_tactics=67, seconds={"open": 0.25, "tune": 1.5},
    bytes_sent=10, bytes_received=20,
    waited=(Wait("share", (1,), 0, 1.5),), at=1_790_000_000.123,
    winners=(tuned(1.0, 2.0), tuned(1.0, 8.0), tuned(1.0, None)),
)  # fmt: skip
WARM = replace(
    REPORT, tasks={"seen": 5, "from_cache": 5}, tactics_timed=6, passed_through_tactics=6,
    winners=(),
)  # fmt: skip
#: A start of which nothing is known but that it began.
LEAST = WarmupReport(
    engine="e", engine_version="", plugin_version="", flashinfer_version="", rank=0, world_size=0,
    mode="", strategy="", agreement="off",
)  # fmt: skip


def rendered(state: State = "certified", report: WarmupReport = REPORT) -> str:
    """Return the file of one start."""
    common = (report.engine, "a-pod", "0", "0")
    found = metrics.samples(state, report, 1_789_999_999.0)
    return textfile.render(row._replace(labels=(*common, *row.labels)) for row in found)


def value(text: str, name: str, **labels: str) -> float:
    """Return the one value of a name with these labels."""
    cells = [f'{label}="{each}"' for label, each in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(f"warmup_plugin_{name}{{")]
    (found,) = [line for line in lines if all(cell in line for cell in cells)]
    return float(found.rpartition(" ")[2])


def test_names_and_labels() -> None:
    """Those that dashboards and alerts ask for."""
    assert {name: family.labels for name, family in metrics.FAMILIES.items()} == LABELS
    assert metrics.label_names("tasks") == (*COMMON, "outcome")


def test_the_file_is_what_a_collector_takes(tmp_path: Path) -> None:
    """Each family once, help and type before it; no timestamps; a line's end at the end."""
    path = tmp_path / "warmup.prom"
    samples = [Sample(row.name, (REPORT.engine, "p", "0", "0", *row.labels), row.value)
               for row in metrics.samples("certified", REPORT, 1.0)]  # fmt: skip
    textfile.write(path, [*samples, *(s._replace(labels=("f", *s.labels[1:])) for s in samples)])
    text = path.read_text()
    assert text.endswith("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["warmup.prom"]
    families = re.findall(r"^# TYPE warmup_plugin_(\w+) gauge$", text, re.MULTILINE)
    assert families == re.findall(r"^# HELP warmup_plugin_(\w+) .+$", text, re.MULTILINE)
    assert families == list(LABELS)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines), lines
    names = [line.partition("{")[0].removeprefix("warmup_plugin_") for line in lines]
    assert list(dict.fromkeys(names)) == families  # those of one name stand together
    series = [line.rpartition(" ")[0] for line in lines]
    assert len(series) == len(set(series))


def test_values() -> None:
    """Of a start that has tuned: tactics of ops left to themselves are no tuning of tasks."""
    text = rendered()
    assert value(text, "tasks", outcome="tuned") == 3
    assert value(text, "tasks", outcome="unshared") == 0
    assert value(text, "tactics_timed") == 1234500
    assert value(text, "passed_through_tactics_timed") == 67
    assert value(text, "finished_timestamp_seconds") == 1790000000.123
    assert value(text, "started_timestamp_seconds") == 1789999999
    assert value(text, "step_seconds", step="tune") == 1.5
    assert value(text, "step_seconds", step="certify") == 0
    assert value(text, "speed_over_default") == 4
    assert (value(text, "success"), value(text, "warm")) == (1, 0)


def test_a_start_that_times_passed_through_ops_alone_is_warm() -> None:
    """FlashInfer times their tactics in the engine's forward, at each start."""
    text = rendered(report=WARM)
    assert (value(text, "warm"), value(text, "tactics_timed")) == (1, 0)
    assert "0 tactics timed, 6 more by ops left to themselves in" in WARM.line()


@pytest.mark.parametrize(
    "change",
    [
        {"tactics_timed": 7}, {"agreement": "none"}, {"tasks": {"received": 1}},
        {"tasks": {"left": 1}}, {"tasks": {"failed": 1}}, {"tasks": {"default": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_warm(change: dict[str, object]) -> None:
    """Something was not there before this start, or the ranks do not serve what was."""
    assert not WarmupReport.from_json({**WARM.to_json(), **change}).is_warm


@pytest.mark.parametrize("state", metrics.STATES)
def test_every_series_is_there_in_every_state(state: State) -> None:
    """So an alert can tell a start that failed from one that nobody has made."""
    text = rendered(state, LEAST)
    series = re.findall(r"^(warmup_plugin_(?!info)\w+\{.*\}) ", text, re.MULTILINE)
    ok = rendered("certified", replace(WARM, engine="e"))
    assert series == re.findall(r"^(warmup_plugin_(?!info)\w+\{.*\}) ", ok, re.MULTILINE)
    assert [name for name in metrics.STATES if value(text, "state", state=name)] == [state]
    has_ended = state not in ("warming", "failed", "left_alone")
    assert value(text, "success") == has_ended


def test_every_step_has_a_figure() -> None:
    """Whatever is timed under a name."""
    package = Path(warmup_plugin.__file__).parent
    sources = [path.read_text() for path in package.rglob("*.py")]
    timed = {step for text in sources for step in re.findall(r'\.timed\("(\w+)"\)', text)}
    assert timed | {"open"} == set(metrics.STEPS)


@pytest.mark.parametrize(
    ("times", "gain"),
    [
        ([(1.0, 2.0), (1.0, 8.0), (1.0, None)], 4.0),
        ([(None, 2.0)], None),
        ([(-1.0, 2.0), (1.0, -2.0)], None),
        ([(0.0, 2.0), (1.0, 0.0)], None),
        ([(float("nan"), 2.0), (1.0, 3.0)], 3.0),
        ([(1e-300, 1e300), (float("inf"), 1.0)], None),
        ([("1", True)], None),
    ],
    ids=str,
)  # fmt: skip
def test_the_gain_is_of_times_that_can_be_some(
    times: list[tuple[object, object]], gain: float | None
) -> None:
    """Tables and receipts that are kept may hold what a broken clock has said."""
    assert over_default(tuned(*each) for each in times) == (gain and pytest.approx(gain))
