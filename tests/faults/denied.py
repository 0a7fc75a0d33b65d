# SPDX-License-Identifier: Apache-2.0
"""Runs two ranks of the embedded engine under a denial of `denials.py`, alone or with us.

    python denied.py FOLDER < cells.json        one line of JSON for each cell

Owns the processes. All is imported once, here, and each rank is a fork of that, so that a cell
costs little more than its warm-up. A rank does what an engine's adapter does: the nine steps, or
the engine's own warm-up where the ranks cannot open a session. Alone it is FlashInfer's own tuning
in the engine's forward. Every wait is bounded, and no rank outlives its cell.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

SIZE: Final = 2
#: Loaded once, for all ranks.
PRELOAD: Final = (
    "tests.faults.denials", "warmup_plugin.engines.embedded.worker", "warmup_plugin.kernel_warmup",
    "warmup_plugin.coordination.coordinator",
)  # fmt: skip
ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "FLASHINFER_AUTOTUNE_TIMER": "cuda_event",
    "FLASHINFER_LOGGING_LEVEL": "warning",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "RES_OPTIONS": "attempts:1 timeout:1",
    "TQDM_DISABLE": "1",
    "WARMUP_PLUGIN_GRACE_S": "1",
    "WARMUP_PLUGIN_SILENCE_S": "3",
    "WARMUP_PLUGIN_TASK_LIMIT_S": "30",  # more than a cell may take, so that its end is seen
}
#: What the engine waits in its own collectives, and what a cell may take in all, seconds.
GROUP_S: Final = 20.0
CELL_S: Final = 45.0
#: Users of whom the system knows nothing, one for each rank that needs to be one.
_FIRST_USER: Final = 400_000
_users = iter(range(_FIRST_USER, 1 << 30))


@dataclass(frozen=True)
class Cell:
    """One start. ``side``: "alone" or "ours"; ``ranks``: who is denied it; ``root``: our tables."""

    denial: str
    ranks: tuple[int, ...]
    side: str
    root: str
    warm: bool = False


@dataclass
class _Rank:
    """A rank's process, the end of the pipe it answers on, and that of the one it waits for."""

    pid: int
    answers: int
    stays: int
    log: Path
    told: bytes = b""
    status: int | None = None

    def hear(self) -> bool:
        """Read what the rank says; return whether that is all, or the rank has ended."""
        more = os.read(self.answers, 1 << 16)
        self.told += more
        if not more:
            self.told = b""
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return not more or self.told.endswith(b"\n")

    @property
    def is_up(self) -> bool:
        return bool(self.told) and bool(json.loads(self.told)["up"])

    def end(self) -> None:
        """Let go of the process, which has nothing left to do."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.answers)
        os.close(self.stays)

    def outcome(self) -> dict[str, Any]:
        if self.told:
            found: dict[str, Any] = json.loads(self.told)
            return found
        return {"up": False, "how": "hung" if self.status is None else f"status {self.status}",
                "log": self.log.read_text(errors="replace")[-1500:]}  # fmt: skip


# -- in the rank -----------------------------------------------------------------------------------


@dataclass
class _Here:
    cell: Cell
    rank: int
    root: Path
    begun: bool = False
    lines: list[str] = field(default_factory=list)


def _rank(cell: Cell, rank: int, port: tuple[int, int]) -> dict[str, Any]:
    """Be one rank of a cell; return what it came to."""
    import torch
    import torch.distributed as dist

    from tests.faults.denials import BY_ID, Place, become_a_user
    from warmup_plugin.engines.embedded import EngineConfig, host_clock
    from warmup_plugin.engines.embedded.config import RankSpec
    from warmup_plugin.engines.embedded.worker import Engine

    denial = BY_ID[cell.denial] if rank in cell.ranks and cell.denial else None
    here = _Here(cell, rank, Path(cell.root))
    place = Place(here.root)
    if denial is not None and denial.as_user:
        become_a_user(next(_users) + rank, here.root)
    if denial is not None and denial.early:
        denial.deny(place)
    torch.set_num_threads(1)
    limit = timedelta(seconds=GROUP_S)
    number = 0 if rank == 0 else int(os.read(port[0], 16))
    store = dist.TCPStore("127.0.0.1", number, SIZE, rank == 0, limit, wait_for_workers=False)  # type: ignore[attr-defined]  # torch does not list it, yet documents it
    if rank == 0:
        os.write(port[1], str(store.port).encode())
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=limit)
    host_clock.install(simulated=True)
    config = EngineConfig(
        tp=SIZE, layers=2, hidden=32, ffn=32, vocab=32, timing="rank_noise",
        group_timeout_s=GROUP_S, all_reduce_dir="",
    )  # fmt: skip
    spec = RankSpec(config, rank, rank, None, here.root, {}, None, {}, "")
    engine = Engine(spec, lambda _text: None)
    dist.barrier()
    _listen(here)
    if denial is not None and not denial.early:
        denial.deny(place)
    here.root = place.root
    began = time.monotonic()
    found = (_alone if cell.side == "alone" else _ours)(here, engine)
    return {"up": True, "seconds": round(time.monotonic() - began, 2), **found}


def _listen(here: _Here) -> None:
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: here.lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("warmup_plugin").addHandler(handler)


def _alone(_here: _Here, engine: Any) -> dict[str, Any]:
    """Tune as FlashInfer does in an engine's forward, keeping nothing."""
    from flashinfer import autotuner

    with autotuner.autotune(True):
        engine.forward()
    return {"how": "alone"}


def _ours(here: _Here, engine: Any) -> dict[str, Any]:
    import torch.distributed as dist

    from warmup_plugin.engines.embedded.parallel import ALL_REDUCE
    from warmup_plugin.engines.embedded.worker import VERSION
    from warmup_plugin.errors import SessionError
    from warmup_plugin.kernel_warmup import warm_up
    from warmup_plugin.settings import Settings
    from warmup_plugin.tuner.known_ops import KNOWN_OPS

    def forward() -> None:
        here.begun = True
        engine.forward()

    try:
        report = warm_up(
            forward, identity=engine.identity(), ranks=engine.ranks, group=dist.group.WORLD,
            settings=Settings.from_env(), cache_root=here.root,
            ops=KNOWN_OPS.plus(pass_through={ALL_REDUCE: "its tactics are collective"}),
            engine=("embedded", VERSION),
        )  # fmt: skip
    except SessionError as error:
        if here.begun:
            raise
        _alone(here, engine)
        return {"how": "as without us", "why": str(error)[:300], "log": here.lines[-6:]}
    return {
        "how": report.agreement, "timed": report.tactics_timed, "kept": bool(report.path),
        "why": report.reason[:300], "log": here.lines[-6:],
    }  # fmt: skip


def _child(cell: Cell, rank: int, answer: int, stay: int, port: tuple[int, int]) -> None:
    try:
        found = _rank(cell, rank, port)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the outcome
        said = "".join(traceback.format_exception(error))[-1500:]
        found = {"up": False, "how": f"{type(error).__name__}: {error}"[:400], "log": said}
    os.write(answer, json.dumps(found).encode()[:60_000] + b"\n")
    os.read(stay, 1)  # others may still need this rank's store
    os._exit(0)


# -- the parent ------------------------------------------------------------------------------------


def _fork(cell: Cell, rank: int, port: tuple[int, int], log: Path) -> _Rank:
    answers, answer = os.pipe()
    stay, stays = os.pipe()
    pid = os.fork()
    if pid:
        os.close(answer)
        os.close(stay)
        return _Rank(pid, answers, stays, log)
    os.close(answers)
    os.close(stays)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(sink, stream)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _child(cell, rank, answer, stay, port)
    return _Rank(0, -1, -1, log)  # not reached


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Start the ranks of a cell, hear them out, and end them."""
    port, began = os.pipe(), time.monotonic()
    next(_users), next(_users)
    ranks = [_fork(cell, rank, port, folder / f"rank{rank}.log") for rank in range(SIZE)]
    _hear(ranks, began + CELL_S)
    took = time.monotonic() - began
    for rank in ranks:
        rank.end()
    for end in port:
        os.close(end)
    return {"ranks": [rank.outcome() for rank in ranks], "seconds": round(took, 2)}


def _hear(ranks: Sequence[_Rank], deadline: float) -> None:
    waiting = {rank.answers: rank for rank in ranks}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for answers in select.select(list(waiting), [], [], left)[0]:
            rank = waiting[answers]
            if rank.hear():
                del waiting[answers]
                if not rank.is_up:  # who is left may hang
                    deadline = min(deadline, time.monotonic() + GROUP_S + 3)
    for rank in waiting.values():  # which are said to hang
        os.kill(rank.pid, signal.SIGUSR1)
    time.sleep(0.3 if waiting else 0.0)


def main(folder: Path, cells: Sequence[Cell], tell: Callable[[str], object]) -> None:
    """Run cells one after another; those that are warm each on a copy of one sound start's root."""
    for module in PRELOAD:
        importlib.import_module(module)
    folder.mkdir(exist_ok=True)
    sound = folder / "sound"
    for index, cell in enumerate(cells):
        own = folder / str(index)
        own.mkdir()
        root = own / "root"
        if cell.warm and not sound.exists():
            sound.mkdir()
            first = run(Cell("", (), "ours", str(sound)), sound)
            assert all(rank["how"] == "certified" for rank in first["ranks"]), first
        if cell.warm:
            shutil.copytree(sound / "flashinfer_autotune", root / "flashinfer_autotune")
        else:
            root.mkdir()
        found = run(Cell(cell.denial, cell.ranks, cell.side, str(root), cell.warm), own)
        tell(json.dumps({"cell": index, **found}))
        shutil.rmtree(own, ignore_errors=True)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main(
        Path(sys.argv[1]),
        [Cell(**{**row, "ranks": tuple(row["ranks"]), "root": ""}) for row in json.load(sys.stdin)],
        _tell,
    )
