# SPDX-License-Identifier: Apache-2.0
"""Dashboard and alerts in a real Prometheus, on the figures of real starts.

Seven starts of the embedded engine on one node, each a pod's: cold, warm, with a forward that
fails, killed, left alone, each rank for itself, on defaults; and an engine that tunes three times.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.monitoring.board import expressions
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, launch
from warmup_plugin.observability.metrics import STATES

if TYPE_CHECKING:
    from tests.monitoring.conftest import Monitoring

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

ON_RANKS = Path(__file__).with_name("on_ranks.py")
ALONE = {"WARMUP_PLUGIN_STRATEGY": "per_rank"}
LEFT_ALONE = """
from warmup_plugin.engines.gate import usable_settings
assert usable_settings("embedded", "9.9", tested=["1"], missing=[]) is None
"""
HOSTS = {"cold", "warm", "failed", "killed", "left-alone", "each-alone", "defaults"}
ENDED = {"cold", "warm", "each-alone", "defaults"}


def start(
    folder: Path, host: str, root: Path, script: str = "", *, path: str = "", **env: str
) -> None:
    """Start two ranks once, as the pod of a name."""
    environ = {
        "POD_NAME": host, "WARMUP_PLUGIN_METRICS_FILE": str(folder / f"{host}.prom"),
        "WARMUP_PLUGIN_GRACE_S": "1", **env,
    }  # fmt: skip
    where = f"{ON_RANKS}:{script}" if script else None
    arguments = {"path": path} if path else {}
    launch(EngineConfig(tp=2), root=root, env=environ, script=where, arguments=arguments)


@pytest.fixture(scope="module")
def board(monitoring: Monitoring, tmp_path_factory: pytest.TempPathFactory) -> Monitoring:
    """Prometheus, once it has seen the last of the seven starts."""
    folder, root = monitoring.folders["node"], tmp_path_factory.mktemp("root")
    start(folder, "cold", root)
    fleet = tmp_path_factory.mktemp("fleet")  # nobody has published to it
    start(folder, "warm", root, WARMUP_PLUGIN_FLEET=f"file://{fleet}")
    for host, script in (("failed", "fails"), ("killed", "is_killed")):
        with contextlib.suppress(LaunchError):
            start(folder, host, root, script)
            pytest.fail(f"a start that is to be {host} has come up")
    start(folder, "each-alone", root, **ALONE)
    agree = {"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}
    start(folder, "defaults", root, "differ", path=f"{root}/blocklist.json", **agree)
    env = {"POD_NAME": "left-alone", "WARMUP_PLUGIN_METRICS_FILE": f"{folder}/left-alone.prom"}
    subprocess.run([sys.executable, "-c", LEFT_ALONE], env={**os.environ, **env}, check=True)
    assert {path.stem for path in folder.iterdir()} == HOSTS
    monitoring.wait_for(
        lambda: monitoring.hosts("warmup_plugin_success") == HOSTS, "Prometheus has all figures"
    )
    return monitoring


def test_the_node_exporter_takes_every_file(board: Monitoring) -> None:
    """No series stands in two of them, no help differs: nothing is dropped."""
    text = board.exported("node")
    assert "node_textfile_scrape_error 0" in text
    dropped = re.findall(r"^promhttp_metric_handler_errors_total.* (\d+)$", text, re.MULTILINE)
    assert dropped
    assert set(dropped) == {"0"}
    assert len(board.query('warmup_plugin_state{job="node"}')) == len(HOSTS) * len(STATES)


def test_the_files_are_lint_free(
    board: Monitoring, promtool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Promtool has nothing to say about names, help and types."""
    for path in board.folders["node"].iterdir():
        done = promtool("check", "metrics", text=path.read_text())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), path.name
    done = promtool("check", "metrics", text="# TYPE warmup_ms gauge\nwarmup_ms 1\n")
    assert done.returncode == 3


def test_states(board: Monitoring) -> None:
    """Each start is told of as what it came to, and only as that."""
    found = {row["host"]: row["state"] for row, _ in board.query("warmup_plugin_state == 1")}
    assert found == {
        "cold": "certified", "warm": "certified", "failed": "failed", "killed": "warming",
        "left-alone": "left_alone", "each-alone": "none", "defaults": "defaults",
    }  # fmt: skip
    assert board.hosts("warmup_plugin_success == 1") == ENDED
    assert board.hosts("warmup_plugin_warm == 1") == {"warm"}
    assert board.hosts("warmup_plugin_tactics_timed > 0") == {"cold", "each-alone"}
    # The engine's all-reduce is left to itself, and FlashInfer keeps what it has timed of it.
    assert board.hosts("warmup_plugin_passed_through_tactics_timed > 0") == {"cold"}


ALL, ONE = "every host", "one number"
PANELS: dict[str, Any] = {
    "Starts that were warm": ONE,
    "Failed or left alone": ONE,
    "Ranks that may disagree": ONE,
    "Warming up now, longest": ONE,
    "State of each engine": ALL,
    "What it ran with": ALL,
    "Seconds by step": "step",
    "Tasks by what became of them": "outcome",
    "Tactics timed": None,
    "Speed over FlashInfer's default": {"cold"},
    "Starts": "engine",
    "What the fleet gave": "state",
    "Waited for the fleet": ALL,
    "Whose turn it was to tune for the fleet": "state",
    "Waited for a host that tuned": ALL,
    "The fleet's winners, timed where they came": "result",
    "Waited for the last rank": ALL,
    "Bytes between ranks": "direction",
    "Time since the last start ended": HOSTS - {"killed"},
}


@pytest.mark.parametrize("name", expressions())
def test_every_panel_shows_something(board: Monitoring, name: str) -> None:
    """Of all seven starts where it lists hosts."""
    found = board.query(expressions()[name])
    assert found
    assert all(math.isfinite(value) for _, value in found)
    expected = PANELS[name.rpartition(" ")[0]]
    if expected == ONE:
        assert len(found) == 1
    elif isinstance(expected, str) and expected != ALL:
        assert all(labels.keys() == {expected} for labels, _ in found)
    elif expected is not None:
        assert {row["host"] for row, _ in found} == (HOSTS if expected == ALL else expected)


def test_numbers_on_top(board: Monitoring) -> None:
    """One of seven was warm, two are without us, one disagrees, one goes on for all we know."""
    top = {name.rpartition(" ")[0]: text for name, text in expressions().items()}
    values = {name: board.query(text)[0][1] for name, text in top.items() if PANELS[name] == ONE}
    assert values["Starts that were warm"] == pytest.approx(1 / 7)
    assert values["Failed or left alone"] == 2
    assert values["Ranks that may disagree"] == 1
    assert values["Warming up now, longest"] > 0


ALERTS = {
    ("WarmupFailed", "failed"), ("WarmupLeftAlone", "left-alone"), ("WarmupNotWarm", "cold"),
    ("WarmupNotWarm", "each-alone"), ("WarmupNotWarm", "defaults"),
    ("WarmupRanksDisagree", "each-alone"), ("WarmupOnDefaults", "defaults"),
}  # fmt: skip


def test_alerts_fire_for_whom_they_should(board: Monitoring) -> None:
    """And for nobody else: Prometheus evaluates the rules itself."""

    def firing() -> set[tuple[str, str]]:
        rows = [row["labels"] for row in board.get("alerts")["alerts"]]
        return {(row["alertname"], row["host"]) for row in rows if row.get("job") == "node"}

    board.wait_for(lambda: firing() == ALERTS, "the alerts are those of the seven starts")


def test_tuning_too_long(board: Monitoring) -> None:
    """With a threshold that a test can reach: what has tuned, and what has not ended."""
    (rule,) = (rule for rule in rules(board) if rule["name"] == "WarmupTuningTooLong")
    assert rule["query"].count("1800") == 2
    found = board.hosts(rule["query"].replace("1800", "0"))
    assert found == {"killed", "cold", "each-alone", "defaults"}


def rules(monitoring: Monitoring) -> list[dict[str, Any]]:
    """Return the rules as Prometheus has read them."""
    (group,) = monitoring.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_tuning_at_each_start(monitoring: Monitoring, tmp_path: Path) -> None:
    """The third start of a pod whose tables are not kept; a warm one ends the alert."""
    folder = monitoring.folders["again"]
    seen = "count_values('at', warmup_plugin_started_timestamp_seconds{job='again'})"

    def start_seen(root: Path) -> None:
        before = monitoring.query(seen)
        start(folder, "again", root)
        monitoring.wait_for(lambda: monitoring.query(seen) != before, "the start is seen")

    def is_told() -> bool:
        rows = [row["labels"] for row in monitoring.get("alerts")["alerts"]]
        return ("again", "WarmupTunesAtEachStart") in [(r.get("job"), r["alertname"]) for r in rows]

    for number in range(3):
        assert not is_told()
        start_seen(tmp_path / str(number))
    monitoring.wait_for(is_told, "the alert fires")
    start_seen(tmp_path / "2")
    monitoring.wait_for(lambda: not is_told(), "the alert ends")
