# SPDX-License-Identifier: Apache-2.0
"""Winners of the fleet, timed on the host that got them: what is told, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.fleet.conftest import ON_RANKS
from tests.fleet.test_starts import receipt
from warmup_plugin.cli import main

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

Start = Callable[..., "Started"]
TIMING = f"{ON_RANKS}:by_environment"
THREE = {"WARMUP_PLUGIN_FLEET_SPOT_CHECK": "3"}
#: A winner takes 1 ms.
FAST_DEFAULT = {"DEFAULT_MS": "0.5"}
SLOW_DEFAULT = {"DEFAULT_MS": "9"}


@pytest.fixture
def folder(folder: dict[str, str]) -> dict[str, str]:
    """A fleet in a folder, of hosts that may write."""
    return {**folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}


@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 2, "pp": 2}], ids=["2", "4"])
def test_what_loses_is_told_and_not_published(
    start: Start, folder: dict[str, str], tmp_path: Path, layout: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With times, host and GPU; the ranks serve and certify the same table as without."""
    cold = start(tmp_path / "a", {**folder, **SLOW_DEFAULT, **THREE}, timing=TIMING, **layout)
    assert cold.published["state"] == "published"
    assert cold.fleet.checks == ()
    plain = start(tmp_path / "b", {**folder, **FAST_DEFAULT}, timing=TIMING, **layout)
    root = tmp_path / "c"
    prom = {"WARMUP_PLUGIN_METRICS_FILE": str(tmp_path / "figures.prom")}
    warm = start(root, {**folder, **FAST_DEFAULT, **THREE, **prom}, timing=TIMING, **layout)
    assert all(rank.report.is_warm for rank in warm.ranks)
    assert warm.certificate == plain.certificate == cold.certificate
    assert warm.served == plain.served
    assert plain.timed_of_tasks == 0
    assert 0 < len(warm.fleet.checks) <= 3
    assert warm.timed_of_tasks == 4 * len(warm.fleet.checks), "rank 0 alone, each by turns"
    assert [rank.report.tactics_of_tasks for rank in warm.ranks] == [0] * len(warm.ranks)
    for row in warm.fleet.checks:
        assert (row.default_ms, row.is_slower, row.reason) == (0.5, True, "")
        assert row.ms == pytest.approx(1.0, abs=0.5)
        assert row.host
    assert receipt(root)["fleet"]["checks"] == msgspec.to_builtins([*warm.fleet.checks])
    number = len(warm.fleet.checks)
    assert warm.fleet.publishes == (
        f"no: {number} of the fleet's winners are slower here than FlashInfer's default"
    )
    told = [line for line in warm.seen[0]["lines"] if "FlashInfer's default 0.5 ms" in line]
    assert len(told) == number
    assert f'result="slower"}} {number}' in (tmp_path / "figures.prom").read_text()
    assert main(["explain", "--last", "--root", str(root)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"{number} were timed on this host, slower than FlashInfer's default: " in words


def test_what_holds_is_counted_and_no_more(
    start: Start, folder: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is warned of; a host with a table of its own has nothing to check."""
    cold = start(tmp_path / "a", {**folder, **SLOW_DEFAULT}, timing=TIMING)
    warm = start(tmp_path / "b", {**folder, **SLOW_DEFAULT, **THREE}, timing=TIMING)
    assert [row.is_slower for row in warm.fleet.checks] == [False] * 3
    assert warm.fleet.publishes == "no: the fleet has all of it"
    assert warm.ranks[0].report.warnings == ()
    assert warm.certificate == cold.certificate
    serves = {"WARMUP_PLUGIN_MODE": "require-complete"}
    strict = start(tmp_path / "c", {**folder, **FAST_DEFAULT, **THREE, **serves}, timing=TIMING)
    assert (strict.fleet.checks, strict.timed_of_tasks) == ((), 0), "a mode that times nothing"


@pytest.mark.parametrize("script", ["serving", "impatient"])
def test_what_cannot_be_timed_costs_nothing(
    start: Start, folder: dict[str, str], tmp_path: Path, script: str
) -> None:
    """A default that raises is a reason; when the time is up nothing is begun."""
    cold = start(tmp_path / "a", {**folder, **SLOW_DEFAULT}, timing=TIMING)
    env = {**folder, **THREE, "DEFAULT_MS": "raises"}
    warm = start(tmp_path / "b", env, timing=TIMING, script=script)
    assert warm.certificate == cold.certificate
    number = 3 if script == "serving" else 0
    assert warm.timed_of_tasks == 2 * number, "the winner, and the default that raises"
    assert [row.reason for row in warm.fleet.checks] == ["RuntimeError: no default"] * number
    assert warm.fleet.publishes == "no: the fleet has all of it"
