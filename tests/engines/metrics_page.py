# SPDX-License-Identifier: Apache-2.0
"""What an engine's own ``/metrics`` shows: the engine's ASGI app, asked as a server asks it.

Owns the request, and what of the page must hold for both engines.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from warmup_plugin.observability.metrics import COMMON, FAMILIES, STATES, label_names

POD = "pod-1"


def get(app: Any, path: str = "/metrics") -> str:
    """Return the body of a page of an ASGI app."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:]).decode()


def values(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Return a family's values by its own labels; the common ones are what this test's are."""
    found = {}
    lines = re.findall(rf"^warmup_plugin_{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE)
    for inside, text in lines:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', inside))
        assert labels.keys() == set(label_names(name)), inside
        assert labels["host"] == POD
        assert labels["session"] == "0"
        found[tuple(labels[label] for label in label_names(name)[len(COMMON) :])] = float(text)
    return found


def check_start(page: str, engine: str, version: str, *, is_warm: bool, ranks: int) -> None:
    """The figures of one start, under their names, once each, with help and type."""
    for name, family in FAMILIES.items():
        if name == "speed_over_default" and is_warm:
            assert not values(page, name)
            continue
        assert values(page, name), name
        assert page.count(f"# HELP warmup_plugin_{name} {family.help}\n") == 1
        assert page.count(f"# TYPE warmup_plugin_{name} gauge\n") == 1
    assert "pid=" not in "".join(re.findall("^warmup_plugin_.*", page, re.MULTILINE))
    assert set(re.findall(r'^warmup_plugin_\w+\{.*?engine="(\w+)"', page, re.MULTILINE)) == {engine}
    (info,) = [labels for labels, value in values(page, "info").items() if value]
    assert info[0] == version
    states = values(page, "state")
    assert states == {(state,): float(state == "certified") for state in STATES}
    assert values(page, "ranks") == {(): ranks}
    assert values(page, "warm") == {(): float(is_warm)}
    tuned = values(page, "tasks")["tuned",] + values(page, "tasks")["received",]
    assert (tuned == 0) == is_warm
    assert (values(page, "tactics_timed")[()] == 0) == is_warm


def folder(root: Path) -> dict[str, str]:
    """Return the environment of an engine that shows its workers' figures."""
    place = root / "values"
    place.mkdir(parents=True)
    return {"PROMETHEUS_MULTIPROC_DIR": str(place), "POD_NAME": POD}


def check_left_alone(engine: Any, name: str, tmp_path: Path, **start: Any) -> None:
    """A start that the engine has made as without us: so it says in the file, and nothing else."""
    file = tmp_path / "warmup.prom"
    env = {"WARMUP_PLUGIN_METRICS_FILE": str(file), "POD_NAME": POD, **start.pop("env", {})}

    came = engine.start(env=env, **start)

    assert all(rank["report"] is None for rank in came.ranks if "report" in rank)
    page = file.read_text()
    assert values(page, "state") == {(state,): float(state == "left_alone") for state in STATES}
    assert values(page, "success") == {(): 0.0}
    assert f'engine="{name}"' in page


def without_rank_1(rank: int) -> dict[str, Any]:
    """Let rank 1 have no plugin."""
    return {"plugin": False} if rank else {}


#: Ways to be left alone.
LEFT_ALONE: dict[str, dict[str, Any]] = {
    "an untested version": {"script": "as_version"},
    "a malformed setting": {"env": {"WARMUP_PLUGIN_MODE": "of"}},
    "a rank without the plugin": {"tp": 2, "env": {"MEET_S": "2"}, "per_rank": without_rank_1},
}
