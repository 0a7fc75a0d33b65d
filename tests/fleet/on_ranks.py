# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.logs import logged
from warmup_plugin import begin_early, kernel_warmup
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank
from warmup_plugin.steps import tune

#: Longer than any publication of these tests takes.
_PUBLISHED_S = 60.0


def serving(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Warm up, then live until what this rank publishes is published."""
    with logged(logging.INFO) as lines:
        began = time.monotonic()
        result = warm_up_rank(engine)
        seconds = time.monotonic() - began
        modules = sorted(name for name in sys.modules if "fleet" in name or "obstore" in name)
        outcomes = []
        if "warmup_plugin.fleet.client" in sys.modules:
            from warmup_plugin.fleet.client import publications

            for each in publications:
                each.join(_PUBLISHED_S)
                outcomes.append(each.outcome)
    return result, {"outcomes": outcomes, "modules": modules, "lines": lines, "seconds": seconds}


def begun_early(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Begin as an engine does that loads its model, and count this rank's processes."""
    from warmup_plugin.fleet import client

    own = client.start
    begun: list[Any] = []

    def start(*arguments: Any, **options: Any) -> Any:
        begun.append(own(*arguments, **options))
        return begun[-1]

    vars(client)["start"] = start
    begin_early(engine.ranks.rank)
    before = len(begun)
    result, seen = serving(engine)
    return result, {**seen, "begun": [before, len(begun)]}


def announcing(engine: Engine, *, is_early: bool) -> tuple[Any, dict[str, Any]]:
    """Warm up, in time for the loading where ``is_early``; say which identities were announced."""
    from warmup_plugin.fleet import client

    announced = list[str]()

    class Announcing(client.Worker):
        """Tells the process what the other one does, and this test."""

        def announce(self, request: dict[str, Any]) -> None:
            announced.extend(request.get("whose", ())[2:])
            super().announce(request)

    vars(client)["Worker"] = Announcing
    if is_early:
        begin_early(engine.ranks.rank, identity=engine.identity(), cache_root=engine.root)
    result, seen = serving(engine)
    return result, {**seen, "announced": announced}


def ending(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Warm up and end at once, as an engine that dies after its warm-up."""
    return warm_up_rank(engine), {}


def by_environment(_rank: int) -> Callable[[str, str, int, Any], float]:
    """A clock of this host: what the default takes stands in the environment."""

    def milliseconds(_op: str, _runner: str, _batch: int, tactic: Any) -> float:
        if tactic != -1:
            return 1.0 + 0.1 * int(tactic[-1] if isinstance(tactic, tuple) else tactic)
        if os.environ["DEFAULT_MS"] == "raises":
            raise RuntimeError("no default")
        return float(os.environ["DEFAULT_MS"])

    return milliseconds


def impatient(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """Warm up with no time left for a check."""
    from warmup_plugin.steps import spot_check  # a start without a fleet has none of it

    spot_check._LONGEST_S = -1.0  # type: ignore[misc]  # a constant
    return serving(engine)


def dying(engine: Engine, at: str, rank: int = 0) -> tuple[Any, dict[str, Any]]:
    """Warm up; one rank dies on the way, where ``at`` says."""
    forward = engine.forward

    def strike(*_arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def failing(*_arguments: Any) -> Any:
        forward()
        raise RuntimeError("an illegal memory access was encountered")

    def leaving(*_arguments: Any) -> Any:
        raise SystemExit(0)

    if engine.ranks.rank != rank:
        return serving(engine)
    if at == "before the winners are used":
        vars(kernel_warmup)["agree"] = strike
    elif at == "while it tunes what is left":
        vars(tune)["tune"] = strike
    else:
        ways = {"in the forward": strike, "by an error of the forward": failing,
                "by a shutdown": leaving}  # fmt: skip
        engine.forward = ways[at]  # type: ignore[method-assign,assignment]  # of this rank
    return serving(engine)
