# SPDX-License-Identifier: Apache-2.0
"""Ranks on hosts: one process that has loaded torch and FlashInfer, and a fork of it for each rank.

Reads a JSON list of ranks a line, prints what they came to, a JSON list a line. A rank enters the
network namespace that is its host's, and gets a host name, /etc/hosts and boot id of its own: what
makes a host of a container as seen from inside. It joins a group of torch's as an engine does, then
warms up as often as it is told. `hosts.py` is the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig

from warmup_plugin import Identity, RankInfo, topology, warm_up
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.kv_client import default_store
from warmup_plugin.engines.embedded.host_clock import host_clock
from warmup_plugin.engines.readiness import Readiness
from warmup_plugin.errors import WarmupError
from warmup_plugin.settings import Settings

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: As Linux has them, for the engine's own group.
_USUAL_PORTS = "32768 60999"
_GROUP_S = 60.0
#: How long a rank is in its forward whose wire is pulled and put back.
_BRIEF_S = 3.0

Word = Mapping[str, Any]


class Gemm(TunableRunner):
    def get_valid_tactics(self, _inputs: Any, _profile: Any) -> list[int]:
        return [0, 1]

    def forward(self, inputs: Any, tactic: int = -1, **_: Any) -> Any:
        time.sleep(0.002 - 0.001 * max(tactic, 0))
        return inputs[0]


SPEC = DynamicTensorSpec((0,), (0,), (1, 16), lambda m: 16 if m >= 16 else 1)


def lose(how: str, root: Path) -> None:
    """Come to the end of this rank, or let the test know that its host may be cut off now.

    ``power``: the host is gone without a word to the others. ``brief``: its wire is back soon.
    """
    if how == "power":
        program = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "ip"
        subprocess.run([program, "link", "set", "fab0", "down"], check=True)
    if how in ("killed", "power"):
        os.kill(os.getpid(), signal.SIGKILL)
    root.mkdir(exist_ok=True)
    (root / "in forward").touch()
    time.sleep(_BRIEF_S if how == "brief" else _GROUP_S)


def lose_at(step: str, how: str, root: Path) -> None:
    """Have this rank be lost as it begins a step of the session."""
    note = Coordinator.note

    def noting(self: Coordinator, name: str, task: str = "") -> None:
        if name == step:
            lose(how, root)
        note(self, name, task)

    Coordinator.note = noting  # type: ignore[assignment,method-assign]  # this process ends with the test


def set_clock(offset_s: float) -> None:
    """Let the time of day be another on this rank; no other clock is."""
    now = time.time
    time.time = lambda: now() + offset_s


def forward() -> Any:
    config = TuningConfig(dynamic_tensor_specs=(SPEC,))
    return AutoTuner.get().choose_one("demo::gemm", [Gemm()], config, [torch.zeros(16, 8)])


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _put_over(path: str, text: str) -> None:
    """Have a file of this rank's own in the place of one of the machine's."""
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    _check(_LIBC.mount(file.name.encode(), path.encode(), None, _MS_BIND, None))
    Path(file.name).unlink()


def enter(host: Word) -> None:
    """Move this process to a host."""
    with Path(f"/run/netns/{host['namespace']}").open("rb") as namespace:
        _check(_LIBC.setns(namespace.fileno(), _CLONE_NEWNET))
    _check(_LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWUTS))
    _check(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    socket.sethostname(host["name"])
    _put_over("/etc/hosts", host["hosts"])
    _put_over("/proc/sys/kernel/random/boot_id", host["boot_id"] + "\n")
    topology.machine_id.cache_clear()


def start(rank: int, word: Word) -> dict[str, Any]:
    """Warm up; return what came of it."""
    size, root, how = word["size"], Path(word["host"]["root"]), word["how"]
    AutoTuner.get().clear_cache()
    settings, link, ended = Settings.from_env(os.environ), None, ""
    began = time.monotonic()
    try:
        if how != "group":
            meeting = Readiness(default_store(), how, rank, size, settings)
            link, ended = meeting.meet("")
        if not ended:
            place = RankInfo(
                rank=rank, world_size=size, tp_rank=rank, tp_size=size,
                local_rank=word["local_rank"],
            )  # fmt: skip
            identity = Identity.of(model="m", dtype="float32")
            lost = "" if word.get("at") else word.get("lost", "")

            def forward_or_not() -> Any:
                return lose(lost, root) if lost else forward()

            report = warm_up(
                forward_or_not, identity=identity, cache_root=root, ranks=place, link=link
            )
            return {
                "seconds": time.monotonic() - began, "error": "", "met_on": report.met_on,
                "agreement": report.agreement, "timed": report.tactics_timed,
                "warnings": list(report.warnings), "read": [row.path for row in report.read],
                "published": list(report.published),
            }  # fmt: skip
    except WarmupError as error:
        ended = f"{type(error).__name__}: {error}"
    return {"seconds": time.monotonic() - began, "error": ended}


def be_rank(rank: int, word: Word) -> list[dict[str, Any]]:
    faulthandler.dump_traceback_later(_GROUP_S, exit=True)  # it says where it hangs
    os.environ.update(word["env"])
    if "clock_s" in word:
        set_clock(word["clock_s"])
    if "at" in word:
        lose_at(word["at"], word["lost"], Path(word["host"]["root"]))
    logging.basicConfig(level="WARNING")
    if word["host"]["ports"]:
        _PORTS.write_text(_USUAL_PORTS)  # an earlier job of this host has left others
    dist.init_process_group(
        "gloo", init_method=word["init"], rank=rank, world_size=word["size"],
        timeout=timedelta(seconds=_GROUP_S),
    )  # fmt: skip
    one = torch.ones(1)
    dist.all_reduce(one)
    assert one.item() == word["size"], "the engine's own group works"
    if ports := word["host"]["ports"]:  # of which the other hosts reach none
        _PORTS.write_text(ports)
    found = []
    with host_clock():
        for number in range(word["starts"]):
            dist.barrier()
            own = {**word, "how": f"{word['how']}{number}" if word["how"] != "group" else "group"}
            found.append(start(rank, own))
    if not any(one["error"] for one in found):
        dist.barrier()
        dist.destroy_process_group()
    return found


def fork(function: Callable[[], Any]) -> tuple[int, int]:
    """Run a function in a child; return its process id, and where it writes what that returns."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        return pid, reader
    status = 1
    try:
        told = json.dumps(function()).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(told)
        status = 0
    except BaseException:  # noqa: BLE001  # a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


def be_host(words: list[tuple[int, Word]]) -> list[tuple[int, Any]]:
    """Be one host, of which each rank is a process; return what each of them came to."""
    enter(words[0][1]["host"])
    return run([(rank, partial(be_rank, rank, word)) for rank, word in words])


def run(functions: list[tuple[Any, Callable[[], Any]]]) -> list[tuple[Any, Any]]:
    """Run functions, each in a child, and return what they return, or the status of a child."""
    found = []
    for name, (pid, reader) in [(name, fork(function)) for name, function in functions]:
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        found.append((name, json.loads(told) if told and not status else f"status {status}"))
    return found


def main() -> None:
    for line in sys.stdin:
        of_host: dict[str, list[tuple[int, Word]]] = {}
        for rank, word in enumerate(json.loads(line)):
            of_host.setdefault(word["host"]["namespace"], []).append((rank, word))
        hosts = run([(name, partial(be_host, words)) for name, words in of_host.items()])
        ranks = [pair for _, pairs in hosts if isinstance(pairs, list) for pair in pairs]
        told = [told for _, told in sorted(ranks, key=lambda pair: int(pair[0]))]
        print(json.dumps(told), flush=True)  # noqa: T201  # it is what it is for


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
