# SPDX-License-Identifier: Apache-2.0
"""Starts one process per rank and brings each rank's result home.

Owns the processes: every wait is bounded, and no process outlives the call, also where either
side fails. Imports no torch: the ranks do. A rank that fails, dies or does not finish in time is
a `LaunchError` that names it and carries its traceback.

Ranks start from a fork server that has torch and FlashInfer loaded (0.05 s instead of 2 s each),
in the caller's environment, and never import the caller's main module: a script needs no main
guard. Rank 0 opens the port at which the ranks meet and the others learn it through the parent,
so that no one can take it in between.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded.config import EngineConfig, RankSpec
from warmup_plugin.errors import WarmupError

_PRELOAD = ["warmup_plugin.engines.embedded.preload"]

#: Needed before torch or FlashInfer are loaded. One thread per rank: ranks share the machine.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "FLASHINFER_AUTOTUNE_TIMER": "cuda_event",
    "FLASHINFER_LOGGING_LEVEL": "warning",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Both ends of a TCPStore ask DNS for the other's name; a server that is silent costs 5 s each.
    "RES_OPTIONS": "attempts:1 timeout:1",
    "TQDM_DISABLE": "1",
}


class LaunchError(WarmupError):
    """A rank did not bring its result home.

    ``rank``: the first one that failed. ``failures``: what is known of every rank that did not
    finish, tracebacks included. ``results``: of those that did.
    """

    def __init__(self, rank: int, failures: dict[int, str], results: dict[int, Any]) -> None:
        super().__init__(rank, failures, results)
        self.rank, self.failures, self.results = rank, failures, results

    def __str__(self) -> str:
        others = sorted(set(self.failures) - {self.rank})
        also = f"\n(ranks that did not finish either: {others})" if others else ""
        return f"rank {self.rank}: {self.failures[self.rank]}{also}"


def launch(
    config: EngineConfig,
    *,
    root: Path | None = None,
    nodes: int | Sequence[Path] = 1,
    node_of_rank: Sequence[int] | None = None,
    env: Mapping[str, str] | None = None,
    script: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
    grace_s: float = 5.0,
    spawn: bool = False,
    progress: Callable[[int, str], None] | None = None,
) -> list[Any]:
    """Run the engine once and return each rank's `RankResult`, in rank order.

    ``root``: the cache root. ``nodes``: how many simulated nodes share it, or one root for each
    node; ranks are dealt out in blocks unless ``node_of_rank`` says where each stands.
    ``script`` (`config.resolve`): called on each rank as ``function(engine, **arguments)`` instead
    of the warm-up; its return values are what is returned. ``grace_s``: how long the others get to
    report once a rank has failed. ``progress``: told (rank, text) while the ranks work.
    """
    roots = [root] * nodes if isinstance(nodes, int) else list(nodes)
    size = config.world_size
    places = list(node_of_rank or (rank * len(roots) // size for rank in range(size)))
    if config.all_reduce_dir is None and roots[0] is not None:
        config = replace(config, all_reduce_dir=str(roots[0] / "all_reduce"))
    with tempfile.TemporaryDirectory(prefix="embedded-") as folder:
        specs = [
            RankSpec(
                config=config,
                rank=rank,
                local_rank=places[:rank].count(node),
                node=f"node{node}" if len(roots) > 1 else None,
                root=roots[node],
                environment={**os.environ, **_ENVIRONMENT, **(env or {})},
                script=script,
                arguments=dict(arguments or {}),
                trace=str(Path(folder, f"rank{rank}.txt")),
            )
            for rank, node in enumerate(places)
        ]
        with _started(specs, spawn=spawn) as gang:
            gang.wait(timeout_s, grace_s, progress)
    if gang.failures:
        raise LaunchError(next(iter(gang.failures)), gang.failures, gang.results)
    return [gang.results[rank] for rank in range(size)]


@dataclass
class _Member:
    spec: RankSpec
    process: Any
    connection: Connection

    def stack(self) -> str:
        """Return where the process stands now: a rank that hangs cannot tell by itself."""
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.2)
        with contextlib.suppress(OSError):
            return Path(self.spec.trace).read_text(encoding="utf-8")
        return ""


@dataclass
class _Gang:
    """All ranks of one launch. ``failures`` is in the order they came in."""

    members: dict[int, _Member] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def wait(
        self, timeout_s: float, grace_s: float, progress: Callable[[int, str], None] | None
    ) -> None:
        """Hear the ranks out until each has finished or failed, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while pending := self._pending():
            left = deadline - time.monotonic()
            if left <= 0:
                why = "stopped" if self.failures else f"not finished after {timeout_s:g} s"
                stacks = {m.spec.rank: f"{why}; it stood at\n{m.stack()}" for m in pending}
                self.failures.update(stacks)
                break
            handles = [x for m in pending for x in (m.connection, m.process.sentinel)]
            ready = wait(handles, timeout=left)
            had_failed = bool(self.failures)
            for member in pending:
                if member.connection in ready or member.process.sentinel in ready:
                    self._hear(member, progress)
            if self.failures and not had_failed:
                deadline = min(deadline, time.monotonic() + grace_s)
        for member in self.members.values():
            with contextlib.suppress(OSError):
                member.connection.send(("bye", None))

    def _pending(self) -> list[_Member]:
        done = {*self.results, *self.failures}
        return [m for rank, m in self.members.items() if rank not in done]

    def _hear(self, member: _Member, progress: Callable[[int, str], None] | None) -> None:
        rank, alive = member.spec.rank, member.process.is_alive()
        with contextlib.suppress(EOFError, OSError):
            while member.connection.poll():
                kind, body = member.connection.recv()
                if kind == "port":
                    for other in self.members.values():
                        other.connection.send(("port", body))
                elif kind == "say":
                    if progress is not None:
                        progress(rank, body)
                else:
                    home = self.results if kind == "result" else self.failures
                    home[rank] = body
                    return
        if not alive:
            member.process.join()
            self.failures[rank] = f"ended without a word, exit code {member.process.exitcode}"


@contextlib.contextmanager
def _started(specs: list[RankSpec], *, spawn: bool) -> Iterator[_Gang]:
    context: SpawnContext | ForkServerContext
    if spawn:
        context = multiprocessing.get_context("spawn")
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
    gang = _Gang()
    try:
        with _environment(), _no_main_module():
            if not spawn:
                _start_fork_server()
            for spec in specs:
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(spec, theirs), daemon=True)
                process.start()
                theirs.close()
                gang.members[spec.rank] = _Member(spec, process, ours)
        yield gang
        for rank in gang.results:
            gang.members[rank].process.join(timeout=2.0)
    finally:
        for member in gang.members.values():  # all at once: who is left complains of the others
            member.process.kill()
        for member in gang.members.values():
            member.process.join()
            member.connection.close()


def _start_fork_server() -> None:
    """Start it, if it does not run yet, deaf to ^C: that is for the launcher, which ends the ranks.

    The server and the ranks inherit that and print no tracebacks of their own. Signals can be set
    in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _child(spec: RankSpec, connection: Connection) -> None:
    if not Path(spec.trace).parent.is_dir():
        return  # the launcher was interrupted before this rank began
    os.environ.clear()
    os.environ.update(spec.environment)
    importlib.import_module("warmup_plugin.engines.embedded.worker").serve(spec, connection)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Give processes started in the body `_ENVIRONMENT` before they import anything.

    And this process's import path, of which Python 3.11 does not tell the fork server.
    """
    environment = {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the caller's main module: multiprocessing would import it again in every child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
