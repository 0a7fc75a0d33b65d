# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of namespace hosts, each with one made-up GPU or more; gone with the test.

Owns its start and its end: whatever still runs in a host's network namespace is of this test, and
is killed with it. A node gets 100 MB of object store and no dashboard.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PORT = 6399
UP_S = 60.0
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_IP = shutil.which("ip", path=_PATH) or "ip"
#: Makes a host of a namespace, as seen from inside, as `tests/hosts/ranks_on_hosts.py` does.
_INSIDE = """
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
mount --bind "$1/hosts" /etc/hosts
cat "$1/hostname" > /proc/sys/kernel/hostname
shift
exec "$@"
"""
_spec = importlib.util.spec_from_file_location("hosts", HERE.parent / "hosts" / "hosts.py")
assert _spec is not None
assert _spec.loader is not None
hosts: Any = sys.modules.setdefault("hosts", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(hosts)


class Cluster:
    """Some hosts, a Ray node on each. ``env``: of each node, and of what is started there."""

    def __init__(self, folder: Path, number: int, gpus: int, env: dict[str, str]) -> None:
        self.hosts = hosts.Hosts(folder)
        self._temporary = tempfile.mkdtemp(prefix="wpray")  # short: sockets lie below it
        self._gpus, self._folder = gpus, folder
        self._nodes: list[subprocess.Popen[bytes]] = []
        try:
            self.hosts.make(number)
            self._env = {
                **os.environ, **self.hosts.env, "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0", **env,
            }  # fmt: skip
            del self._env["CUDA_VISIBLE_DEVICES"]  # Ray counts in it the GPUs that it is told of
            self._env["PYTHONPATH"] = os.pathsep.join(
                [str(HERE / "on_gpu_by_ray"), *filter(None, [self._env.get("PYTHONPATH")])]
            )
            self._start_nodes()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where the cluster is found."""
        return f"{self.hosts.hosts[0].address}:{PORT}"

    def on(self, number: int, command: list[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
        """Start a command on a host."""
        host = self.hosts.hosts[number]
        files = self._folder / f"host{number}"
        files.mkdir(exist_ok=True)
        for name, text in host.told.items():
            if name in ("boot_id", "hosts"):
                (files / name).write_text(f"{text}\n")
        (files / "hostname").write_text(host.name)
        inside = ["unshare", "-mu", "sh", "-ec", _INSIDE, "sh", str(files), *command]
        path = f"{Path(sys.executable).parent}:{_PATH}"
        environ = {**self._env, "PATH": path, "VLLM_HOST_IP": host.address, **env}
        with log.open("ab") as sink:
            return subprocess.Popen(
                [_IP, "netns", "exec", host.namespace, *inside],
                env=environ, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def run(self, number: int, command: list[str], log: Path, limit_s: float, **env: str) -> int:
        """Run a command on a host; return its exit status."""
        process = self.on(number, command, log, **env)
        try:
            return process.wait(limit_s)
        finally:
            process.kill()
            process.wait()

    def _start_nodes(self) -> None:
        for number, host in enumerate(self.hosts.hosts):
            host.root.mkdir()
            where = ["--address", self.address] if number else [
                "--head", "--port", str(PORT), "--include-dashboard", "false",
                "--temp-dir", self._temporary,
            ]  # fmt: skip
            command = [
                str(Path(sys.executable).with_name("ray")), "start", "--block", *where,
                "--node-ip-address", host.address, "--num-cpus", "2",
                "--num-gpus", str(self._gpus), "--object-store-memory", "100000000",
                "--disable-usage-stats",
            ]  # fmt: skip
            log = self._folder / f"ray{number}.txt"
            self._nodes.append(self.on(number, command, log, VLLM_CACHE_ROOT=str(host.root)))
            deadline = time.monotonic() + UP_S
            while "Ray runtime started" not in log.read_text(errors="replace"):
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.2)

    def close(self) -> None:
        """End all processes on the hosts, then the hosts."""
        for host in self.hosts.hosts:
            told = subprocess.run(
                [_IP, "netns", "pids", host.namespace], capture_output=True, text=True, check=False
            )
            for pid in told.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for node in self._nodes:
            node.kill()
            node.wait()
        self.hosts.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
