# SPDX-License-Identifier: Apache-2.0
"""Hosts for a test: network namespaces and the wires between them, gone with the test.

Owns the making of namespaces with `ip`, as root, and what is put in the way there: another network
card, a filter, an address of one family alone. Raises `NotAllowedError` where none can be made.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANKS = Path(__file__).with_name("ranks_on_hosts.py")
WIRE = Path(__file__).with_name("slow_wire.py")
#: Ports of which another host reaches none, above those that the kernel gives out unless told to:
#: what is bound once the group is there gets one of them.
FIRST_BLOCKED, LAST_BLOCKED = 61500, 62500


class NotAllowedError(Exception):
    """This machine, or this user, has no network namespaces."""


def ip(command: str) -> None:
    """Run `ip`; raises `NotAllowedError` with what it says."""
    if (program := shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")) is None:
        raise NotAllowedError("there is no program ip (iproute2)")
    done = subprocess.run(
        [program, *command.split()], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        raise NotAllowedError(f"ip {command}: {done.stderr.strip()}")


@dataclass
class Host:
    """One host. ``address``: that of the network over which the ranks' own group goes."""

    name: str
    namespace: str
    address: str
    root: Path
    boot_id: str
    own_name: str = ""
    ports: str = ""

    @property
    def told(self) -> dict[str, str]:
        hosts = f"127.0.0.1 localhost\n{self.own_name or self.address} {self.name}\n"
        return {
            "name": self.name, "namespace": self.namespace, "hosts": hosts,
            "boot_id": self.boot_id, "root": str(self.root), "ports": self.ports,
        }  # fmt: skip


@dataclass
class Hosts:
    """Some hosts on one wire."""

    folder: Path
    family: int = 4
    hosts: list[Host] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    _wire: subprocess.Popen[str] | None = None

    def make(self, number: int) -> None:
        """Make the hosts, each with one card on one bridge and no route but to the others."""
        self._bridge = f"wp{os.getpid() % 100000}"
        ip(f"netns add {self._bridge}")
        ip(f"-n {self._bridge} link add br0 type bridge")
        ip(f"-n {self._bridge} link set br0 up")
        for index in range(number):
            namespace = f"{self._bridge}h{index}"
            last, mask = (f"10.9.0.{index + 1}", "24") if self.family == 4 else (
                f"fd00:9::{index + 1}", "64")  # fmt: skip
            boot_id = f"00000000-0000-4000-8000-00000000000{index}"
            host = Host(f"node-{index}", namespace, last, self.folder / f"root{index}", boot_id)
            self.hosts.append(host)
            ip(f"netns add {namespace}")
            ip(f"-n {namespace} link set lo up")
            ip(f"-n {namespace} link add fab0 type veth peer name p{index} netns {self._bridge}")
            ip(f"-n {self._bridge} link set p{index} master br0")
            ip(f"-n {self._bridge} link set p{index} up")
            nodad = "" if self.family == 4 else " nodad"
            ip(f"-n {namespace} addr add {last}/{mask} dev fab0{nodad}")
            ip(f"-n {namespace} link set fab0 up")
        self.env = {"GLOO_SOCKET_IFNAME": "fab0", "MASTER_ADDR": self.hosts[0].address}

    def on(self, host: Host, command: str) -> None:
        """Run an `ip` command on a host."""
        ip(f"-n {host.namespace} {command}")

    def give_another_card(self) -> None:
        """Give each host a second card, with the default route; the other hosts do not reach it."""
        for index, host in enumerate(self.hosts):
            self.on(host, "link add wifi0 type veth peer name wifip")
            self.on(host, f"addr add 192.168.77.{index + 1}/32 dev wifi0")
            self.on(host, "link set wifi0 up")
            self.on(host, "link set wifip up")
            self.on(host, "route add default dev wifi0")

    def block_new_ports(self) -> None:
        """Let the first host's ports be out of reach that are bound once the group is there.

        What is sent to them is dropped, as most firewalls do.
        """
        host = self.hosts[0]
        self.on(host, "rule add pref 100 lookup local")
        self.on(host, "rule del pref 0")
        ports = f"dport {FIRST_BLOCKED}-{LAST_BLOCKED}"
        self.on(host, f"rule add pref 10 iif fab0 ipproto tcp {ports} blackhole")
        host.ports = f"{FIRST_BLOCKED} {LAST_BLOCKED}"

    def cut(self, host: Host, *, mend: bool = False) -> None:
        """Pull the wire of a host, or put it back."""
        ip(f"-n {self._bridge} link set p{self.hosts.index(host)} {'up' if mend else 'down'}")

    def slow_down(self) -> None:
        """Put wires in the place of these that take 100 ms and lose one packet of twenty."""
        for host in self.hosts:
            self.on(host, "link del fab0")
        names = [f"{host.namespace}={host.address}" for host in self.hosts]
        self._wire = subprocess.Popen(
            [sys.executable, "-I", str(WIRE), *names], stdout=subprocess.PIPE, text=True
        )
        assert self._wire.stdout is not None
        if (said := self._wire.stdout.readline().strip()) != "ready":
            raise NotAllowedError(f"no wire that is slow: {said}")
        for host in self.hosts:
            self.on(host, f"addr add {host.address}/24 dev fab0")
            self.on(host, "link set fab0 up")

    def job(
        self, per_host: int, how: str, starts: int, env: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return what each rank of a job is told."""
        size = per_host * len(self.hosts)
        address = self.hosts[0].address
        url = f"[{address}]" if self.family == 6 else address
        return [
            {
                "host": host.told, "size": size, "local_rank": local, "how": how, "starts": starts,
                "env": {**self.env, **(env or {})}, "init": f"tcp://{url}:29622",
            }
            for host in self.hosts
            for local in range(per_host)
        ]  # fmt: skip

    def close(self) -> None:
        if self._wire is not None:
            self._wire.kill()
            self._wire.communicate(timeout=20)
        for namespace in (*(host.namespace for host in self.hosts), self._bridge):
            with contextlib.suppress(NotAllowedError):  # it has not been made
                ip(f"netns del {namespace}")


class Ranks:
    """The process from which the ranks are forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(RANKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, job: list[dict[str, Any]]) -> None:
        """Start the ranks of a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()

    def run(self, job: list[dict[str, Any]]) -> list[Any]:
        """Start a job, and return what each rank came to, a list of starts."""
        self.start(job)
        return self.ended()

    def ended(self, timeout_s: float = 80.0) -> list[Any]:
        """Return what each rank came to."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        assert ready, "the ranks have not ended"
        return list(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=20)
