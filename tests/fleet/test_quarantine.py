# SPDX-License-Identifier: Apache-2.0
"""A bundle with which two starts of a host have died is passed over there, and that is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.test_starts import receipt
from warmup_plugin.cli import main
from warmup_plugin.engines.embedded import LaunchError

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

Start = Callable[..., "Started"]
AFTER = "in the forward"


def published(start: Start, folder: dict[str, str], root: Path, **layout: int) -> str:
    """Have another host tune and publish; return the bundle's sha256."""
    cold = start(root, {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}, **layout)
    assert cold.published["state"] == "published"
    return str(cold.published["bundle"])


def dies(
    start: Start, folder: dict[str, str], root: Path, at: str, rank: int = 0, **layout: Any
) -> None:
    """Start, and have one rank die on the way."""
    with pytest.raises(LaunchError):
        start(root, folder, script="dying", arguments={"at": at, "rank": rank}, **layout)


def notes(root: Path) -> list[Path]:
    return sorted((root / "fleet" / "starts").glob("*"))


@pytest.mark.parametrize(
    ("layout", "death"),
    [
        ({"tp": 2}, ("in the forward", 0)),
        ({"tp": 2, "pp": 2}, ("in the forward", 3)),
        ({"tp": 2}, ("by an error of the forward", 1)),
    ],
    ids=["2 ranks, rank 0 killed", "4 ranks, rank 3 killed", "2 ranks, rank 1 fails"],
)
def test_a_bundle_whose_start_died_twice_is_passed_over(
    start: Start, folder: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    *, layout: dict[str, Any], death: tuple[str, int],
) -> None:  # fmt: skip
    """The third start serves what it tunes itself; receipt, log, `explain` and `status` say why."""
    bundle = published(start, folder, tmp_path / "a", **layout)
    root = tmp_path / "b"
    for _ in range(2):
        dies(start, folder, root, *death, **layout)
    third = start(root, {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}, **layout)
    assert third.timed_of_tasks > 0
    assert third.certificate
    assert (third.fleet.state, third.fleet.directory, third.fleet.lease) == ("refused", "", "")
    why = f"bundle {bundle[:12]} is passed over: 2 starts of this host have died with it"
    assert third.fleet.reason.startswith(why)
    assert receipt(root)["fleet"]["reason"] == third.fleet.reason
    assert any(why in line for line in third.seen[0]["lines"])
    assert third.fleet.publishes == "no: this host passes the fleet's bundle over"
    assert main(["explain", "--last", "--root", str(root)]) == 0
    assert why in " ".join(capsys.readouterr().out.split())
    assert main(["fleet", "status", "--root", str(root), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["identities"]
    assert row["passed_over"].startswith(why)
    assert main(["fleet", "status", "--root", str(root)]) == 0
    assert "passed over" in capsys.readouterr().out


def test_it_is_tried_again_when_that_is_lifted_and_by_every_other_host(
    start: Start, folder: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fleet retry` forgets the deaths; without the fleet what is passed over stays unused."""
    bundle = published(start, folder, tmp_path / "a")
    root = tmp_path / "b"
    for _ in range(2):
        dies(start, folder, root, AFTER)
    assert start(tmp_path / "c", folder).fleet.state == "fetched"
    looking = start(root, {**folder, "WARMUP_PLUGIN_MODE": "read-only"})
    assert (looking.fleet.state, looking.timed_of_tasks > 0) == ("refused", True)
    away = tmp_path / "shared.away"
    (tmp_path / "shared").rename(away)
    alone = start(root, folder)
    assert alone.fleet.state == "failed"
    assert f"bundle {bundle[:12]} is passed over" in alone.fleet.reason
    assert alone.timed_of_tasks > 0
    away.rename(tmp_path / "shared")
    assert main(["fleet", "retry", "--root", str(root)]) == 0
    assert f"bundle {bundle[:12]} may be used again" in capsys.readouterr().out
    again = start(root, folder)
    assert (again.fleet.state, again.timed_of_tasks) == ("kept", 0)
    assert notes(root) == []


def test_what_is_no_death_by_a_bundle(start: Start, folder: dict[str, str], tmp_path: Path) -> None:
    """One death, deaths before a winner is used, a shutdown, starts that are certified."""
    published(start, folder, tmp_path / "a")
    root = tmp_path / "b"
    for at in ["before the winners are used"] * 2 + ["by a shutdown"] * 2:
        dies(start, folder, root, at)
        assert notes(root) == [], at
    dies(start, folder, root, AFTER)
    assert len(notes(root)) == 1
    warm = start(root, folder)
    assert (warm.fleet.state, warm.timed_of_tasks) == ("kept", 0)
    assert len(notes(root)) == 1, "its own note is gone, the dead start's is not"


def test_a_death_while_it_tunes_is_not_the_bundles(
    start: Start, folder: dict[str, str], tmp_path: Path
) -> None:
    """The forward has run its winners by then, and the journal names the task."""
    env = {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write", "WARMUP_PLUGIN_BUDGET_S": "0.001"}
    cold = start(tmp_path / "a", env)
    assert cold.published["state"] == "published"
    dies(start, folder, tmp_path / "b", "while it tunes what is left")
    assert notes(tmp_path / "b") == []
    warm = start(tmp_path / "b", folder)
    assert (warm.fleet.state, warm.fleet.complete) == ("kept", False)


def test_a_newer_bundle_is_tried(start: Start, folder: dict[str, str], tmp_path: Path) -> None:
    """What has died is one bundle, not the fleet."""
    old = published(start, folder, tmp_path / "a")
    root = tmp_path / "b"
    for _ in range(2):
        dies(start, folder, root, AFTER)
    shutil.rmtree(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    new = published(start, folder, tmp_path / "c")
    assert new != old
    warm = start(root, folder)
    assert (warm.fleet.state, warm.fleet.bundle, warm.timed_of_tasks) == ("fetched", new, 0)


def test_a_table_of_this_host_that_is_newer_owes_nothing_to_the_bundle(
    start: Start, folder: dict[str, str], tmp_path: Path
) -> None:
    """A start that would serve the same without the bundle does not die by it."""
    env: dict[str, Any] = {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}
    assert start(tmp_path / "b", env).published["state"] == "published"
    dies(start, folder, tmp_path / "b", AFTER)
    assert notes(tmp_path / "b") == []
