# SPDX-License-Identifier: Apache-2.0
"""The faults of hosts and of what is between them, one row each.

Owns what a row does to a job and by what its end is bounded. `test_host_faults.py` runs a sample of
the rows, all of them with ``-m "soak or not soak"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.hosts.hosts import Hosts

#: The nine steps; a warm start has those of `WARM_STEPS` alone.
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
WARM_STEPS = ("read", "agree", "survey")
_LOST = "`silence_s` + 10 s"
_NO_FAULT = "no wait of its own"


def _as_they_are(_hosts: Hosts) -> None:
    pass


def _one_boot_id(hosts: Hosts) -> None:
    for host in hosts.hosts:
        host.boot_id = hosts.hosts[0].boot_id


def _own_name_is_loopback(hosts: Hosts) -> None:
    for host in hosts.hosts:
        host.own_name = "127.0.1.1"


class Row(NamedTuple):
    """One fault. ``lost``: what the ranks of the second host are told; ``before``: as of 1f43ee7.

    ``cold_only``: a warm start has no such step. ``is_sample``: run unless asked for others.
    ``of``: the host that is lost, by its number.
    """

    fault: str
    bounded: str
    before: str
    number: int = 2
    family: int = 4
    arrange: Callable[[Hosts], None] = _as_they_are
    lost: Mapping[str, Any] = {}
    of: int = 1
    cut_s: float = 0.0
    cold_only: bool = False
    is_sample: bool = False


def _killed(step: str, *, is_sample: bool = False) -> Row:
    return Row(
        f"a host's process is killed in step `{step}`", _LOST, "48 s at 8 s, named at 5 x silence",
        lost={"lost": "killed", "at": step}, cold_only=step not in WARM_STEPS, is_sample=is_sample,
    )  # fmt: skip


ROWS = {
    "three hosts": Row("three hosts, none of them at fault", _NO_FAULT, "certified", number=3,
                       is_sample=True),
    "own name": Row("no default route, and each host's name leads to 127.0.1.1", _NO_FAULT,
                    "14-45 s on one, 300 s on the other", arrange=_own_name_is_loopback),
    "two cards": Row("two cards, the default route on the one that leads nowhere", _NO_FAULT,
                     "14-45 s on one, 300 s on the other", arrange=Hosts.give_another_card),
    "job's port": Row("no port open but the job's own", "3 s for the other addresses",
                      "14-45 s on one, 300 s on the other", arrange=Hosts.block_new_ports),
    "IPv6": Row("IPv6 alone", _NO_FAULT, "14-45 s on one, 300 s on the other", family=6),
    "one boot id": Row("two hosts with one boot id", _NO_FAULT, "19-23 s more at every start",
                       arrange=_one_boot_id),
    "slow wire": Row("200 ms there and back, one packet of twenty lost", "TCP's own repeats",
                     "4 of 4 jobs not done in 180 s", arrange=Hosts.slow_down),
    "clocks": Row("clocks that are a day apart", _NO_FAULT, "not tried",
                  lost={"clock_s": 86400.0}, is_sample=True),
    "wire out briefly": Row("a wire is out for less than a silence", "the wire",
                            "2 s: works", lost={"lost": "brief"}, cut_s=1.5, is_sample=True),
    "wire out": Row("a wire is out for longer than a silence", _LOST,
                    "the healthy host is blamed", lost={"lost": "cut"}, cut_s=3600.0),
    "power": Row("a host loses its power in the forward", _LOST, "49 s at 8 s",
                 lost={"lost": "power", "at": "survey"}, is_sample=True),
    "power of rank 0": Row("the host of rank 0 loses its power", _LOST, "9 s at 8 s",
                           lost={"lost": "power", "at": "survey"}, of=0),
    "rank 0 killed": Row("rank 0 is killed in step `tune`", "at once", "0.2 s",
                         lost={"lost": "killed", "at": "tune"}, of=0, cold_only=True),
    **{f"killed in {step}": _killed(step, is_sample=step == "tune") for step in STEPS},
}  # fmt: skip
