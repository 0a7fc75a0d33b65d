# SPDX-License-Identifier: Apache-2.0
"""The mistakes that the author of a runner makes, and what each of them gets; played on two ranks.

Owns the table that `docs/mistakes.md` shows. `play` is called on each rank by `launch`: it makes
one mistake after the other, so every row must leave both ranks alive and in step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from flashinfer.autotuner import (
    AutoTuner,
    DynamicTensorSpec,
    TunableRunner,
    TuningConfig,
    autotune,
)

from warmup_plugin import Identity, RankInfo, Settings, WarmupReport, session, warm_up
from warmup_plugin.engines.embedded.worker import Engine

BUCKETS = (1, 16, 256)
TOKENS = DynamicTensorSpec((0,), (0,), BUCKETS, lambda m: max(b for b in BUCKETS if b <= m))


class Matmul(TunableRunner):
    def get_valid_tactics(self, _inputs: Any, _profile: Any) -> list[int]:
        return [0, 1]

    def forward(self, inputs: Any, tactic: int = -1, **_options: Any) -> Any:
        x, w = inputs
        return (w.t() @ x.t()).t() if tactic == 1 else x @ w


def matmul(x: Any, w: Any) -> Any:
    config = TuningConfig(dynamic_tensor_specs=(TOKENS,))
    runner, tactic = AutoTuner.get().choose_one("mistakes::matmul", [Matmul()], config, [x, w])
    return runner([x, w], tactic=tactic)


class Runner:
    """A runner on one of two ranks: its forward, and the arguments that it should pass."""

    def __init__(self, rank: int, root: Path) -> None:
        self.rank, self.root = rank, root
        self.x, self.w = torch.randn(256, 64), torch.randn(64, 64)

    def forward(self) -> Any:
        """Call what serving will call; a layer split over the ranks."""
        y = matmul(self.x, self.w)
        dist.all_reduce(y)
        return y

    def warm_up(self, forward: Any = None, **mistakes: Any) -> WarmupReport:
        """Warm up with the right arguments, but for those that are given here."""
        return warm_up(self.forward if forward is None else forward, **self.right(**mistakes))

    def right(self, **mistakes: Any) -> dict[str, Any]:
        """Return the right arguments, but for those that are given here."""
        given: dict[str, Any] = {
            "identity": self.identity(), "ranks": self.ranks(), "cache_root": self.root,
            **mistakes,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not LEFT_OUT}

    def identity(self, **factors: Any) -> Identity:
        """Return the identity, with other factors where they are given."""
        return Identity.of(**{"model": "mine", "dtype": "float32", "tp": 2, **factors})

    def ranks(self, **coordinates: Any) -> RankInfo:
        """Return the rank's coordinates, but for those that are given here."""
        right = {
            "rank": self.rank, "world_size": 2, "local_rank": self.rank, "tp_rank": self.rank,
            "tp_size": 2,
        }  # fmt: skip
        return RankInfo(**{**right, **coordinates})


LEFT_OUT = object()


class Mistake(NamedTuple):
    """One row: what the runner does and what it gets, on rank 1 too where that is not told apart.

    A row's text is compared with what comes, where … stands for anything. ``apart``: the mistake is
    made in a job of its own, whose group has a short time-out. ``shown_by``: the test that makes it
    instead, where a process ends by it.
    """

    what: str
    gets: str
    do: Callable[[Runner], Any] = Runner.warm_up
    on_rank_1: str = ""
    apart: bool = False
    shown_by: str = ""


def _setting(value: dict[str, str]) -> Callable[[Runner], Any]:
    """Return what warms up with an environment variable set."""

    def do(runner: Runner) -> Any:
        os.environ.update(value)
        try:
            return runner.warm_up()
        finally:
            for name in value:
                del os.environ[name]

    return do


def _nested(runner: Runner) -> Any:
    with autotune(True):
        return runner.warm_up()


def _nested_in_the_forward(runner: Runner) -> Any:
    def forward() -> None:
        with autotune(True):
            runner.forward()

    return runner.warm_up(forward)


def _within_another(runner: Runner) -> Any:
    return runner.warm_up(runner.warm_up)


def _async(runner: Runner) -> Any:
    async def forward() -> None:
        runner.forward()

    return runner.warm_up(forward)


def _generator(runner: Runner) -> Any:
    def forward() -> Any:
        yield runner.forward()

    return runner.warm_up(forward)


def _fails_on_rank_1(runner: Runner) -> Any:
    def forward() -> None:
        runner.forward()
        if runner.rank:
            raise ValueError("boom")

    return runner.warm_up(forward)


def _in_a_thread(runner: Runner) -> Any:
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(runner.warm_up()))
    thread.start()
    thread.join()
    return box[0]


def _as_a_context(runner: Runner) -> Any:
    with session(**runner.right()) as warming:
        runner.forward()
    return warming.report


def _body_that_does_nothing(runner: Runner) -> Any:
    with session(**runner.right()) as warming:
        pass
    return warming.report


def _twice(runner: Runner) -> Any:
    runner.warm_up()
    report = runner.warm_up()
    assert report.is_warm
    return report


def _in_inference_mode(runner: Runner) -> Any:
    with torch.inference_mode():
        return runner.warm_up()


def _group_of_one(runner: Runner) -> Any:
    groups = [dist.new_group([rank]) for rank in range(2)]
    return runner.warm_up(lambda: matmul(runner.x, runner.w), group=groups[runner.rank],
                          ranks=RankInfo(), cache_root=runner.root / str(runner.rank))  # fmt: skip


def _group_of_others(runner: Runner) -> Any:
    groups = [dist.new_group([rank]) for rank in range(2)]
    return runner.warm_up(group=groups[runner.rank])


def _without_a_group(runner: Runner) -> Any:
    dist.destroy_process_group()
    return runner.warm_up()


def _on_rank_0_only(runner: Runner) -> Any:
    if runner.rank == 0:
        return runner.warm_up()
    time.sleep(GROUP_TIMEOUT_S + 2.0)
    return None


def _a_collective_less(runner: Runner) -> Any:
    return runner.warm_up((lambda: matmul(runner.x, runner.w)) if runner.rank else None)


#: The time-out of the group in which mistakes are made that keep a rank in a collective.
GROUP_TIMEOUT_S = 4.0
CERTIFIED = "certified"

MISTAKES: dict[str, Mistake] = {
    # -- settings
    "settingbad": Mistake(
        '`Settings(mode="onn")`',
        "SettingError: WARMUP_PLUGIN_MODE is 'onn': must be one of on, read-only, replay, "
        "require-complete, off",
        lambda r: r.warm_up(settings=Settings(mode="onn")),  # type: ignore[arg-type]  # the point
    ),
    "envbad": Mistake(
        "`WARMUP_PLUGIN_MODE=onn` in the environment",
        "SettingError: WARMUP_PLUGIN_MODE is 'onn': must be one of on, read-only, replay, "
        "require-complete, off",
        _setting({"WARMUP_PLUGIN_MODE": "onn"}),
    ),
    "envunk": Mistake(
        "`WARMUP_PLUGIN_MOED=on` in the environment",
        "certified; no such setting: WARMUP_PLUGIN_MOED (is it WARMUP_PLUGIN_MODE?)",
        _setting({"WARMUP_PLUGIN_MOED": "on"}),
    ),
    "settingtype": Mistake(
        '`Settings(silence_s="60")`',
        "SettingError: WARMUP_PLUGIN_SILENCE_S is '60': must be a finite number of seconds, "
        "above 0",
        lambda r: r.warm_up(settings=Settings(silence_s="60")),  # type: ignore[arg-type]  # the point
    ),
    "settingunk": Mistake(
        "`Settings(cacheroot=...)`, a field that there is not",
        "TypeError: Settings.__init__() got an unexpected keyword argument 'cacheroot'",
        lambda r: r.warm_up(settings=Settings(cacheroot="/x")),  # type: ignore[call-arg]  # the point
    ),
    "settingstr": Mistake(
        '`Settings(cache_root="/tables")`, a text for a path', CERTIFIED,
        lambda r: r.warm_up(settings=Settings(cache_root=str(r.root))),  # type: ignore[arg-type]  # the point
    ),
    "settingsdict": Mistake(
        '`settings={"mode": "on"}`',
        "RuleError: settings is {'mode': 'on'}: must be a Settings, as Settings.from_env() makes "
        "one",
        lambda r: r.warm_up(settings={"mode": "on"}),
    ),
    # -- arguments
    "unkarg": Mistake(
        "`cacheroot=...`, an argument that there is not",
        "TypeError: warm_up() got an unexpected keyword argument 'cacheroot'; did you mean "
        "'cache_root'?",
        lambda r: r.warm_up(cacheroot="/x"),
    ),
    "noidentity": Mistake(
        "no `identity`",
        "TypeError: warm_up() missing 1 required keyword-only argument: 'identity'",
        lambda r: r.warm_up(identity=LEFT_OUT),
    ),
    "iddict": Mistake(
        '`identity={"model": "mine"}`',
        "RuleError: identity is {'model': 'mine'}: must be an Identity, as Identity.of(...) makes "
        "one",
        lambda r: r.warm_up(identity={"model": "mine"}),
    ),
    "idstr": Mistake(
        '`identity="mine"`',
        "RuleError: identity is 'mine': must be an Identity, as Identity.of(...) makes one",
        lambda r: r.warm_up(identity="mine"),
    ),
    "ranksint": Mistake(
        "`ranks=0`, the rank alone", "RuleError: ranks is …: must be a RankInfo",
        lambda r: r.warm_up(ranks=r.rank),
    ),
    "ranksdict": Mistake(
        '`ranks={"rank": 0, ...}`', "RuleError: ranks is {…}: must be a RankInfo",
        lambda r: r.warm_up(ranks={"rank": r.rank, "world_size": 2}),
    ),
    "group_str": Mistake(
        '`group="tp"`',
        "RuleError: group is 'tp': must be a process group of which this rank is a member",
        lambda r: r.warm_up(group="tp"),
    ),
    "relpath": Mistake(
        '`cache_root=Path("tables")`',
        "RuleError: cache_root is 'tables': must be an absolute path: ranks of one job may start "
        "in different directories",
        lambda r: r.warm_up(cache_root=Path("tables")),
    ),
    "strrel": Mistake(
        '`cache_root="tables"`',
        "RuleError: cache_root is 'tables': must be an absolute path: ranks of one job may start "
        "in different directories",
        lambda r: r.warm_up(cache_root="tables"),
    ),
    "tilde": Mistake(
        '`cache_root=Path("~/tables")`',
        "RuleError: cache_root is '~/tables': must be an absolute path: ranks of one job may start "
        "in different directories",
        lambda r: r.warm_up(cache_root=Path("~/tables")),
    ),
    "strpath": Mistake(
        '`cache_root="/tables"`, a text for a path', CERTIFIED,
        lambda r: r.warm_up(cache_root=str(r.root)),
    ),
    "othersstr": Mistake(
        '`extra_tables="/tables"`, one path for several',
        "RuleError: extra_tables is '/tables': must be paths of tables, an iterable",
        lambda r: r.warm_up(extra_tables="/tables"),
    ),
    "opsdict": Mistake(
        '`ops={"mine::matmul": "reason"}`',
        "RuleError: ops is {'mine::matmul': 'reason'}: must be a KnownOps, as "
        "known_ops(...).plus(...) makes one",
        lambda r: r.warm_up(ops={"mine::matmul": "reason"}),
    ),
    "engine": Mistake(
        '`engine="mine"`',
        "RuleError: engine is 'mine': must be an EngineInfo, or a pair of texts: name and version",
        lambda r: r.warm_up(engine="mine"),
    ),
    "context": Mistake(
        "`tuning_context=autotune(True)`, a context for the function that makes one",
        "RuleError: tuning_context is <…>: must be a function that returns a context manager",
        lambda r: r.warm_up(tuning_context=nullcontext()),
    ),
    "progress": Mistake(
        "`progress=True`", "RuleError: progress is True: must be a function",
        lambda r: r.warm_up(progress=True),
    ),
    "flagstr": Mistake(
        '`require_sharing="no"`',
        "RuleError: require_sharing is 'no': must be True or False",
        lambda r: r.warm_up(require_sharing="no"),
    ),
    # -- the forward
    "notcallable": Mistake(
        "`warm_up(forward(), ...)`, its result for the function",
        "RuleError: forward is 'Tensor': must be a function without arguments",
        lambda r: r.warm_up(r.forward()),
    ),
    "forwardargs": Mistake(
        "a forward with an argument",
        "RuleError: forward is '…<lambda>': must be a function without arguments (missing a "
        "required argument: 'n')",
        lambda r: r.warm_up(lambda n: n),
    ),
    "async": Mistake(
        "`async def forward()`",
        "RuleError: forward is '…forward': must be a function without arguments that runs when "
        "called, not a coroutine or a generator",
        _async,
    ),
    "generator": Mistake(
        "a forward with a `yield`",
        "RuleError: forward is '…forward': must be a function without arguments that runs when "
        "called, not a coroutine or a generator",
        _generator,
    ),
    "sessionpos": Mistake(
        "a forward that calls no op of FlashInfer's",
        "certified; the forward called nothing that FlashInfer tunes, on any rank; …: is it the "
        "right one, and has it run to its end?",
        lambda r: r.warm_up(lambda: None),
    ),
    "emptybody": Mistake(
        "`with session(...)` around an empty body",
        "certified; the forward called nothing that FlashInfer tunes, on any rank; …: is it the "
        "right one, and has it run to its end?",
        _body_that_does_nothing,
    ),
    "nooprank": Mistake(
        "a forward that does nothing on rank 1 only", CERTIFIED,
        lambda r: r.warm_up((lambda: None) if r.rank else (lambda: matmul(r.x, r.w))),
    ),
    "raise_after": Mistake(
        "a forward that fails on rank 1 after its collectives",
        "ForwardError: rank 1: the forward failed: ValueError: boom",
        _fails_on_rank_1, on_rank_1="ValueError: boom",
    ),
    "nested": Mistake(
        "`autotune(True)` open around `warm_up`",
        "RefusedError: rank 0: a FlashInfer tuning context is open already; close it first",
        _nested,
    ),
    "nested_inside": Mistake(
        "`autotune(True)` opened by the forward", CERTIFIED, _nested_in_the_forward,
    ),
    "nestedwarm": Mistake(
        "`warm_up` called by the forward of `warm_up`",
        "SessionError: … is open, and this one is opened within it: must be closed first",
        _within_another,
    ),
    "inference": Mistake(
        "`torch.inference_mode()` around `warm_up`", CERTIFIED, _in_inference_mode,
    ),
    "twice": Mistake("`warm_up` called twice", CERTIFIED, _twice),
    "thread": Mistake("`warm_up` called on another thread", CERTIFIED, _in_a_thread),
    "ctxmgr": Mistake("`session` in place of `warm_up`", CERTIFIED, _as_a_context),
    # -- the ranks
    "noranks": Mistake(
        "neither `ranks` nor `group`, on two ranks",
        "SessionError: torch.distributed has 2 ranks here, and warm_up got neither ranks= nor "
        "group=: pass ranks=RankInfo(rank=..., world_size=2, ...); RankInfo() says that this "
        "process warms up alone",
        lambda r: r.warm_up(ranks=LEFT_OUT),
    ),
    "groupnoranks": Mistake(
        "`group` without `ranks`",
        "SessionError: group= has 2 ranks, and warm_up got no ranks=: pass "
        "ranks=RankInfo(rank=..., world_size=2, ...)",
        lambda r: r.warm_up(ranks=LEFT_OUT, group=dist.group.WORLD),
    ),
    "wrongrank": Mistake(
        "`RankInfo(rank=0, ...)` on every rank",
        "RefusedError: rank 1 of 2 says that it is rank 0 of 2",
        lambda r: r.warm_up(ranks=r.ranks(rank=0, local_rank=0, tp_rank=0)),
    ),
    "wrongworld": Mistake(
        "`RankInfo(world_size=4, ...)` in a group of two",
        "RefusedError: rank 0 of 2 says that it is rank 0 of 4",
        lambda r: r.warm_up(ranks=r.ranks(world_size=4, tp_size=4)),
    ),
    "localrank": Mistake(
        "`RankInfo(local_rank=5, ...)` on every rank", CERTIFIED,
        lambda r: r.warm_up(ranks=r.ranks(local_rank=5)),
    ),
    "sametp": Mistake(
        "`RankInfo` without `tp_rank` and `tp_size`", CERTIFIED,
        lambda r: r.warm_up(ranks=r.ranks(tp_rank=0, tp_size=1)),
    ),
    "swaplocal": Mistake(
        "`local_rank` 0 and 1 exchanged", CERTIFIED,
        lambda r: r.warm_up(ranks=r.ranks(local_rank=1 - r.rank)),
    ),
    "rankbool": Mistake(
        '`RankInfo(rank="0")`, as the environment has it',
        "ValueError: rank='0': must be a whole number",
        lambda r: r.warm_up(ranks=r.ranks(rank="0")),
    ),
    "rankneg": Mistake(
        "`RankInfo(rank=2, world_size=2)`", "ValueError: rank=2: must be in [0, world_size=2)",
        lambda r: r.warm_up(ranks=r.ranks(rank=2)),
    ),
    "othergroup": Mistake(
        "a `group` of this rank alone, with the `RankInfo` of two",
        "RefusedError: rank 0 of 1 says that it is rank 0 of 2", _group_of_others,
        on_rank_1="RefusedError: rank 0 of 1 says that it is rank 1 of 2",
    ),
    "worldone_group": Mistake(
        "a `group` of this rank alone, with `RankInfo()`", CERTIFIED, _group_of_one,
    ),
    # -- the identity
    "identity": Mistake(
        '`extra={"rank": rank}` in the identity',
        "certified; rank 1: extra.rank is 1, not 0 as on rank 0",
        lambda r: r.warm_up(identity=r.identity(extra={"rank": r.rank})),
    ),
    "iddtype": Mistake(
        "another `dtype` on rank 1",
        "certified; rank 1: dtype is 'float16', not 'float32' as on rank 0",
        lambda r: r.warm_up(identity=r.identity(dtype="float16" if r.rank else "float32")),
    ),
    "idtime": Mistake(
        "the time of day in the identity",
        "certified; rank 1: extra.t is …, not … as on rank 0",
        lambda r: r.warm_up(identity=r.identity(extra={"t": time.time() + r.rank})),
    ),
    "idfloat": Mistake(
        '`float("nan")` in the identity',
        "IdentityError: extra.t is nan: must be a finite number",
        lambda r: r.warm_up(identity=r.identity(extra={"t": float("nan")})),
    ),
    "idtorch": Mistake(
        "`dtype=torch.float32` in the identity",
        "IdentityError: dtype is 'torch.float32': must be a string, number, boolean, null, list or "
        "mapping",
        lambda r: r.warm_up(identity=r.identity(dtype=torch.float32)),
    ),
    "idunk": Mistake(
        '`Identity({"modle": ...})`, a factor that there is not',
        "IdentityError: modle is \"'mine'\": must be one of the factors model, …",
        lambda r: r.warm_up(identity=Identity({"modle": "mine"})),
    ),
    # -- what takes a job of its own
    "noinit": Mistake(
        "`ranks` of two without `torch.distributed.init_process_group`",
        "SessionError: ranks= says that there are 2 ranks, and torch.distributed is not "
        "initialised here: call torch.distributed.init_process_group first",
        _without_a_group, apart=True,
    ),
    "onlyrank0": Mistake(
        "`warm_up` called on rank 0 only",
        "SessionError: not every rank of the group has begun this session within "
        "the group's time-out, or one of them has ended: …", _on_rank_0_only,
        on_rank_1="nothing", apart=True,
    ),
    "missingcoll": Mistake(
        "a collective that rank 1 does not enter", "RuntimeError: …",
        _a_collective_less, on_rank_1="ForwardError: rank 0: the forward failed: RuntimeError: …",
        apart=True,
    ),
    # -- what ends a process
    "raise1": Mistake(
        "a forward that fails on rank 1, while rank 0 waits for it in a collective",
        "rank and error in its log; its process ends after `WARMUP_PLUGIN_GRACE_S` (status 79)",
        on_rank_1="what its forward raised",
        shown_by="tests/faults/test_forward_fails.py"
        "::test_ranks_stuck_in_its_collective_end_their_process",
    ),
    "killself": Mistake(
        "rank 1 is killed in its forward",
        "RankLostError: rank 1 is lost (host …): …",
        on_rank_1="nothing",
        shown_by="tests/faults/test_killed.py"
        "::test_the_others_name_it_and_the_next_start_is_sound",
    ),
}  # fmt: skip


def play(engine: Engine, name: str = "") -> dict[str, str]:
    """Make one mistake, or all that need no job of their own; return what this rank got for it."""
    assert engine.root is not None
    here = [each for each, row in MISTAKES.items() if not row.apart and not row.shown_by]
    return {
        name: outcome(MISTAKES[name], Runner(engine.ranks.rank, engine.root / name))
        for name in ([name] if name else here)
    }


def outcome(mistake: Mistake, runner: Runner) -> str:
    """Return what a mistake comes to: the error, or agreement, reason and warnings."""
    try:
        report = mistake.do(runner)
    except Exception as error:  # noqa: BLE001  # which one it is, is what the test asks
        return f"{type(error).__name__}: {error}"
    if report is None:
        return "nothing"
    return "; ".join(filter(None, [report.agreement, report.reason, *report.warnings]))
