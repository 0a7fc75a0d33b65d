# SPDX-License-Identifier: Apache-2.0
"""The same over ``az://``: what a fleet needs of a store, of a real server of Azure's protocol."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.tables import LIMIT, WHOSE, lease_of, write
from warmup_plugin.fleet.lease import render_lease
from warmup_plugin.fleet.objects import FleetError, Objects
from warmup_plugin.fleet.pull import latest
from warmup_plugin.fleet.push import push
from warmup_plugin.runtime.safe_json import Miss

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = [
    pytest.mark.multiprocess, pytest.mark.parametrize("fleet", ["az"], indirect=True),
]  # fmt: skip

Environment = Callable[..., dict[str, str]]


def opened() -> Objects:
    return Objects(os.environ["WARMUP_PLUGIN_FLEET"], "given", timeout_s=20, writes=True)


def test_one_host_tunes_and_an_empty_one_is_warm(
    start: Callable[..., Started], fleet: Environment, tmp_path: Path
) -> None:
    """By pointer, bundle and lease, as over S3."""
    cold = start(tmp_path / "a", fleet("write"), tp=2)
    assert cold.timed_of_tasks > 0
    assert (cold.fleet.state, cold.fleet.lease) == ("absent", "held")
    assert cold.published["state"] == "published"
    warm = start(tmp_path / "b", fleet("read"), tp=2)
    assert warm.timed_of_tasks == 0
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
    assert (warm.fleet.state, warm.fleet.bundle) == ("fetched", cold.published["bundle"])
    assert start(tmp_path / "b", fleet("write"), tp=2).fleet.state == "kept"


def test_hosts_that_publish_at_once_lose_nothing(fleet: Environment, tmp_path: Path) -> None:
    """The pointer is swapped by its ETag, so who comes second unites both tables."""
    fleet()
    names = [f"x{number}" for number in range(8)]

    def publish(name: str) -> None:
        write(tmp_path / name, [name])
        assert push(opened(), WHOSE, tmp_path / name, LIMIT).state == "published"

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60.0)
    found = latest(opened(), WHOSE, LIMIT)
    assert not isinstance(found, Miss)
    assert sorted(found[1].manifest.tasks) == names


def test_a_lease_is_created_once_and_swapped_by_who_has_seen_it(fleet: Environment) -> None:
    """A host that comes second gets nothing, neither at the creation nor at the swap."""
    fleet()
    mine, theirs = opened(), opened()
    first = mine.swap_lease(WHOSE, render_lease(lease_of("a")), None)
    assert first is not None
    assert theirs.swap_lease(WHOSE, render_lease(lease_of("b")), None) is None
    assert theirs.swap_lease(WHOSE, render_lease(lease_of("b")), theirs.lease(WHOSE)) is not None
    assert mine.swap_lease(WHOSE, render_lease(lease_of("a")), first) is None


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0", "permission denied"),
        ("WARMUP_PLUGIN_FLEET", "az://nobody/has", "there is no such bucket"),
    ],
)
def test_a_refusal_is_in_words(
    fleet: Environment, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """Of a key that is not the account's, of a container that is not there."""
    fleet()
    monkeypatch.setenv(variable, value)
    with pytest.raises(FleetError, match=says):
        opened().pointer(WHOSE)
