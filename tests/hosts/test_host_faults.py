# SPDX-License-Identifier: Apache-2.0
"""Each fault of a host: cold, warm, who is named within which bound, and the start after it.

With ``-m "soak or not soak"`` all rows. A row's figures are printed with ``-rP``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.hosts.host_faults import ROWS, Row
from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from tests.hosts.hosts import Hosts, Ranks

pytestmark = pytest.mark.multiprocess

SILENCE_S = 4
ENV = {"WARMUP_PLUGIN_SILENCE_S": str(SILENCE_S), "WARMUP_PLUGIN_GRACE_S": "2"}


def job_with(hosts: Hosts, row: Row, *, has_fault: bool) -> list[dict[str, Any]]:
    job = hosts.job(1, "group", 1, ENV)
    if has_fault:
        job[row.of] |= row.lost
    return job


def start(hosts: Hosts, ranks: Ranks, row: Row, *, has_fault: bool = True) -> list[Any]:
    """Start a job, with the fault or without it; return what each rank came to."""
    host = hosts.hosts[row.of]
    mark = host.root / "in forward"
    mark.unlink(missing_ok=True)
    ranks.start(job_with(hosts, row, has_fault=has_fault))
    if has_fault and row.cut_s:
        wait_until(mark.exists, within(40))
        hosts.cut(host)
        mended = threading.Timer(row.cut_s, hosts.cut, [host], {"mend": True})
        mended.start()
        found = ranks.ended()
        if row.cut_s > SILENCE_S:
            mended.cancel()
            hosts.cut(host, mend=True)
        mended.join()
        return found
    found = ranks.ended()
    if has_fault and row.lost.get("lost") == "power":
        hosts.on(host, "link set fab0 up")
    return found


def is_loss(row: Row) -> bool:
    return bool(row.lost.get("lost")) and not 0 < row.cut_s < SILENCE_S


def of_survivors(row: Row, found: list[Any]) -> list[dict[str, Any]]:
    """Return what the ranks came to that are on hosts which are not lost."""
    lost = row.of if is_loss(row) else None
    return [one[0] for number, one in enumerate(found) if number != lost]


def seconds(row: Row, found: list[Any]) -> str:
    return f"{max(one['seconds'] for one in of_survivors(row, found)):.1f} s"


def assert_ended(row: Row, found: list[Any]) -> set[str]:
    """Check what ranks came to; return who is named."""
    survivors = of_survivors(row, found)
    if not is_loss(row):
        assert {one["error"] for one in survivors} == {""}, found
        assert {one["agreement"] for one in survivors} == {"certified"}, found
        return set()
    named = {match.group() for one in survivors
             if (match := re.search(r"rank \d+ is lost \(host [^)]*\)", one["error"]))}  # fmt: skip
    lost = f"rank {row.of} is lost (host node-{row.of})"
    assert named == {lost}, found
    assert all(one["seconds"] < SILENCE_S + 10 for one in survivors), found
    return {f"rank {row.of}, node-{row.of}"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if row.is_sample else [pytest.mark.soak])
        for name, row in ROWS.items()
    ],
)
def test_a_fault_of_a_host(make_hosts: Callable[..., Hosts], ranks: Ranks, name: str) -> None:
    row = ROWS[name]
    hosts = make_hosts(row.number, row.family)
    row.arrange(hosts)
    cold = start(hosts, ranks, row)
    named, warm = assert_ended(row, cold), "no such step"
    after = start(hosts, ranks, row, has_fault=False)
    assert all(one[0]["agreement"] == "certified" for one in after), after
    if not row.cold_only:
        found = start(hosts, ranks, row)
        named |= assert_ended(row, found)
        warm = seconds(row, found)
        after = start(hosts, ranks, row, has_fault=False)
        assert all(one[0]["agreement"] == "certified" for one in after), after
        assert not any(one[0]["timed"] for one in after), after
        assert all(one[0]["read"] for one in after), "each host has its own directory"
    cells = [row.fault, seconds(row, cold), warm, row.bounded, " ".join(named) or "nobody",
             f"certified, {seconds(row._replace(lost={}), after)}", row.before]  # fmt: skip
    print(f"| {' | '.join(cells)} |")  # noqa: T201  # a row of the table of faults
