# SPDX-License-Identifier: Apache-2.0
"""Several hosts, made of network namespaces; where none can be made the tests say so and skip."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "tests.hosts.hosts", Path(__file__).with_name("hosts.py")
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["tests.hosts.hosts"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tests.hosts.hosts"])

from tests.hosts.hosts import Hosts, NotAllowedError, Ranks  # noqa: E402  # loaded just now


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """Make hosts: ``make_hosts(2)``, ``make_hosts(2, family=6)``."""
    made: list[Hosts] = []

    def make(number: int, family: int = 4) -> Hosts:
        hosts = Hosts(tmp_path, family)
        made.append(hosts)
        try:
            hosts.make(number)
        except NotAllowedError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        return hosts

    yield make
    for hosts in made:
        hosts.close()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


@pytest.fixture
def both_starts(ranks: Ranks) -> Callable[..., list[Any]]:
    """Start a job cold, then warm; return the warm start of each rank.

    Each host's directory is written in the first start and read in the second.
    """

    def start(hosts: Hosts, per_host: int, how: str, **env: str) -> list[Any]:
        found = ranks.run(hosts.job(per_host, how, 2, env))
        assert all(isinstance(rank, list) for rank in found), found
        for cold, warm in found:
            assert (cold["error"], warm["error"]) == ("", "")
            assert (cold["agreement"], warm["agreement"]) == ("certified", "certified")
            assert warm["timed"] == 0
        assert any(cold["timed"] for cold, _ in found)
        for host in hosts.hosts:
            assert list(host.root.glob("flashinfer_autotune/*/*/*/rank_*[0-9].json")), host.name
        return [warm for _, warm in found]

    return start
