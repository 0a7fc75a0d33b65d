# SPDX-License-Identifier: Apache-2.0
"""`doctor --ranks` on two hosts: which address is reached, and how a session meets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hosts.hosts import Hosts

pytestmark = pytest.mark.multiprocess

COMMAND = [sys.executable, "-m", "warmup_plugin", "doctor", "--ranks", "--json"]


def launch(hosts: Hosts, per_host: int, **env: str) -> tuple[list[int], list[dict[str, Any]]]:
    """Run the command on the ranks of all hosts; return exit codes and rank 0's findings."""
    size = per_host * len(hosts.hosts)
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    program = shutil.which("ip", path=path["PATH"]) or "ip"
    started = [
        subprocess.Popen(
            [program, "netns", "exec", host.namespace, *COMMAND],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, **path, **hosts.env, **env, "MASTER_PORT": "29633",
                 "RANK": str(index * per_host + local), "WORLD_SIZE": str(size)},
        )
        for index, host in enumerate(hosts.hosts)
        for local in range(per_host)
    ]  # fmt: skip
    outs = [rank.communicate(timeout=110)[0] for rank in started]
    found: list[dict[str, Any]] = json.loads(outs[0])["findings"]
    return [rank.returncode for rank in started], found


def of(found: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [each for each in found if each["what"] == what]


@pytest.mark.parametrize("per_host", [1, 2])
def test_one_wire(make_hosts: Callable[..., Hosts], per_host: int) -> None:
    codes, found = launch(make_hosts(2), per_host)
    assert codes == [0] * 2 * per_host
    assert {each["state"] for each in found} == {"good"}
    (of_first,), (of_second,) = of(found, "rank 0"), of(found, f"rank {per_host}")
    assert "offers 10.9.0.1: reached by" in of_first["words"]
    assert "offers 10.9.0.2: reached by" in of_second["words"]
    assert of(found, "session")[0]["words"].startswith("opens over address 10.9.0.1, in ")


def test_a_card_that_leads_nowhere(make_hosts: Callable[..., Hosts]) -> None:
    """The default route is on it, so it is offered, too."""
    hosts = make_hosts(2)
    hosts.give_another_card()
    codes, found = launch(hosts, 1)
    assert codes == [0, 0]
    by_state = {each["state"]: each for each in of(found, "rank 0")}
    assert "offers 10.9.0.1: reached by 1 rank" in by_state["good"]["words"]
    assert "offers 192.168.77.1: not by rank 1 (" in by_state["note"]["words"]
    assert "WARMUP_PLUGIN_ADDRESS" in by_state["note"]["fix"]


def test_no_address_is_reached(make_hosts: Callable[..., Hosts]) -> None:
    """A session of these ranks goes over the store of the job, and says so."""
    hosts = make_hosts(2)
    hosts.give_another_card()
    codes, found = launch(hosts, 2, WARMUP_PLUGIN_ADDRESS="192.168.77.1")
    assert codes == [0] * 4
    (of_first,) = of(found, "rank 0")
    assert "offers 192.168.77.1: not by ranks 2, 3 (" in of_first["words"]
    (session,) = of(found, "session")
    assert session["state"] == "note"
    assert session["words"].startswith("opens over the job's own store, in ")
