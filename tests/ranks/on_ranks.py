# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks: functions of an engine, named to `launch`.

Most are `warm_up_rank` with something planted or watched, and return its result with what was seen.
Wrapping is done here, in processes that end with the test; the package is what is under test.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import hashlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flashinfer.autotuner
import msgspec
import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TuningConfig, autotune

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.logs import logged
from warmup_plugin.cache.store import Store
from warmup_plugin.coordination import kv_client, opening
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.decisions import GoOn
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.opening import connect
from warmup_plugin.coordination.rounds import Round
from warmup_plugin.coordination.votes import EmptyVote
from warmup_plugin.engines.embedded import host_clock, parallel, worker
from warmup_plugin.engines.embedded.runners import BlockedGemmRunner
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime import needs
from warmup_plugin.settings import Settings
from warmup_plugin.tuner import compat, environment_stamp


def plain(engine: Engine) -> tuple[Any, list[str]]:
    """Warm up as the engine does; see what is logged as a warning."""
    with logged(logging.WARNING) as lines:
        result = warm_up_rank(engine)
    return result, lines


def obeying_permissions(engine: Engine) -> tuple[Any, list[str]]:
    """As `plain`, with the rights of an ordinary user: a read-only directory is read-only."""
    give_up_overrides()
    return plain(engine)


def far_from_0(engine: Engine) -> tuple[Any, list[str]]:
    """Warm up on a node of which no rank says that it is the first."""
    patch(engine, ranks=msgspec.structs.replace(engine.ranks, local_rank=5))
    return plain(engine)


def tuning_as(engine: Engine, rank: int) -> tuple[Any, None]:
    """Warm up with the timings that another rank measures."""
    vars(engine.ops).update(timing=host_clock.timing(engine.config.timing, rank))
    return warm_up_rank(engine), None


def on_gpus(
    engine: Engine, names: list[str], require_agreement_on: int | None = None
) -> tuple[Any, list[str]]:
    """Warm up on a rank whose environment stamp names this GPU."""
    rank = engine.ranks.rank
    stamp(gpu=names[rank])
    if rank == require_agreement_on:
        os.environ["WARMUP_PLUGIN_REQUIRE_AGREEMENT"] = "1"
    return plain(engine)


def stamped(engine: Engine, **fields: str) -> tuple[Any, list[str]]:
    """Warm up on a machine whose environment stamp has these fields."""
    stamp(**fields)
    return plain(engine)


def stamped_obeying_permissions(engine: Engine, **fields: str) -> tuple[Any, list[str]]:
    give_up_overrides()
    return stamped(engine, **fields)


def on_a_full_disk(engine: Engine, size: int, **fields: str) -> tuple[Any, list[str]]:
    """Warm up where no file may grow beyond this size while a table is published."""
    publish, (_, hard) = Store.publish, resource.getrlimit(resource.RLIMIT_FSIZE)

    def publish_little(*args: Any, **options: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return publish(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    patch(Store, publish=publish_little)
    return stamped(engine, **fields)


def with_a_context_open(engine: Engine, rank: int, **fields: str) -> tuple[Any, list[str]]:
    """Warm up inside a tuning context on one rank, then again without; see what was raised."""
    stamp(**fields)
    raised = ""
    with autotune(True) if engine.ranks.rank == rank else contextlib.nullcontext():
        try:
            warm_up_rank(engine)
        except SessionError as error:
            raised = str(error)
    files = [str(path) for path in Path(engine.root or "").rglob("*")]
    return warm_up_rank(engine), [raised, *files]


def with_a_cache_of_its_own(engine: Engine, cache: str, **fields: str) -> tuple[Any, list[str]]:
    """Warm up with a forward that opens FlashInfer's own cache, one file for each rank."""
    forward, path = engine.forward, f"{cache}.{engine.ranks.rank}"

    def forward_with_cache() -> Any:
        with autotune(True, cache=path):
            return forward()

    patch(engine, forward=forward_with_cache)
    return stamped(engine, **fields)


def skipping(engine: Engine, ops: list[str], rank: int) -> tuple[Any, None]:
    """Warm up with a skip list on one rank, in its identity and in its forward."""
    own, identity, forward = engine.ranks.rank == rank, engine.identity, engine.forward

    def forward_with_skip_list() -> Any:
        with autotune(True, skip_ops=set(ops) if own else None):
            return forward()

    patch(
        engine,
        identity=lambda: identity().with_factors(skip_ops=ops if own else []),
        forward=forward_with_skip_list,
    )
    return warm_up_rank(engine), None


def with_a_forward_that_fails(engine: Engine, ranks: list[int]) -> tuple[Any, str]:
    """Warm up with a forward that raises on some ranks, then again with a good one."""
    forward, raised = engine.forward, ""

    def failing() -> Any:
        forward()
        if engine.ranks.rank in ranks:
            raise ZeroDivisionError("planted")

    patch(engine, forward=failing)
    try:
        warm_up_rank(engine)
    except (SessionError, ZeroDivisionError) as error:
        raised = f"{type(error).__name__}: {error}"
    patch(engine, forward=forward)
    return warm_up_rank(engine), raised


def looking_up(engine: Engine, elsewhere: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Warm up where FlashInfer has looked nothing up yet; see how often it does.

    ``elsewhere``: a rank whose linker looks in another folder.
    """
    if engine.ranks.rank == elsewhere:
        os.environ["LD_LIBRARY_PATH"] = "/elsewhere"
    places = {field: (sys.modules[module], name) for field, (module, name) in compat.SLOW.items()}
    own = {field: getattr(module, name) for field, (module, name) in places.items()}
    for look in own.values():
        look.cache_clear()
    result = warm_up_rank(engine)
    return result, {
        "looked up": {field: look.cache_info().misses for field, look in own.items()},
        "left as found": all(getattr(*places[field]) is look for field, look in own.items()),
    }


# -- ops of a test's own ---------------------------------------------------------------------------


class PlainRunner(BlockedGemmRunner):
    """A runner whose key has no options in it."""

    def get_cache_key_extras(self, _inputs: Any) -> tuple[Any, ...]:
        return ()


class OptionalRunner(BlockedGemmRunner):
    """A runner with an option in its key."""

    def get_cache_key_extras(self, _inputs: Any) -> tuple[Any, ...]:
        return ("option",)


class PairRunner(PlainRunner):
    """A runner that keeps an option out of its key."""

    flag = False


TOKENS = DynamicTensorSpec(
    input_idx=(0,), dim_idx=(0,), gen_tuning_buckets=(1, 8, 64), map_to_tuning_buckets=int
)


def two_plain_ops(engine: Engine) -> tuple[Any, None]:
    """Warm up with a forward of two ops, one of them without options."""
    return warm_up_with(engine, [PlainRunner("test::plain", engine.ops.timing),
                                 OptionalRunner("test::optional", engine.ops.timing)])  # fmt: skip


def a_planted_pair(engine: Engine) -> tuple[Any, None]:
    """Warm up with a forward in which one key stands for two configurations."""
    pair = [PairRunner("test::pair", engine.ops.timing) for _ in range(2)]
    for runner, flag in zip(pair, (False, True), strict=True):
        runner.flag = flag
    return warm_up_with(engine, [PlainRunner("test::plain", engine.ops.timing), *pair])


def warm_up_with(engine: Engine, runners: list[Any]) -> tuple[Any, None]:
    config = TuningConfig(dynamic_tensor_specs=(TOKENS,))
    inputs = [torch.ones(64, 16), torch.ones(8, 16), None]

    def forward() -> None:
        for runner in runners:
            engine.ops.choose(runner.op, [runner], config, inputs)

    patch(engine, forward=forward)
    return warm_up_rank(engine), None


# -- what crosses ranks ----------------------------------------------------------------------------


def watching_the_wire(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Warm up; see the files opened under the root, the tables FlashInfer loads, the messages.

    Not the journals: every rank has its own.
    """
    opened: list[str] = []
    loaded: list[str] = []
    sent: list[tuple[str, bytes]] = []
    root = f"{engine.root}/flashinfer_autotune"
    load_configs, write, compare = AutoTuner.load_configs, StoreLink.set, StoreLink.compare_set

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir", "os.rename", "os.mkdir", "os.remove"):
            # Python 3.11 tells `open` of Path.open, os.open, and everything that ends there.
            names = [os.fspath(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
            found = (name for name in map(str, names) if name.startswith(root))
            opened.extend(name for name in found if "/journal" not in name)

    def load(tuner: Any, path: str) -> Any:
        loaded.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        return load_configs(tuner, path)

    def set_(link: StoreLink, key: str, value: bytes) -> None:
        sent.append((key, value))
        write(link, key, value)

    def compare_set(link: StoreLink, key: str, value: str) -> bytes:
        sent.append((key, value.encode()))
        return compare(link, key, value)

    patch(AutoTuner, load_configs=load)
    patch(StoreLink, set=set_, compare_set=compare_set)
    sys.addaudithook(on_event)
    result = warm_up_rank(engine)
    return result, {"opened": opened, "loaded": loaded, "sent": sent}


# -- what is in flight while a tactic is timed -----------------------------------------------------

#: Every call of torch.distributed that waits for another rank.
COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "batch_isend_irecv", "broadcast", "broadcast_object_list",
    "gather", "gather_object", "irecv", "isend", "monitored_barrier", "new_group", "recv", "reduce",
    "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
)  # fmt: skip


class Recorder:
    """Begin and end of collectives and of timed tactics, on the clock all ranks have in common."""

    def __init__(self) -> None:
        self.collectives: list[tuple[str, float, float]] = []
        self.tactics: list[dict[str, Any]] = []
        self.group_at_the_end: bool | None = None
        for name in COLLECTIVES:
            recorded = self._recorded(name, getattr(dist, name))
            patch(dist, **{name: recorded})
            patch(dist.distributed_c10d, **{name: recorded})
        patch(AutoTuner, _profile_single_kernel=self._profiled(AutoTuner._profile_single_kernel))
        patch(worker, tuning_over=self._tuning_over)

    def _recorded(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.collectives.append((name, began, time.monotonic()))

        return call

    def _profiled(self, function: Any) -> Any:
        def profile(tuner: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
            tactic = {
                "runner": type(runner).__name__,
                "contexts": tuner._active_tuning_contexts,
                "group": parallel.tuning_group() is not None,
                "began": time.monotonic(),
            }
            try:
                return function(tuner, runner, *args, **kwargs)
            finally:
                self.tactics.append({**tactic, "ended": time.monotonic()})

        return profile

    @contextlib.contextmanager
    def _tuning_over(self, group: Any) -> Iterator[None]:
        with parallel.tuning_over(group):
            yield
            self.group_at_the_end = parallel.tuning_group() is group

    def seen(self) -> dict[str, Any]:
        return {
            "collectives": self.collectives,
            "tactics": self.tactics,
            "group_at_the_end": self.group_at_the_end,
        }


def recording(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Warm up; see collectives and timed tactics."""
    recorder = Recorder()
    result = warm_up_rank(engine)
    return result, {**recorder.seen(), "finished": time.monotonic()}


def recording_without_us(engine: Engine) -> dict[str, Any]:
    """Let FlashInfer tune inside the forward, as without this package; see the same."""
    recorder = Recorder()
    with autotune(True):
        engine.forward()
    return recorder.seen()


def slow_on_rank_0(rank: int) -> host_clock.Timing:
    """Every tactic really takes a while on rank 0, the first time it runs for a batch."""
    met = set()
    measure = host_clock.TIMINGS["deterministic"](rank)

    def milliseconds(op: str, runner: str, batch: int, tactic: Any) -> float:
        call = (op, runner, batch, tactic)
        if rank == 0 and tactic != -1 and call not in met:
            met.add(call)
            time.sleep(float(os.environ["TEST_SLEEP_S"]))
        return measure(op, runner, batch, tactic)

    return milliseconds


# -- sessions and what they hold -------------------------------------------------------------------


def meeting_until_one_dies(engine: Engine, rank: int) -> tuple[int, str]:
    """Meet twice; in between one rank's process is killed. Return who is named, and why."""
    settings = Settings.from_env({}, silence_s=1.0)
    coordinator = Coordinator(connect(dist.group.WORLD, settings), settings)
    try:
        coordinator.meet(Round("first", EmptyVote, GoOn), EmptyVote(), lambda _votes: GoOn(go=""))
        if engine.ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        coordinator.meet(Round("second", EmptyVote, GoOn), EmptyVote(), lambda _votes: GoOn(go=""))
    except RankLostError as error:
        return error.rank, error.reason
    finally:
        coordinator.close()
    return -1, ""


def lacking_something(engine: Engine, rank: int, what: str) -> str:
    """Warm up where one rank lacks something before it has a meeting; say how that ended."""
    own_and_jobs, ways = ("TCPStore", "link_beside"), ("patient_client", "link_beside")
    lack: dict[str, Any] = {
        "an import": (needs, {"lacking": failing(ImportError("injected"))}),
        "a look": (environment_stamp, {"begin": failing(RuntimeError("injected"))}),
        "descriptors": (needs, {"lacking": lambda *_: "2 files more can open: injected"}),
        "a store": (opening, {name: failing(OSError(24, "injected")) for name in own_and_jobs}),
        "a way to it": (opening, {name: failing(RuntimeError("injected")) for name in ways}),
        "an answer": (kv_client, {"bound_answers": failing(RuntimeError("injected"))}),
        "a thread": (_thread, {"start_new_thread": failing(RuntimeError("injected"))}),
    }  # fmt: skip
    owner, attributes = lack[what]
    if engine.ranks.rank == rank:
        patch(owner, **attributes)
    began = time.monotonic()
    try:
        warm_up_rank(engine)
    except SessionError as error:
        dist.barrier()  # every rank gets here, and the engine's group works as before
        return f"{error} after {int(time.monotonic() - began) // 10 * 10} s"
    return "up"


def failing(error: Exception) -> Any:
    """Return a function that raises."""

    def fail(*_args: Any, **_options: Any) -> Any:
        raise error

    return fail


def many_sessions(engine: Engine, sessions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Warm up again and again; return what the process holds after the third and the last time."""
    held = []
    for _ in range(sessions):
        warm_up_rank(engine)
        held.append(holdings())
    return held[2], held[-1]


def holdings() -> dict[str, Any]:
    """Return what a session could leave behind in this process.

    A heartbeat's connection that is still in the making is let go of as soon as it is there: a name
    server that is slow to answer torch may hold it.
    """
    making = (t for t in threading.enumerate() if t.name == "warmup-link")
    for thread in making:
        thread.join(20)
    gc.collect()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "all threads": len(list(Path("/proc/self/task").iterdir())),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "groups": len(dist.distributed_c10d._world.pg_map),
    }


# -- tools -----------------------------------------------------------------------------------------


def patch(owner: Any, **attributes: Any) -> None:
    """Replace attributes for as long as the process lives."""
    for name, value in attributes.items():
        setattr(owner, name, value)


def stamp(**fields: str) -> None:
    """Let FlashInfer's environment stamp say this, as on another machine."""
    module = sys.modules[AutoTuner.__module__]
    collect = module._collect_metadata

    def collect_metadata() -> dict[str, str]:
        return {**collect(), **fields}

    for place in (module, flashinfer.autotuner):
        patch(place, _collect_metadata=collect_metadata)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def give_up_overrides() -> None:
    """Give up root's right to write where permissions forbid it, in this thread (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _CapHeader(0x20080522, 0), (_CapData * 2)()
    if libc.capget(ctypes.byref(header), data) or libc.capset(ctypes.byref(header), _lowered(data)):
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")


def _lowered(data: Any) -> Any:
    overrides = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for field in ("effective", "permitted", "inheritable"):
        setattr(data[0], field, getattr(data[0], field) & ~overrides)
    return data
