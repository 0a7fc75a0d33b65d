# SPDX-License-Identifier: Apache-2.0
"""Rules and dashboard by themselves: what promtool says of them, and that they fit each other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.board import EXAMPLES, expressions
from warmup_plugin.observability.metrics import FAMILIES, STATES, label_names

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def test_the_rules_are_rules(promtool: Promtool) -> None:
    """As promtool reads them."""
    done = promtool("check", "rules", EXAMPLES / "alerts.yaml")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "7 rules found" in done.stdout


def test_the_rules_pass_their_own_test(promtool: Promtool) -> None:
    """Each rule fires in one case at least and is silent in another."""
    done = promtool("test", "rules", EXAMPLES / "alerts_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    names = re.findall(r"- alert: (\w+)", (EXAMPLES / "alerts.yaml").read_text())
    cases = (EXAMPLES / "alerts_test.yaml").read_text()
    fired = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n +- ", cases)
    silent = re.findall(r"\{alertname: (\w+), eval_time: \w+\}", cases)
    assert set(names) == set(fired) == set(silent)


@pytest.mark.parametrize("rule", ["> 1800", "== 0 and", ">= 3", "[1d]))"])
def test_the_test_of_the_rules_can_fail(promtool: Promtool, tmp_path: Path, rule: str) -> None:
    """A rule that is changed is found out."""
    text = (EXAMPLES / "alerts.yaml").read_text()
    changed = {"> 1800": "> 7200", "== 0 and": "== 1 and", ">= 3": ">= 9", "[1d]))": "[1m]))"}
    assert rule in text
    (tmp_path / "alerts.yaml").write_text(text.replace(rule, changed[rule]))
    (tmp_path / "alerts_test.yaml").write_text((EXAMPLES / "alerts_test.yaml").read_text())
    assert promtool("test", "rules", tmp_path / "alerts_test.yaml").returncode == 1


def test_both_ask_for_figures_that_there_are() -> None:
    """For all of them, by their names and labels."""
    texts = [(EXAMPLES / "alerts.yaml").read_text(), *expressions().values()]
    names = {name for text in texts for name in re.findall(r"warmup_plugin_(\w+)", text)}
    assert names == set(FAMILIES)
    known = {label for name in FAMILIES for label in label_names(name)} | {"job"}
    asked = {label for text in texts for label in re.findall(r'[{,] ?(\w+)=~?"', text)}
    assert asked <= known


def test_the_dashboard_is_one() -> None:
    """With a data source to choose, panels that do not overlap, and ids of their own."""
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "job", "engine", "host"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_its_tables_show_what_tells_engines_apart() -> None:
    """A column for each label that there is, none for what Prometheus adds; each state coloured."""
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    tables = {panel["title"]: panel for panel in board["panels"] if panel["type"] == "table"}
    families = {"State of each engine": "state", "What it ran with": "info"}
    assert tables.keys() == families.keys()
    for title, family in families.items():
        (change,) = (each["options"] for each in tables[title]["transformations"])
        assert set(label_names(family)) == change["indexByName"].keys() - {"job"}
        assert {"Time", "Value", "__name__", "instance"} <= change["excludeByName"].keys()
        assert not change["excludeByName"].keys() & change["indexByName"].keys()
        assert change["renameByName"].keys() <= change["indexByName"].keys()
    (override,) = tables["State of each engine"]["fieldConfig"]["overrides"]
    (mapping,) = override["properties"][0]["value"]
    assert override["matcher"]["options"] == "state"
    assert mapping["options"].keys() == set(STATES)


def _cells(place: dict[str, Any]) -> list[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    return [(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])]
