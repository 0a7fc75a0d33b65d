# SPDX-License-Identifier: Apache-2.0
"""A rank that is lost for good, killed or stopped, while an engine's ranks warm up.

Owns the grid of cases and what must come of each: every rank that lives ends within a silence, the
grace period and five seconds, it names rank and host, and the next start is sound. A rank that has
raised stays where it is, as an engine's may that has answered a call with a failure, so that what
ends it is ours. Which of them run by default, and what a start of the engine is, is the engines'.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: A silence is longer than the slack, which could hide a second one otherwise. A machine that is
#: shared with others, as CI's, may stand still for longer than what is asserted elsewhere.
GRACE_S = 1.0
SILENCE_S, SLACK_S = (12.0, 10.0) if os.environ.get("CI") else (7.0, 5.0)
#: How long a start may take, with the loss of the rank, on a busy machine too.
BEFORE_S = 120.0
#: The documented status of a process that ends itself.
ABANDONED = 79

#: The nine steps, and the engine's meeting before them: as a rank comes to it, and once it has
#: handed in its word.
STEPS = ("read", "agree", "survey", "plan", "tune", "share", "prepare", "publish", "certify")
MEETING = ("ready", "ready_said")
_STEP_FUNCTIONS = Path(__file__).parents[1] / "faults" / "step_functions.py"
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Case:
    """One rank, lost at one point. ``shape``: the engine's ranks."""

    how: str
    point: str
    rank: int
    tp: int
    pp: int = 1

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"{self.how} of rank {self.rank} in {self.point}, tp {self.tp} pp {self.pp}"


def grid(sample: Iterable[Case]) -> list[Any]:
    """Return the parameters of all cases; those of the sample run by default, the rest as soak."""
    chosen = set(sample)
    cases = [
        Case(how, point, rank, tp, pp)
        for tp, pp, ranks in ((2, 1, (0, 1)), (4, 1, (0, 2)), (2, 2, (0, 3)))
        for point in (*MEETING, *STEPS)
        for rank in ranks
        for how in _SIGNALS
    ]
    assert chosen <= set(cases), chosen - set(cases)
    return [
        pytest.param(case, id=str(case), marks=() if case in chosen else pytest.mark.soak)
        for case in cases
    ]


def plant(faults: Iterable[str], root: Path) -> None:
    """Lose this process at a point, ``how_at:point``, and leave a mark that says when."""
    for fault in faults:
        how, _, point = fault.partition("_at:")
        if point:
            _plant(how, point, root)


def _plant(how: str, point: str, root: Path) -> None:
    from warmup_plugin.engines.embedded.config import resolve
    from warmup_plugin.engines.readiness import Readiness

    if point in MEETING:
        owners = [(Readiness, "meet" if point == "ready" else "_decided")]
    else:
        owners = resolve(f"{_STEP_FUNCTIONS}:functions_of")(point)
    for owner, name in owners:
        own = getattr(owner, name)
        instead = _lacking if how == "lack" else _lost_before(own, _SIGNALS[how], root)
        setattr(owner, name, instead)


def _lacking(*_args: Any, **_options: Any) -> Any:
    raise MemoryError("planted")


def _lost_before(own: Callable[..., Any], number: int, root: Path) -> Callable[..., Any]:
    mark = root / "struck"

    def lost(*args: Any, **options: Any) -> Any:
        if not mark.exists():
            mark.write_text(str(time.monotonic()))
            os.kill(os.getpid(), number)
        return own(*args, **options)

    return lost


def check_that_all_do_without(job: Any, point: str) -> None:
    """One rank lacks memory at a point: every rank warms up as without this package, and serves."""
    start = job.start(fault=f"lack_at:{point}@1", limit_s=BEFORE_S)

    for rank in start.ranks:
        assert rank["report"] is None
        assert rank["timed"] > 0, "the engine has tuned by itself"
        (said,) = [line for line in rank["lines"] if "as without this package" in line]
        assert "MemoryError: planted" in said
    assert not start.disputed
    again = job.start(limit_s=BEFORE_S)
    assert len(again.certificate) == 64


def check(
    case: Case,
    job: Any,
    *,
    concerned: Iterable[int] | None = None,
    named: str = "",
    per_rank: Callable[[int], dict[str, Any]] = lambda _rank: {},
) -> None:
    """Start with a rank lost, and once more.

    ``concerned``: the ranks that share its session; ``named``: what they call it; ``per_rank``:
    what a rank has of its own.
    """
    named = named or f"rank {case.rank}"
    live = set(range(case.size) if concerned is None else concerned) - {case.rank}
    others = set(range(case.size)) - live  # nobody waits for them
    env = {"WARMUP_PLUGIN_GRACE_S": str(GRACE_S), "WARMUP_PLUGIN_SILENCE_S": str(SILENCE_S)}
    logs = {rank: job.root.parent / f"log of rank {rank}" for rank in range(case.size)}

    start = job.start(
        env=env, may_fail=True, lost=others, fault=f"{case.how}_at:{case.point}+linger"
        f"@{case.rank}", limit_s=BEFORE_S,
        per_rank=lambda rank: {**per_rank(rank), "env": {"RANK_LOG": str(logs[rank])}},
    )  # fmt: skip

    marks = list(job.root.parent.rglob("struck"))
    assert marks, f"nobody was lost: {start}"
    struck = float(marks[0].read_text())
    # Before the ranks have met the others know no more of rank 0 than where its store is.
    hosts = [f"(host {socket.gethostname()})", "(host 127.0.0.1)"]
    for rank in live:
        said = start.errors.get(rank, "") + logs[rank].read_text()
        assert rank in start.ended, f"rank {rank} lives on: {said}"
        assert start.ended[rank][0] == ABANDONED, (rank, start.ended[rank], said)
        took = start.ended[rank][1] - struck
        assert took < SILENCE_S + GRACE_S + SLACK_S, f"rank {rank} took {took:.1f} s: {said}"
        lines = [line for line in said.splitlines() if named in line]
        assert any(host in line for line in lines for host in hosts), said
        assert "as without this package" not in said

    again = job.start(limit_s=BEFORE_S)
    assert len(again.certificate) == 64
