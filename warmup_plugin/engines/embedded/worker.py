# SPDX-License-Identifier: Apache-2.0
"""What one rank's process does: meet the others, build the engine, run, report.

Owns the process-wide set-up (threads, host clock, process group), the engine object that scripts
are given, and the default routine: `warm_up` around the engine's forward, then a look at what the
tuner serves. This is how a runner of one's own uses the package. Fails by sending its traceback to
the parent; ends at once when the parent is gone.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.engines.embedded.config import RankResult, RankSpec, resolve
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.engines.embedded.model import Stage, prompt
from warmup_plugin.engines.embedded.ops import EXPERT_GEMM, Ops
from warmup_plugin.engines.embedded.parallel import ALL_REDUCE, Parallel, tuning_over
from warmup_plugin.engines.embedded.progress import telling
from warmup_plugin.engines.embedded.runners import ExpertGemmRunner

if TYPE_CHECKING:
    from warmup_plugin.identity import Identity

VERSION = "1"


class Engine:
    """One rank of the engine, ready to run. Built on all ranks at once."""

    def __init__(self, spec: RankSpec, say: Callable[[str], None]) -> None:
        self.config = spec.config
        self.root = spec.root
        self.say = say
        self.ranks = spec.config.place(spec.rank, local_rank=spec.local_rank, node=spec.node)
        self.parallel = Parallel(spec.config, self.ranks)
        self.ops = Ops(host_clock.timing(spec.config.timing, spec.rank))
        self.stage = Stage(spec.config, self.parallel, self.ops)

    @property
    def tuning_group(self) -> dist.ProcessGroup | None:
        """Return the group an engine gives FlashInfer to agree on timings: the tensor-parallel."""
        return self.parallel.tp_group if self.ranks.tp_size > 1 else None

    def forward(self, tokens: int | None = None) -> torch.Tensor | None:
        """Run one batch through this stage; the last stage returns the logits."""
        batch = tokens or self.config.tokens
        return self.stage(prompt(self.config, self.ranks.dp_rank, batch))

    def identity(self) -> Identity:
        """Return what a table depends on: equal on every rank and at every start."""
        from warmup_plugin.identity import Identity

        config = self.config
        layout = (
            "tp", "pp", "dp", "ep", "tokens", "timing", "group_timeout_s", "all_reduce_dir",
        )  # fmt: skip
        model = {name: value for name, value in asdict(config).items() if name not in layout}
        return Identity.of(
            model=model,
            dtype="float32",
            backends={"gemm": "embedded", "moe": "embedded"},
            tp=config.tp,
            pp=config.pp,
            dp=config.dp,
            ep=config.ep,
            measurement={"timing": config.timing},
            extra={"tokens": config.tokens},
        )


def warm_up_rank(engine: Engine) -> RankResult:
    """Warm up as a runner of one's own would, and say what it came to."""
    from warmup_plugin.kernel_warmup import warm_up
    from warmup_plugin.settings import Settings
    from warmup_plugin.tuner.known_ops import KNOWN_OPS

    ops = KNOWN_OPS.plus(
        pass_through={ALL_REDUCE: "its tactics are collective"},
        twin_fields={EXPERT_GEMM: {ExpertGemmRunner.EP_RANK_INDEX: "ep_rank"}},
    )
    progress = telling(engine.say)

    def forward() -> torch.Tensor | None:
        progress("survey", "", 0, 0)
        return engine.forward()

    began = time.perf_counter()
    with count_calls(**tuning_functions()) as counts, tuning_over(engine.tuning_group):
        report = warm_up(
            forward,
            identity=engine.identity(),
            ranks=engine.ranks,
            group=dist.group.WORLD,
            settings=Settings.from_env(),
            cache_root=engine.root,
            ops=ops,
            engine=("embedded", VERSION),
            progress=progress,
        )
    seconds = time.perf_counter() - began
    return RankResult(engine.ranks.rank, report, engine.ops.served(), counts, seconds)


def warm_up_quietly(engine: Engine) -> RankResult:
    """Do the same for a caller who shows the reports, where every warning stands too."""
    logging.getLogger("warmup_plugin").setLevel(logging.ERROR)
    return warm_up_rank(engine)


class _Parent:
    """The child's end of the pipe to `launch`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True, name="parent")
        self._listener.start()

    def send(self, kind: str, body: Any) -> None:
        with self._sending:
            self._connection.send((kind, body))

    def port(self, timeout_s: float) -> int:
        return self._inbox.get(timeout=timeout_s)

    def wait_for_bye(self) -> None:
        self._listener.join()

    def _listen(self) -> None:
        while True:
            try:
                kind, body = self._connection.recv()
            except (EOFError, OSError):
                os._exit(3)  # the parent is gone, and nobody waits for this rank
            if kind == "bye":
                return
            self._inbox.put(body)


def serve(spec: RankSpec, connection: Connection) -> None:
    """Run one rank from start to end. Called by `launch` in the rank's process."""
    with Path(spec.trace).open("w", encoding="utf-8") as trace:
        faulthandler.register(signal.SIGUSR1, file=trace)
        parent = _Parent(connection)
        try:
            parent.send("result", _run(spec, parent))
        except BaseException:  # noqa: BLE001  # whatever it is, the parent reports it
            parent.send("error", traceback.format_exc())
        # Others may still talk to this rank's store; the parent knows when all are done.
        parent.wait_for_bye()
        faulthandler.unregister(signal.SIGUSR1)


def _run(spec: RankSpec, parent: _Parent) -> Any:
    torch.set_num_threads(1)
    # FlashInfer's progress bars make a semaphore between processes, which a rank that is killed
    # leaves behind, and Python complains of it on the launcher's terminal.
    importlib.import_module("tqdm").tqdm.set_lock(threading.RLock())
    timeout = timedelta(seconds=spec.config.group_timeout_s)
    size, is_first = spec.config.world_size, spec.rank == 0
    port = 0 if is_first else parent.port(timeout.total_seconds())
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it, yet documents it
        "127.0.0.1", port, size, is_first, timeout, wait_for_workers=False
    )
    if is_first:
        parent.send("port", store.port)
    dist.init_process_group("gloo", store=store, rank=spec.rank, world_size=size, timeout=timeout)
    with host_clock.host_clock(simulated=spec.config.timing != "host"):
        engine = Engine(spec, lambda text: parent.send("say", text))
        if spec.script is None:
            return warm_up_rank(engine)
        return resolve(spec.script)(engine, **spec.arguments)
