# SPDX-License-Identifier: Apache-2.0
"""Ranks that run a command once, so that its warm-up tunes, and the tables that they leave.

Owns what a rank is told (torchrun's variables), when its command has done what it is for, that
nothing of it outlives the rank, and which tables are its own: those of whose warm-up it has left a
receipt. Knows no engine: the command starts one. Raises `CommandError`, with the rank in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warmup_plugin.cache.archive import render
from warmup_plugin.cli import archive, inventory, places, receipts
from warmup_plugin.cli.commands import pack
from warmup_plugin.cli.output import CommandError
from warmup_plugin.runtime import health_page
from warmup_plugin.settings import Settings

_TICK_S: Final = 0.2
#: How often a server is asked whether it is ready, and how long it may take to answer.
_ASK_S: Final = 1.0
_ANSWER_S: Final = 30.0
#: How long a command may take to end once it has been told to.
_END_S: Final = 30.0
_LOOPBACK: Final = "127.0.0.1"
_STDERR: Final = 2


@dataclass(frozen=True)
class TuningJob:
    """What is run. ``ready``: the page of a server, which is ended once that answers 200."""

    command: tuple[str, ...]
    ranks: int = 1
    ready: str = ""
    limit_s: float = 7200.0


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its job; ``gpus``: those of all ranks of its host, in their order."""

    rank: int
    local_rank: int
    local_size: int
    address: str
    port: int
    gpus: tuple[str, ...] = ()

    def environment(self, ranks: int) -> dict[str, str]:
        """Return what torchrun would set, and the GPUs of this host."""
        told = {
            "RANK": self.rank, "WORLD_SIZE": ranks, "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size, "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }  # fmt: skip
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return {name: str(value) for name, value in told.items()} | visible


class Rank:
    """One rank. `run` may be ended by `stop` from another thread."""

    def __init__(self) -> None:
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """End the command; `run` then returns as if it had ended well."""
        self._is_stopped.set()

    def run(self, job: TuningJob, place: Place) -> bytes:
        """Run the command; return rank 0's tables as an archive, nothing of another rank's.

        Raises:
            CommandError: it failed, took too long, or has left no table.
        """
        # A node of a cluster need not have the environment of its own Python on its path.
        path = os.pathsep.join(
            [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]
        )
        environ = {**os.environ, "PATH": path, **place.environment(job.ranks)}
        before = {path: at for kept in _kept(environ) for path, at in _times(kept).items()}
        try:
            # Its output is no answer of this command.
            process = subprocess.Popen(  # noqa: S603  # the command is what the user has typed
                job.command, env=environ, stdin=subprocess.DEVNULL, stdout=_STDERR,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise CommandError(f"rank {place.rank}: {job.command[0]}: {error.strerror}") from None
        try:
            self._wait(process, job, place)
        finally:
            _end(process)
        return _tables(environ, before) if place.rank == 0 else b""

    def _wait(self, process: subprocess.Popen[bytes], job: TuningJob, place: Place) -> None:
        """Wait until the command has done what it is for."""
        page = job.ready if place.rank == 0 else ""
        deadline, ask_at = time.monotonic() + job.limit_s, 0.0
        while not self._is_stopped.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_TICK_S)
                if code or page:
                    why = "" if code else ", before it was ready"
                    raise CommandError(f"rank {place.rank} ended with status {code}{why}")
                return
            if time.monotonic() > deadline:
                raise CommandError(f"rank {place.rank} has not ended within {job.limit_s:g} s")
            if page and time.monotonic() > ask_at:
                if health_page.answers(page, _ANSWER_S):
                    return
                ask_at = time.monotonic() + _ASK_S


def tune_here(job: TuningJob) -> bytes:
    """Run all ranks on this machine; return the archive.

    Raises:
        CommandError: a rank failed; the others have been ended.
    """
    port = free_port(_LOOPBACK)
    ranks = [Rank() for _ in range(job.ranks)]

    def end_all(_of: object = None) -> None:
        for rank in ranks:
            rank.stop()

    def after_failure(of: Future[bytes]) -> None:
        if of.exception() is not None:
            end_all()

    with ThreadPoolExecutor(job.ranks) as pool:
        found = [
            pool.submit(rank.run, job, Place(number, number, job.ranks, _LOOPBACK, port))
            for number, rank in enumerate(ranks)
        ]
        for each in found:
            each.add_done_callback(after_failure)
        if job.ready:
            found[0].add_done_callback(end_all)
        try:
            wait(found)
        finally:
            end_all()  # interrupted
    tables, *_ = [each.result() for each in found]
    return tables


def free_port(address: str) -> int:
    """Return a port of this machine that was free a moment ago."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it has started, first by asking it."""
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _kept(environ: Mapping[str, str]) -> list[inventory.Kept]:
    """Return what lies below the roots at which a start in this environment would write."""
    return [*inventory.walk(_roots(environ))]


def _roots(environ: Mapping[str, str]) -> list[places.Root]:
    return places.offered(None, None, Settings.from_env(environ), environ)


def _times(kept: inventory.Kept) -> dict[Path, int]:
    """Return when each receipt of an identity was written."""
    return {path: path.stat().st_mtime_ns for path in receipts.receipts_of(kept)}


def _tables(environ: Mapping[str, str], before: Mapping[Path, int]) -> bytes:
    """Return the tables of the warm-ups that have left a receipt since."""
    found = [
        kept for kept in _kept(environ) if kept.tables and _times(kept).items() - before.items()
    ]
    if not found:
        where = ", ".join(str(root.path) for root in _roots(environ))
        message = f"no warm-up of the command has left a table below {where}"
        hint = "does it load this package, with WARMUP_PLUGIN_MODE=on?"
        raise CommandError(f"{message}; {hint}")
    limit = Settings.from_env(environ).table_bytes
    for kept in found:
        pack.holds(kept, limit, skip_faulty=False)
        if (state := inventory.glance(kept).state) != "complete":
            message = f"{kept.directory}: {state}; a start in require-complete would refuse it"
            raise CommandError(message)
    return render(list(archive.files_of(found)))
