# SPDX-License-Identifier: Apache-2.0
"""What `test_turns.py` runs: sessions of one process on several threads, and forwards that err."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.errors import SessionError
from warmup_plugin.identity import Identity
from warmup_plugin.kernel_warmup import session
from warmup_plugin.settings import Settings

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.tuner import child, toys


def call(op: str) -> Any:
    return toys.call(op, [toys.Toy(op)], toys.STATIC, toys.rows(16), toys.WEIGHT)


def warm(engine: Engine, op: str, before: Callable[[], object] = lambda: None, **more: Any) -> Any:
    """Warm up a model of one op; ``before`` runs in its forward. Return report or error."""

    def forward() -> None:
        before()
        call(op)

    try:
        return child.warm_unchecked(
            engine, forward, identity=Identity.of(model=op, dtype="f32"), **more
        )
    except SessionError as error:
        return f"{type(error).__name__}: {error}"


def on_thread(name: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin work on a thread; the result waits for it."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), name=name, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(timeout=40)
        return found[0] if found else "has not ended"

    return result


def at_once(engine: Engine) -> Any:
    """Two models on two threads; the second comes while the first is in its forward."""
    began = threading.Event()
    second: list[Callable[[], Any]] = []

    def meanwhile() -> None:
        second.append(on_thread("second", lambda: warm(engine, "two", before=began.set)))
        assert not began.wait(timeout=0.5), "the second forward runs inside the first"

    one = on_thread("first", lambda: warm(engine, "one", before=meanwhile))()
    two = second[0]()
    return one, two, [call("one"), call("two")], child.left_behind()


def too_long(engine: Engine) -> Any:
    """The first does not end within what the second waits."""
    settings = Settings.from_env(margin=0.0, replica_wait_s=0.3)
    found: list[Any] = []

    def meanwhile() -> None:
        found.append(on_thread("second", lambda: warm(engine, "two", settings=settings))())

    return warm(engine, "one", before=meanwhile), found[0], warm(engine, "two")


def within_another(engine: Engine) -> Any:
    """On the same thread, in a forward and in the body of a session."""
    found: list[Any] = []
    one = warm(engine, "one", before=lambda: found.append(warm(engine, "two")))
    with session(**child.arguments(engine)) as outcome:
        call("three")
        found.append(warm(engine, "two"))
    return one, outcome.report, found


def of_two_ranks(engine: Engine) -> Any:
    """In both processes a second job of both ranks comes while the first is in its forward."""
    group = dist.new_group(backend="gloo")
    found: list[Any] = []

    def meanwhile() -> None:
        found.append(on_thread("second", lambda: warm(engine, "two", group=group))())

    return warm(engine, "one", before=meanwhile), found[0], warm(engine, "two", group=group)


def in_a_child(engine: Engine) -> Any:
    """A process that is forked while a session is open has none open itself."""
    status: list[int] = []

    def meanwhile() -> None:
        pid = os.fork()
        if not pid:
            from warmup_plugin.steps.turn import _turn

            os._exit(0 if _turn.holder is None else 7)
        status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    return warm(engine, "one", before=meanwhile), status


def nothing(engine: Engine) -> Any:
    """A forward that calls nothing tunable; with two ranks, also one on rank 0 alone.

    Then that of another identity, which finds the table of the one before beside its own.
    """

    async def wrong() -> None:
        call("one")

    def forward() -> None:
        wrong().close()

    empty = child.warm(engine, forward)
    one_sided = child.warm(engine, lambda: call("one") if engine.ranks.rank == 0 else None)
    other = Identity.of(model="others", dtype="float32")
    return empty, one_sided, child.warm(engine, forward, identity=other)


def stuck(engine: Engine, rank: int) -> Any:
    """A collective that one rank enters alone."""
    settings = Settings.from_env(margin=0.0, task_limit_s=2.0, grace_s=1.0, silence_s=4.0)

    def forward() -> None:
        call("one")
        if engine.ranks.rank == rank:
            dist.all_reduce(torch.ones(1))

    return child.warm_unchecked(engine, forward, settings=settings)
