# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks: several jobs in one launch, with faults in them.

Owns the faults. `jobs` is the script: the ranks of a launch are dealt out to jobs, each with its
own group, directories, environment and faults; a fault is a function of this file, called on the
ranks it is for before they warm up. What is patched stays patched: these processes end with the
test. Nothing here is raised to the launcher: what a rank came to is what `jobs` returns, and what a
rank says before it may end without a word goes to the launcher as it happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import flashinfer
import torch
import torch.distributed as dist
from flashinfer import autotuner

from warmup_plugin import kernel_warmup
from warmup_plugin.cache.store import Store
from warmup_plugin.coordination import coordinator, kv_client
from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.engines.embedded.config import resolve
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.engines.embedded.ops import BUCKETS, EXPERT_GEMM
from warmup_plugin.engines.embedded.parallel import ALL_REDUCE, tuning_over
from warmup_plugin.engines.embedded.runners import BlockedGemmRunner, CpuRunner, ExpertGemmRunner
from warmup_plugin.engines.embedded.worker import VERSION, Engine
from warmup_plugin.errors import RankLostError
from warmup_plugin.settings import Settings
from warmup_plugin.steps import share
from warmup_plugin.tuner import build, compat, replay, tuner_state
from warmup_plugin.tuner.known_ops import KNOWN_OPS

#: By path, since this file is a script of the ranks: no package is around it.
functions_of = resolve(f"{Path(__file__).with_name('step_functions.py')}:functions_of")


class Here:
    """This rank of its job, and what its faults have arranged."""

    def __init__(self, engine: Engine, job: int, rank: int, group: Any) -> None:
        self.engine, self.job, self.rank, self.group = engine, job, rank, group
        self.forward: Callable[[], object] = engine.forward
        self.context: Callable[[], Any] | None = None
        self.on_task: list[Callable[[int], None]] = []
        self.sent: list[str] = []
        self.was_stopped = False

    def say(self, event: str, **more: Any) -> None:
        """Tell the launcher now: this process may not come to tell it later."""
        said = {"job": self.job, "rank": self.rank, "event": event, "at": time.monotonic(), **more}
        self.engine.say(json.dumps(said))


def jobs(
    engine: Engine, size: int, plans: Sequence[Mapping[str, Any]], dp: int = 1
) -> dict[str, Any]:
    """Run this rank's part of its job; ``size`` ranks are a job, of ``dp`` replicas each."""
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 2)  # torch's own comments on every connection that breaks
    job, rank = divmod(engine.ranks.rank, size)
    groups = []
    for index, plan in enumerate(plans):
        members = list(range(index * size, (index + 1) * size))
        timeout = timedelta(seconds=plan.get("group_timeout_s", 60.0))
        groups.append(dist.new_group(members, backend="gloo", timeout=timeout))
    plan = plans[job]
    node = plan["node_of_rank"][rank]
    local_ranks = plan.get("local_ranks") or [
        plan["node_of_rank"][:other].count(plan["node_of_rank"][other]) for other in range(size)
    ]
    engine.config = replace(engine.config, dp=dp)
    engine.ranks = engine.config.place(rank, local_rank=local_ranks[rank], node=f"node{node}")
    engine.root = Path(plan["roots"][node])
    engine.ops.timing = host_clock.timing(engine.config.timing, rank)
    os.environ.update(plan.get("env", {}))
    here = Here(engine, job, rank, groups[job])
    for fault in plan.get("faults", ()):
        if rank in fault["on"]:
            more = {name: value for name, value in fault.items() if name not in ("on", "do")}
            globals()[fault["do"]](here, **more)
    return _warm_up(here)


def _warm_up(here: Here) -> dict[str, Any]:
    """Warm up as an engine would; return what became of it, whatever that is."""
    engine = here.engine
    ops = KNOWN_OPS.plus(
        pass_through={ALL_REDUCE: "its tactics are collective"},
        twin_fields={EXPERT_GEMM: {ExpertGemmRunner.EP_RANK_INDEX: "ep_rank"}},
    )
    lines = _tell_what_is_logged(here)

    def progress(_step: str, _task: str, number: int, _of: int) -> None:
        for hook in here.on_task:
            hook(number)

    found: dict[str, Any] = {"rank": here.rank, "began": time.monotonic()}
    try:
        with count_calls(**tuning_functions()) as counts, tuning_over(here.group):
            # FlashInfer has a group to agree over, as in an engine: whatever is timed while it is
            # in force waits for every rank.
            found["report"] = kernel_warmup.warm_up(
                here.forward,
                identity=engine.identity(),
                ranks=engine.ranks,
                group=here.group,
                settings=Settings.from_env(),
                cache_root=engine.root,
                ops=ops,
                engine=("embedded", VERSION),
                progress=progress,
                tuning_context=here.context,
            )
        found["counts"] = counts
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the result
        cause = error.__cause__
        found["error"] = (type(error).__name__, str(error), getattr(error, "rank", None))
        found["cause"] = "" if cause is None else f"{type(cause).__name__}: {cause}"
    found["ended"] = time.monotonic()
    here.say("ended")
    found["served"] = engine.ops.served() if "report" in found else {}
    tuner = compat.tuner()
    found["held"] = [*compat.loaded(tuner), *map(str, tuner.profiling_cache)]
    found.update(logged=lines, sent=here.sent)
    return found


def _tell_what_is_logged(here: Here) -> list[str]:
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)

    def emit(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())
        here.say("logged", level=record.levelno, text=record.getMessage())

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("warmup_plugin")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return lines


# -- where a fault strikes -------------------------------------------------------------------------


def _at(here: Here, point: str, strike: Callable[[], None]) -> None:
    """Strike once when this rank comes to a point.

    ``read``: it begins that step. ``tune:3``: it has three tasks behind it. ``meet:share``: it is
    about to hand in its word. ``profile:3``: while its third tactic is measured. ``forward``: in
    the engine's forward. ``build``: it runs the first winner that it did not tune. ``before``: it
    has not called `warm_up` yet.
    """
    kind, _, which = point.partition(":")
    if point == "before":
        strike()
    elif point == "forward":
        here.forward = _before(here.forward, strike)
    elif kind == "meet":
        _patch(coordinator.Coordinator, "meet", strike, lambda args: bool(args[1] == which))
    elif kind == "profile":
        counted = itertools.count(1)
        tuner = autotuner.AutoTuner

        def is_it(_args: tuple[Any, ...]) -> bool:
            return bool(tuner.get().is_tuning_mode) and next(counted) == int(which)

        _patch(tuner, "_profile_single_kernel", strike, is_it)
    elif point == "build":
        _patch(build, "prepare", strike)
    elif kind == "tune" and which:
        begun = itertools.count()  # on this rank: the number it is told is the job's
        here.on_task.append(lambda _number: strike() if next(begun) == int(which) else None)
    else:
        for owner, name in functions_of(point):
            _patch(owner, name, strike)


def _patch(
    owner: Any,
    name: str,
    strike: Callable[[], None],
    is_it: Callable[[tuple[Any, ...]], bool] = lambda _args: True,
) -> None:
    setattr(owner, name, _before(getattr(owner, name), strike, is_it))


def _before(
    function: Callable[..., Any],
    strike: Callable[[], None],
    is_it: Callable[[tuple[Any, ...]], bool] = lambda _args: True,
) -> Callable[..., Any]:
    """Return the function, with a strike before the first call that is it."""
    has_struck = False

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal has_struck
        if not has_struck and is_it(args):
            has_struck = True
            strike()
        return function(*args, **options)

    return wrapped


# -- processes that stop, die, sleep ---------------------------------------------------------------


def stop(here: Here, at: str) -> None:
    """Stop this process; the launcher lets it go on. What it sends from then on is noted."""

    def strike() -> None:
        here.say("stopped", pid=os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        here.was_stopped = True
        here.say("woken")

    link = kv_client.StoreLink
    for name in ("set", "compare_set"):
        setattr(link, name, _noting(here, getattr(link, name)))
    _at(here, at, strike)


def _noting(here: Here, function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(link: Any, key: str, *args: Any) -> Any:
        if here.was_stopped:
            here.sent.append(key)
        return function(link, key, *args)

    return noting


def kill(here: Here, at: str) -> None:
    """End this process as the kernel's out-of-memory killer does."""

    def strike() -> None:
        here.say("killed")
        os.kill(os.getpid(), signal.SIGKILL)

    _at(here, at, strike)


def send(here: Here, at: str, name: str) -> None:
    """Send this process a signal."""

    def strike() -> None:
        here.say("signalled")
        os.kill(os.getpid(), getattr(signal, name))

    _at(here, at, strike)


def sleep(here: Here, at: str, seconds: float) -> None:
    """Be late, but alive."""

    def strike() -> None:
        here.say("asleep")
        time.sleep(seconds)

    _at(here, at, strike)


def hold_the_interpreter(here: Here, at: str, seconds: float) -> None:
    """Be alive and silent, as in a long compile that does not let other threads run."""

    def strike() -> None:
        here.say("asleep")
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

    _at(here, at, strike)


# -- functions that raise --------------------------------------------------------------------------

#: What takes part in a step, as (object, attribute).
PARTS: dict[str, tuple[Any, str]] = {
    "reading": (Store, "read"),
    "installing": (tuner_state.Installed, "load_final"),
    "loading": (tuner_state.Installed, "load"),
    "tuning": (replay, "tune"),
    "sharing": (share, "settle"),
    "preparing": (build, "prepare"),
    "publishing": (Store, "publish"),
    "reporting": (Store, "write_report"),
    "asking": (build, "served"),
}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": lambda: MemoryError("injected"),
    "OSError": lambda: OSError(5, "injected"),
    "OutOfMemoryError": lambda: torch.cuda.OutOfMemoryError("injected"),
    "RuntimeError": lambda: RuntimeError("injected"),
    "SystemExit": lambda: SystemExit("injected"),
    "ZeroDivisionError": lambda: ZeroDivisionError("injected"),
}


def _error(name: str) -> BaseException:
    return ERRORS[name]()


def fail(here: Here, part: str, error: str = "RuntimeError") -> None:
    """Let a part of the package raise whenever it is called."""
    owner, name = PARTS[part]

    def failing(*_args: Any, **_options: Any) -> NoReturn:
        here.say("failed")
        raise _error(error)

    setattr(owner, name, failing)


def fail_at(here: Here, at: str, error: str) -> None:
    """Raise once."""

    def strike() -> None:
        here.say("failed")
        raise _error(error)

    _at(here, at, strike)


def fail_tactic(
    here: Here, error: str = "RuntimeError", op: str = "embedded::gemm", tactic: int | None = 0
) -> None:
    """Let one tactic of an op (None: all but the default) raise on this rank when it is run."""

    def strike() -> None:
        here.say("failed")
        raise _error(error)

    _on_tactic(op, tactic, strike)


def hang(here: Here, at: str, seconds: float, terminate_after_s: float = 0.0) -> None:
    """Do not come back for that long, in code that heeds no signal; one may be sent meanwhile."""

    def strike() -> None:
        here.say("hanging")
        # Like a driver's call: it lets the interpreter go, and no signal interrupts it.
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        _later(seconds, libc.pthread_mutex_unlock, mutex)
        if terminate_after_s:
            _later(terminate_after_s, terminate)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)

    def terminate() -> None:
        here.say("signalled")
        os.kill(os.getpid(), signal.SIGTERM)

    _at(here, at, strike)


def _later(seconds: float, function: Callable[..., object], *arguments: Any) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def slow_tasks(here: Here, seconds: float) -> None:
    """Take long for each task."""
    here.on_task.append(lambda _number: time.sleep(seconds))


def tell_tasks(here: Here) -> None:
    """Tell the launcher of each task as it begins, under its place in the job's queues."""
    here.on_task.append(lambda number: here.say(f"task {number}"))


def die_in_tactic(here: Here, op: str, tactic: int, batch: int) -> None:
    """End this process in one tactic of one task, as an illegal access does."""
    _on_run(here, op, batch, lambda asked: bool(autotuner.AutoTuner.get().is_tuning_mode)
            and asked == tactic)  # fmt: skip


def die_when_built(here: Here, op: str, batch: int) -> None:
    """End this process in the winner of one task, when it is built apart from the forward."""
    prepare = build.prepare

    def prepared(task: Any, entry: Any, key: str = "", *, at_bucket: bool = True) -> None:
        if task.op == op and task.buckets == (batch,):
            here.say("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        prepare(task, entry, key, at_bucket=at_bucket)

    build.prepare = prepared


def _on_run(here: Here, op: str, batch: int, is_it: Callable[[Any], bool]) -> None:
    run = CpuRunner.forward

    @functools.wraps(run)  # FlashInfer looks at the names of its arguments
    def forward(self: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        asked = options.get("tactic", args[0] if args else -1)
        if self.op == op and inputs[0].shape[0] == batch and is_it(asked):
            here.say("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, inputs, *args, **options)

    CpuRunner.forward = forward  # type: ignore[method-assign]


def own_handler(_here: Here) -> None:
    """Have a handler of the engine's for SIGTERM, which raises."""

    def leave(_number: int, _frame: object) -> NoReturn:
        raise SystemExit("the engine's own handler")

    signal.signal(signal.SIGTERM, leave)


def _on_tactic(op: str, tactic: int | None, strike: Callable[[], None]) -> None:
    run = CpuRunner.forward

    @functools.wraps(run)  # FlashInfer looks at the names of its arguments
    def forward(self: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        asked = options.get("tactic", args[0] if args else -1)
        is_it = asked != -1 if tactic is None else asked == tactic
        if self.op == op and isinstance(self, BlockedGemmRunner) and is_it:
            strike()
        return run(self, inputs, *args, **options)

    CpuRunner.forward = forward  # type: ignore[method-assign]


def fail_synthesis(here: Here, error: str) -> None:
    """Have no memory for the inputs of a measurement."""

    def failing(*_args: Any, **_options: Any) -> NoReturn:
        here.say("failed")
        raise _error(error)

    autotuner.AutoTuner._prepare_input_tensors = failing


def fail_forward(here: Here, error: str = "ZeroDivisionError", *, after: bool = False) -> None:
    """Let the engine's forward raise on this rank: before its collectives, or after all of them."""
    forward = here.forward

    def failing() -> NoReturn:
        if after:
            forward()
        else:
            time.sleep(0.5)  # the others are in their forward by then, and not on their way to it
        here.say("failed")
        raise _error(error)

    here.forward = failing


# -- ranks that are told, or hold, something else --------------------------------------------------


def environ(_here: Here, **variables: str) -> None:
    """Have other variables in the environment."""
    os.environ.update(variables)


def _new_folder() -> Path:
    """Make a folder that goes with all else of this run of the tests."""
    return Path(tempfile.mkdtemp(dir=Path(os.environ["FLASHINFER_WORKSPACE_BASE"]).parent))


def blocklist(_here: Here, **metadata: str) -> None:
    """Have a list of tactics that must not run; with ``metadata``, only for such an environment."""
    document: dict[str, Any] = {"invalid_tactics": {"embedded::gemm::BlockedGemmRunner": [0]}}
    if metadata:
        document["_metadata"] = {**autotuner._collect_metadata(), **metadata}
    path = _new_folder() / "blocklist.json"
    path.write_text(json.dumps(document))
    os.environ["FLASHINFER_TACTICS_BLOCKLIST"] = str(path)


def context(here: Here, **options: Any) -> None:
    """Open another tuning context: `autotune(True, **options)`."""
    if "skip_ops" in options:
        options["skip_ops"] = set(options["skip_ops"])
    if "tuning_buckets" in options:
        options["tuning_buckets"] = tuple(options["tuning_buckets"])
    here.context = lambda: autotuner.autotune(True, **options)


def stamp(_here: Here, **fields: str) -> None:
    """Let FlashInfer see another environment."""
    collect = autotuner._collect_metadata

    def collected() -> dict[str, str]:
        return {**collect(), **fields}

    # Where it is looked up by us, and by FlashInfer: one module in older releases.
    for module in (autotuner, sys.modules[autotuner.AutoTuner.__module__]):
        vars(module).update(_collect_metadata=collected)


def tuned_before(here: Here) -> None:
    """Have winners in memory before the session, as an earlier warm-up pass leaves them."""
    x, weight = torch.ones(8, 32), torch.ones(16, 32)
    with autotuner.autotune(True), tuning_over(None):
        for _ in range(2):
            here.engine.ops.gemm(x, weight)
    assert compat.tuner().profiling_cache


def timed_as(here: Here, rank: int) -> None:
    """Measure what another rank would."""
    here.engine.ops.timing = host_clock.timing(here.engine.config.timing, rank)


def idle(here: Here) -> None:
    """Have no tokens: the forward calls no op."""
    here.forward = lambda: None


def tokens(here: Here, number: int) -> None:
    """Warm up with another batch."""
    here.forward = lambda: here.engine.forward(number)


def autotune_v2(here: Here, *, nested: bool = False) -> None:
    """Open FlashInfer's second kind of context in the forward; ``nested``: in another of them."""
    forward = here.forward

    def in_v2() -> object:
        with flashinfer.autotune_v2(mode="tune", persistent_cache=False):
            return forward()

    here.forward = in_v2
    if nested:
        here.context = lambda: flashinfer.autotune_v2(mode="tune", persistent_cache=False)


def own_cache(here: Here) -> None:
    """Open in the forward a context with a cache file of the engine's own."""
    forward = here.forward
    path = str(_new_folder() / "cache.json")

    def with_cache() -> object:
        with autotuner.autotune(True, cache=path):
            return forward()

    here.forward = with_cache


def capture(here: Here) -> None:
    """Capture a CUDA graph while ops are called, as far as FlashInfer can tell.

    Not the collective one: it is FlashInfer's to tune in the forward, which it refuses in a graph.
    """
    choose = here.engine.ops.choose

    def captured(*args: Any, **kwargs: Any) -> Any:
        host_clock._clock.capturing = True
        try:
            return choose(*args, **kwargs)
        finally:
            host_clock._clock.capturing = False

    vars(here.engine.ops).update(choose=captured)


def forget_symbol(_here: Here, name: str) -> None:
    """Have a FlashInfer that has moved a name of its own."""
    autotuner.AutoTuner.get()  # which imports it itself, once
    delattr(autotuner, name)
    compat.probe.cache_clear()


def refuse_sizes(_here: Here, op: str = "embedded::gemm") -> None:
    """Let no tactic but the default take a batch that is no bucket."""
    run = CpuRunner.forward

    @functools.wraps(run)
    def forward(self: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        asked, batch = options.get("tactic", args[0] if args else -1), inputs[0].shape[0]
        if self.op == op and asked != -1 and batch not in BUCKETS:
            raise ValueError(f"invalid split for {batch} rows: injected")
        return run(self, inputs, *args, **options)

    CpuRunner.forward = forward  # type: ignore[method-assign]


# -- disks, clocks, wires --------------------------------------------------------------------------


def obey_permissions(_here: Here) -> None:
    """Give up root's right to write where permissions forbid it; others do not have it."""
    resolve(f"{Path(__file__).parent.parent / 'ranks' / 'on_ranks.py'}:give_up_overrides")()


def lose_directory(here: Here, at: str) -> None:
    """Remove the whole cache root under the running engine."""

    def strike() -> None:
        here.say("removed")
        shutil.rmtree(here.engine.root or "", ignore_errors=True)

    _at(here, at, strike)


def override(here: Here) -> None:
    """Find the directory by the override instead of a root."""
    os.environ["VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"] = str(here.engine.root)
    here.engine.root = None


def stale_handles(here: Here) -> None:
    """Let each rename fail as on a network file system whose server has lost the directory."""

    def failing(path: Path, _target: object) -> NoReturn:
        here.say("failed")
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    Path.replace = failing  # type: ignore[assignment]


def flock(_here: Here, answer: str) -> None:
    """Have a file system that grants a lock to everybody, or whose server is gone."""

    def asked(*_args: object) -> None:
        if answer == "none":
            time.sleep(60)

    fcntl.flock = asked


def one_fault_of_the_disk(here: Here, call: str) -> None:
    """Fail once to write a record of a task, or to synchronise it."""
    own, has_failed = getattr(os, call), False

    def failing(descriptor: int, *args: Any) -> Any:
        nonlocal has_failed
        is_journal = str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".log")
        if is_journal and not has_failed:
            has_failed = True
            here.say("failed")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return own(descriptor, *args)

    setattr(os, call, failing)


def stale_listing(here: Here) -> None:
    """Let this rank see no directory where there is one, as by a cached negative lookup."""
    listing, root = Path.iterdir, str(here.engine.root)

    def iterdir(path: Path) -> Any:
        if str(path).startswith(root):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return listing(path)

    Path.iterdir = iterdir  # type: ignore[assignment,method-assign]


def jump_clock(here: Here, at: str, seconds: float) -> None:
    """Let the time of day jump, as when a machine is told the right time."""
    now = time.time

    def strike() -> None:
        time.time = lambda: now() + seconds

    _at(here, at, strike)


def slow_network(_here: Here, seconds: float) -> None:
    """Let each question to the session's store take its time."""
    for name in ("set", "get_now", "has", "compare_set"):
        setattr(kv_client.StoreLink, name, _late(getattr(kv_client.StoreLink, name), seconds))


def _late(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def late(*args: Any) -> Any:
        time.sleep(seconds)
        return function(*args)

    return late


def say_instead(here: Here, key: str, *, body: str = "", size: int = 0, flip: bool = False) -> None:
    """Send something else under keys that begin so: a text, so many bytes, or a damaged bit."""
    send_ = kv_client.StoreLink.set

    def sending(link: Any, name: str, value: bytes) -> None:
        if name.startswith(key) and not name.endswith("/claim"):
            here.say("lied")
            value = bytes([value[0] ^ 1]) + value[1:] if flip else body.encode() or b" " * size
        send_(link, name, value)

    kv_client.StoreLink.set = sending  # type: ignore[assignment,method-assign]


def change_vote(
    here: Here, step: str, change: Mapping[str, Any] | None = None, without: Sequence[str] = ()
) -> None:
    """Hand in another word than this version's at one step."""
    send_ = kv_client.StoreLink.set

    def sending(link: Any, name: str, value: bytes) -> None:
        if name == f"{step}/{here.rank}":
            here.say("lied")
            word = {**json.loads(value), **(change or {})}
            value = json.dumps({n: v for n, v in word.items() if n not in without}).encode()
        send_(link, name, value)

    kv_client.StoreLink.set = sending  # type: ignore[assignment,method-assign]  # as whoever runs another build


# -- many sessions ---------------------------------------------------------------------------------


def sessions(engine: Engine, number: int, root: str) -> list[dict[str, int]]:
    """Warm up again and again in one process; return what the process holds after each time."""
    engine.root = Path(root)
    held = []
    x, weight = torch.ones(4, 16), torch.ones(16, 16)

    def forward() -> None:
        engine.ops.gemm(x, weight)

    for _ in range(number):
        kernel_warmup.warm_up(
            forward,
            identity=engine.identity(),
            ranks=engine.ranks,
            group=dist.group.WORLD,
            settings=Settings.from_env(),
            cache_root=engine.root,
        )
        # A heartbeat's connection may be in the making, and is let go of as soon as it is there.
        for thread in threading.enumerate():
            if thread.name == "warmup-link":
                thread.join(timeout=2.0)
        held.append(
            {
                "threads": threading.active_count(),
                "tasks": len(list(Path("/proc/self/task").iterdir())),
                "files": len(list(Path("/proc/self/fd").iterdir())),
                "groups": len(dist.distributed_c10d._world.pg_map),
            }
        )
    with contextlib.suppress(RankLostError):
        dist.barrier()
    return held
