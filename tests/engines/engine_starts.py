# SPDX-License-Identifier: Apache-2.0
"""Starts of an engine, each in new processes: what the tests of all engines share.

Owns `Job` (one cache root, one process per rank), how the ranks of a start are run and ended, what
is read from them, and the op whose key holds the device's index. `run` takes one specification per
rank, with a ``rank``, and what serves it in the child: a function of specification and connection
that sends ("result" | "error", body). Every wait is bounded and no process outlives a start.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, Self

#: Makes an engine's CUDA build run on a machine without a GPU, alone and quietly.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "FLASHINFER_AUTOTUNE_TIMER": "cuda_event",
    "FLASHINFER_LOGGING_LEVEL": "error",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}

#: Linux gives ports from the second number on to whoever asks for any.
_FIRST_PORT, _HANDED_OUT_FROM = 10_000, 32_768

CONTEXT = multiprocessing.get_context("forkserver")


def installed(engine: str) -> str:
    """Return what stands in our line for this engine and its FlashInfer, as they are installed.

    The newest tested release in `make test-engines`, another one in `make matrix-engines`.
    """
    version = importlib.metadata.version
    return f"{engine} {version(engine)}, FlashInfer {version('flashinfer-python')}"


def free_port() -> int:
    """Return a port that was free a moment ago, and that the system hands to nobody meanwhile."""
    while True:
        port = _FIRST_PORT + secrets.randbelow(_HANDED_OUT_FROM - _FIRST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


@dataclass(frozen=True)
class Start:
    """What the ranks of one start came to; ``errors`` and ``hung`` by rank, where expected.

    ``ended``: exit status of a process, and when it ended (monotonic), where a rank was to be lost.
    """

    ranks: list[Any]
    errors: dict[int, str]
    hung: list[int]
    seconds: float
    ended: dict[int, tuple[int, float]] = field(default_factory=dict)

    @property
    def timed(self) -> list[int]:
        """Tactics timed by each rank, counted inside FlashInfer."""
        return [rank["timed"] for rank in self.ranks]

    @property
    def certificate(self) -> str:
        """The one certificate of all ranks."""
        reports = [rank["report"] for rank in self.ranks]
        assert {report["agreement"] for report in reports} == {"certified"}
        (found,) = {report["certificate"] for report in reports}
        assert len(found) == 64
        return str(found)

    @property
    def lines(self) -> list[str]:
        """Our lines in the engine's log, of all ranks."""
        return [
            line
            for rank in self.ranks
            for line in rank["lines"]
            if line.startswith("warmup-plugin ")
        ]

    @property
    def disputed(self) -> set[str]:
        """Calls that two ranks of one stage serve differently."""
        found: set[str] = set()
        for rank in self.ranks:
            first = next(r["served"] for r in self.ranks if r["stage"] == rank["stage"])
            found |= {call for call, answer in rank["served"].items() if answer != first.get(call)}
        return found


Serve = Callable[[Any, Connection], None]


def run(
    specs: Sequence[Any],
    serve: Serve,
    limit_s: float,
    *,
    lost: Collection[int] = (),
    ended: dict[int, tuple[int, float]] | None = None,
    lives_on_s: float = 0.0,
) -> tuple[list[Any], dict[int, str], list[int]]:
    """Run one process per rank; return results in order, errors by rank, and ranks that hang.

    Ranks to be ``lost`` are not waited for. With ``ended`` the ends of the others' processes are,
    and are put there. ``lives_on_s``: how long the processes may live on when all are through.
    """
    running: dict[Any, tuple[Any, Any]] = {}
    for spec in specs:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=serve, args=(spec, theirs), daemon=True)
        process.start()
        theirs.close()
        running[ours] = spec, process
    processes = [process for _, process in running.values()]
    ranks = {spec.rank: process for spec, process in running.values()}
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    deadline = time.monotonic() + limit_s
    try:
        while (left := deadline - time.monotonic()) > 0 and any(
            spec.rank not in lost for spec, _ in running.values()
        ):
            for connection in wait(list(running), timeout=left):
                spec, process = running.pop(connection)
                body: Any
                try:
                    kind, body = connection.recv()  # type: ignore[union-attr, call-arg]  # of a pipe
                except EOFError:
                    process.join(5)
                    kind, body = "error", f"rank {spec.rank} ended with {process.exitcode}"
                (results if kind == "result" else errors)[spec.rank] = body
        if ended is not None:
            _await_ends({r: p for r, p in ranks.items() if r not in lost}, deadline, ended)
        _live_on(processes, lives_on_s)
    finally:
        for process in processes:
            process.kill()
            process.join(5)
    hung = [spec.rank for spec, _ in running.values()]
    return [results[rank] for rank in sorted(results)], errors, hung


def _live_on(processes: list[Any], limit_s: float) -> None:
    """Let processes that are through end by themselves, as those of a real engine live on."""
    until = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))


def _await_ends(
    processes: dict[int, Any], deadline: float, ended: dict[int, tuple[int, float]]
) -> None:
    """Note when each process ends, and how."""
    rest = {process.sentinel: rank for rank, process in processes.items()}
    while rest and (left := deadline - time.monotonic()) > 0:
        for sentinel in wait(list(rest), timeout=left):
            rank = rest.pop(sentinel)
            processes[rank].join(5)
            ended[rank] = processes[rank].exitcode, time.monotonic()


@dataclass
class Job:
    """One engine with one cache root; an engine's own says what a rank is and where files lie."""

    root: Path
    model: Path
    options: dict[str, Any] = field(default_factory=dict)

    #: The engine's specification of one rank, and what serves it.
    spec: ClassVar[Callable[..., Any]]
    serve: ClassVar[Serve]
    #: Where below the root the engine keeps its own tables.
    own_tables: ClassVar[tuple[str, ...]]

    @classmethod
    def make(cls, folder: Path, config: dict[str, Any], **options: Any) -> Self:
        """Return a job with an empty cache root, of a model that is only its configuration."""
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        return cls(folder / "root", model, options)

    def environment(self) -> dict[str, str]:
        """Return what tells the engine of its cache root."""
        raise NotImplementedError

    def start(
        self,
        *,
        env: dict[str, str] | None = None,
        limit_s: float = 120.0,
        per_rank: Callable[[int], dict[str, Any]] = lambda _rank: {},
        may_fail: bool = False,
        lost: Collection[int] = (),
        lives_on_s: float = 0.0,
        **options: Any,
    ) -> Start:
        """Start all ranks anew; ``per_rank`` gives a rank fields of its own.

        ``lost``: ranks that are killed or stopped meanwhile. ``lives_on_s``: as of `run`.
        """
        options = {"model": str(self.model), **self.options, **options}
        size = options.get("tp", 1) * options.get("pp", 1) * options.get("dp", 1)
        port, common, specs = free_port(), {**self.environment(), **(env or {})}, []
        for rank in range(size):
            own = per_rank(rank)
            own_env = {**common, **own.get("env", {})}
            specs.append(
                type(self).spec(**{**options, **own, "env": own_env, "rank": rank, "port": port})
            )
        began = time.monotonic()
        ended: dict[int, tuple[int, float]] = {}
        ranks, errors, hung = run(
            specs, type(self).serve, limit_s, lost=lost, ended=ended if lost else None,
            lives_on_s=lives_on_s,
        )  # fmt: skip
        if not may_fail:
            assert not errors, "\n".join(errors.values())
            assert not hung, f"ranks {hung} did not end within {limit_s} s"
        return Start(ranks, errors, hung, time.monotonic() - began, ended)

    def tables(self) -> list[Path]:
        """Our tables."""
        found = self.root.glob("flashinfer_autotune/*/*/*/rank_*.json")
        return sorted(p for p in found if not p.name.endswith(".manifest.json"))

    def own_files(self) -> dict[str, bytes]:
        """Return the engine's own tables, by path."""
        kept = [path for place in self.own_tables for path in self.root.glob(place)]
        return {str(path): path.read_bytes() for path in kept if path.is_file()}


def answer(script: Callable[[Any], Any], spec: Any, connection: Connection) -> None:
    """Run a script in the child and send what it returns or raises; then the process ends.

    One whose ``fault`` says ``linger`` stays, as an engine's rank may that has told of a failure.
    """
    try:
        connection.send(("result", script(spec)))
    except BaseException as error:  # noqa: BLE001  # the parent reports it
        told = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        connection.send(("error", told))
    if "linger" in spec.fault:
        time.sleep(60)
    os._exit(0)


def listen(name: str) -> list[str]:
    """Collect what an engine's log shows, in the way its own handler is fed.

    ``RANK_LOG`` names a file that has it too, for a process that ends without a word.
    """
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)

    def emit(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())
        if file := os.environ.get("RANK_LOG"):
            with Path(file).open("a", encoding="utf-8") as log:
                log.write(f"{record.getMessage()}\n")

    handler.emit = emit  # type: ignore[method-assign]  # a handler's one method
    logging.getLogger(name).addHandler(handler)
    return lines


def moe_with_device_index(ops: Any, x: Any, weight: Any, device_index: int) -> None:
    """Call an op whose key holds the device's index, as FlashInfer's SM120 MoE does (0.7.2)."""
    from warmup_plugin.engines.embedded.ops import TOKENS_CONFIG
    from warmup_plugin.engines.embedded.runners import ExpertGemmRunner

    class Sm120GroupwiseRunner(ExpertGemmRunner):
        def get_cache_key_extras(self, _inputs: Any) -> tuple[Any, ...]:
            return ("contract", 1, False, 128, self.ep_rank)

    name = "cute_sm120_fp8_groupwise_moe"
    runner = Sm120GroupwiseRunner(name, ops.timing, device_index)
    inputs = [x, weight, None]
    chosen, tactic = ops.choose(name, [runner], TOKENS_CONFIG, inputs)
    chosen(inputs, tactic=tactic)
