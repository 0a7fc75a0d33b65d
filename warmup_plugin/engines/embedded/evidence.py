# SPDX-License-Identifier: Apache-2.0
"""What one rank's start did, seen from outside the steps that did it: the design's evidence.

Owns the look at FlashInfer's tuning contexts and timed tactics, at the bodies that cross between
ranks and at the tables that this process moves into place. Nothing is replaced: calls are told by
`count_calls.py`, files by Python's audit hook, which stays as long as the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from warmup_plugin.coordination.blobs import Bodies
from warmup_plugin.engines.embedded.config import RankResult
from warmup_plugin.engines.embedded.count_calls import telling_calls, tuning_functions

if TYPE_CHECKING:
    from warmup_plugin.engines.embedded.worker import Engine

_TABLE = re.compile(r"rank_tp\d+_pp\d+_dp\d+\.json")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was seen of one rank, the ``local_rank``-th of its node.

    ``contexts``: tactics timed after the forward, for each tuning context in which some were.
    ``nested``: tuning contexts opened while another was open. ``put``, ``got``: sha256 of bodies
    handed out and asked for. ``wrote``: tables moved into place. ``last_tactic``, ``left``: when
    the last tactic began after the forward (0.0: none did) and when the warm-up returned, on the
    monotonic clock that all processes of a machine have in common.
    """

    local_rank: int = 0
    contexts: tuple[int, ...] = ()
    nested: int = 0
    put: frozenset[str] = frozenset()
    got: frozenset[str] = frozenset()
    wrote: tuple[str, ...] = ()
    last_tactic: float = 0.0
    left: float = 0.0

    @property
    def tactics(self) -> int:
        """Return how many tactics this rank has timed after the forward."""
        return sum(self.contexts)


class _Watch:
    """Takes notes of one warm-up."""

    def __init__(self, forward: Any) -> None:
        from warmup_plugin.tuner import compat

        self._open_contexts: Callable[[], int] = partial(compat.open_contexts, compat.tuner())
        self._forward = forward.__code__
        self.contexts: list[int] = []
        self.nested = 0
        self.put: set[str] = set()
        self.got: set[str] = set()
        self.wrote: list[str] = []
        self.last_tactic = 0.0

    def told(self, name: str, frame: FrameType) -> None:
        """Note an entry of one of the functions."""
        if name == "autotune":
            if frame.f_locals["tune_mode"]:
                self.nested += self._open_contexts() > 0
                self.contexts.append(0)
        elif name == "put":
            self.put.add(hashlib.sha256(frame.f_locals["body"]).hexdigest())
        elif name == "got":
            self.got.add(frame.f_locals["sha256"])
        elif not self._is_in_forward(frame):
            self.contexts[-1] += 1
            self.last_tactic = time.monotonic()

    def _is_in_forward(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code is self._forward:
                return True
            frame = frame.f_back
        return False

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note a table that is moved into place."""
        if event == "os.rename":
            name = os.path.basename(os.fsdecode(arguments[1]))  # noqa: PTH119  # bytes, too
            if _TABLE.fullmatch(name):
                self.wrote.append(name)


def warm_up_watched(engine: Engine) -> RankResult:
    """Warm up as `worker.warm_up_quietly` does; the result has the evidence."""
    import flashinfer.autotuner

    from warmup_plugin.engines.embedded.worker import warm_up_quietly

    watch = _Watch(type(engine).forward)
    sys.addaudithook(watch.on_event)
    functions = {
        "autotune": flashinfer.autotuner.autotune,
        "tactic": tuning_functions()["profile_single_kernel"],
        "put": Bodies.put,
        "got": Bodies.get,
    }
    with telling_calls(watch.told, **functions):
        result = warm_up_quietly(engine)
        left = time.monotonic()
    evidence = Evidence(
        local_rank=engine.ranks.local_rank,
        contexts=tuple(number for number in watch.contexts if number), nested=watch.nested,
        put=frozenset(watch.put), got=frozenset(watch.got), wrote=tuple(watch.wrote),
        last_tactic=watch.last_tactic, left=left,
    )  # fmt: skip
    return replace(result, evidence=evidence)
