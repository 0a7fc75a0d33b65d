# SPDX-License-Identifier: Apache-2.0
"""Starts of hosts that share nothing but a fleet: who tunes, who is warm, what they agree on."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from warmup_plugin import FleetAnswer
from warmup_plugin.cli import main

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

Start = Callable[..., "Started"]
Environment = Callable[..., dict[str, str]]


def receipt(root: Path) -> dict[str, Any]:
    """Return rank 0's newest receipt."""
    paths = root.glob("flashinfer_autotune/*/*/*/reports/*_rank0.json")
    newest = max(paths, key=lambda path: path.name)
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "pp": 2}], ids=["2", "4"])
def test_one_host_tunes_and_an_empty_one_is_warm(
    start: Start, fleet: Environment, tmp_path: Path, layout: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Host B times nothing and serves what A serves; its receipt and `explain` say why."""
    a, b = tmp_path / "a", tmp_path / "b"
    cold = start(a, fleet("write"), **layout)
    assert cold.timed_of_tasks > 0
    assert cold.fleet.state == "absent"
    assert cold.published["state"] == "published"

    warm = start(b, fleet("read"), **layout)
    assert warm.timed_of_tasks == 0
    assert all(rank.report.is_warm for rank in warm.ranks)
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
    assert warm.fleet.state == "fetched"
    assert warm.fleet.bundle == cold.published["bundle"]
    assert warm.fleet.publishes == "no: the role is read"
    assert receipt(b)["fleet"] == msgspec.to_builtins(warm.fleet)

    again = start(b, fleet("write"), **layout)
    assert again.timed_of_tasks == 0
    assert again.fleet.state == "kept"
    assert again.fleet.publishes == "no: the fleet has all of it"
    assert main(["explain", "--last", "--root", str(b)]) == 0
    assert f"has bundle {cold.published['bundle'][:12]}" in capsys.readouterr().out


def test_two_hosts_that_tune_at_once_come_to_one_table(
    start: Start, fleet: Environment, tmp_path: Path
) -> None:
    """Each has winners of its own; from the next start on all hosts serve one table."""
    roots = [tmp_path / name for name in "ab"]
    env = {**fleet("write"), "WARMUP_PLUGIN_REPLICA_WAIT_S": "0"}  # neither waits for the other
    with ThreadPoolExecutor() as pool:
        first = list(pool.map(lambda root: start(root, env), roots))
    assert all(each.timed_of_tasks > 0 for each in first)
    assert {each.published["state"] for each in first} <= {"published", "unchanged"}
    later = [start(root, fleet("read")) for root in [*roots, tmp_path / "c"]]
    assert [each.timed_of_tasks for each in later] == [0, 0, 0]
    assert len({each.certificate for each in later}) == 1
    assert len({each.fleet.bundle for each in later}) == 1


def test_a_fleet_that_is_gone_leaves_what_was_fetched(
    start: Start, folder: dict[str, str], tmp_path: Path
) -> None:
    """The bundle of an earlier start serves, and the receipt says that it is one."""
    start(tmp_path / "a", {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"})
    before = start(tmp_path / "b", folder)
    shutil.rmtree(tmp_path / "shared")
    after = start(tmp_path / "b", folder)
    assert after.timed_of_tasks == 0
    assert after.certificate == before.certificate
    assert after.fleet.state == "failed"
    assert after.fleet.reason.endswith("of an earlier start is used")


@pytest.mark.parametrize("mode", ["read-only", "require-complete"])
def test_a_mode_that_writes_nothing_here_is_warm_all_the_same(
    start: Start, folder: dict[str, str], tmp_path: Path, mode: str
) -> None:
    """The bundle lies in a folder that goes with the session; the root stays as it was."""
    cold = start(tmp_path / "a", {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"})
    root = tmp_path / "b"
    warm = start(root, {**folder, "WARMUP_PLUGIN_MODE": mode})
    assert warm.timed_of_tasks == 0
    assert warm.certificate == cold.certificate
    assert not Path(warm.fleet.directory).exists()
    assert not [
        path for path in root.rglob("*") if path.is_file() and "all_reduce" not in str(path)
    ]


@pytest.mark.parametrize(
    "env",
    [{}, {"WARMUP_PLUGIN_FLEET_ROLE": "off", "WARMUP_PLUGIN_FLEET": "s3://nobody/asks"}],
    ids=["unset", "off"],
)
def test_a_start_without_a_fleet_imports_nothing_of_it(
    start: Start, cache_root: Path, env: dict[str, str]
) -> None:
    """And its receipt says nothing."""
    begun = start(cache_root, env)
    location = {"warmup_plugin.fleet", "warmup_plugin.fleet.location"} if env else set[str]()
    assert set(begun.seen[0]["modules"]) == location
    assert begun.fleet == FleetAnswer()


def test_the_client_library_is_never_in_an_engine(
    start: Start, folder: dict[str, str], cache_root: Path
) -> None:
    """Its threads would not survive the engine's forks."""
    begun = start(cache_root, {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"})
    assert begun.published["state"] == "published"
    assert not [name for name in begun.seen[0]["modules"] if "obstore" in name]
    assert "warmup_plugin.fleet.objects" not in begun.seen[0]["modules"]


def test_an_engine_that_ends_before_it_serves_publishes_nothing(
    start: Start, folder: dict[str, str], cache_root: Path, tmp_path: Path
) -> None:
    """Its table may be what ended it; the lease that it has held is free."""
    env = {
        **folder, "WARMUP_PLUGIN_FLEET_ROLE": "write", "WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S": "2",
    }  # fmt: skip
    start(cache_root, env, script="ending")
    time.sleep(6)  # it would be there by now
    found = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "shared").parts[:2] for path in found} == {("v1", "lease")}
    leases = [json.loads(path.read_bytes()) for path in sorted(found)]
    assert [bool(lease.get("holder")) for lease in leases] == [True] * (len(leases) - 1) + [False]


def test_a_table_is_published_when_the_engines_own_page_says_that_it_serves(
    start: Start, folder: dict[str, str], cache_root: Path
) -> None:
    """Not before: what comes after the warm-up may fail."""
    asked = []

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) > 1 else 503)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            **folder,
            "WARMUP_PLUGIN_FLEET_ROLE": "write",
            "WARMUP_PLUGIN_FLEET_HEALTH": f"http://127.0.0.1:{server.server_port}/health",
        }
        begun = start(cache_root, env)
        server.shutdown()
    assert asked == ["/health", "/health"]
    assert begun.published["state"] == "published"
    assert begun.fleet.publishes.endswith("/health answers")


def test_nothing_is_published_that_the_ranks_have_not_certified(
    start: Start, folder: dict[str, str], cache_root: Path
) -> None:
    """Each rank's own winners are nobody else's."""
    env = {
        **folder, "WARMUP_PLUGIN_FLEET_ROLE": "write", "WARMUP_PLUGIN_STRATEGY": "per_rank",
    }  # fmt: skip
    begun = start(cache_root, env, tp=2)
    assert begun.fleet.publishes == "no: the agreement is none"
    assert begun.seen[0]["outcomes"] == []
