# SPDX-License-Identifier: Apache-2.0
"""A host that is lost is named, by its name, within a silence and ten seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from tests.hosts.hosts import Hosts, Ranks

pytestmark = pytest.mark.multiprocess

#: Long enough for five of them to be more than one and ten seconds.
SILENCE_S = 4
ENV = {"WARMUP_PLUGIN_SILENCE_S": str(SILENCE_S), "WARMUP_PLUGIN_GRACE_S": "2"}


def job_that_loses(hosts: Hosts, how: str) -> list[dict[str, Any]]:
    """Return a job of two hosts of which the second one's rank is lost in its forward."""
    job = hosts.job(1, "group", 1, ENV)
    job[1]["lost"] = how
    return job


@pytest.mark.parametrize("is_blocked", [False, True], ids=["own-store", "jobs-store"])
def test_a_rank_that_is_killed_on_another_host_is_named_with_it(
    make_hosts: Callable[..., Hosts], ranks: Ranks, *, is_blocked: bool
) -> None:
    hosts = make_hosts(2)
    if is_blocked:
        hosts.block_new_ports()
    survivor, lost = ranks.run(job_that_loses(hosts, "killed"))
    assert isinstance(lost, str)
    assert "RankLostError: rank 1 is lost (host node-1): " in survivor[0]["error"]
    assert "process cut off" in survivor[0]["error"]
    assert survivor[0]["seconds"] < SILENCE_S + 10


def test_a_host_that_is_cut_off_is_named_by_the_other_and_says_whom_it_misses(
    make_hosts: Callable[..., Hosts], ranks: Ranks
) -> None:
    """Both processes live: neither side takes itself for lost."""
    hosts = make_hosts(2)
    ranks.start(job_that_loses(hosts, "cut"))
    mark = hosts.hosts[1].root / "in forward"
    wait_until(mark.exists, within(40))
    hosts.cut(hosts.hosts[1])
    survivor, lost = ranks.ended()
    assert "RankLostError: rank 1 is lost (host node-1): " in survivor[0]["error"]
    assert survivor[0]["seconds"] < SILENCE_S + 10
    assert lost == f"status {79 << 8}", "it has ended, since rank 0 does not answer"
