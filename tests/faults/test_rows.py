# SPDX-License-Identifier: Apache-2.0
"""The rows of the fault table, each on two and on four ranks; `docs/faults.md` is made of them.

A row is one thing gone wrong on one rank or one node. Whatever it is, a start ends within a bound,
all ranks agree on what they serve or all end and name the one at fault, the reason is logged, and
the next start is sound. Rows whose test is elsewhere are here for the page: run this file
as a script to print it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

FAULTS_PAGE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
MARKER = "<!-- From here on made by tests/faults/test_rows.py -->"

SILENCE_S = 1.5
BLOCKLIST = "FLASHINFER_TACTICS_BLOCKLIST"
#: What a start of these engines may take on a busy machine.
START_S = 12.0
LAYOUTS: dict[str, dict[str, int]] = {
    "TP2": {"tp": 2},
    "TP2xPP2": {"tp": 2, "pp": 2},
    "TP4": {"tp": 4},
}

Fault = Mapping[str, Any]
#: Faults by the number of ranks: the last rank is the one that differs from rank 0.
Faults = Callable[[int], Sequence[Fault]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. ``seconds``: how long the slowest rank took on two cores, as last measured.

    ``before`` changes the tables of a first, sound start. ``env`` is for all ranks, ``lasting``
    faults for the start after, too. Without ``check`` the test is the one named, elsewhere.
    """

    number: str
    injected: str
    happens: str
    seconds: float
    test: str = "test_rows.py::test_row"
    check: Callable[[Seen], None] | None = None
    faults: Faults = lambda _size: ()
    before: Callable[[Job], None] | None = None
    two_nodes: bool = False
    lasting: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    bound_s: float = START_S
    config: Mapping[str, int] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a row's job came to: at the start with the fault, and at the one after it."""

    job: Job
    start: Start
    again: Start
    known: int
    lasts: bool

    def agree_and_stay_warm(self, *, tuned: int | None = None) -> None:
        """All ranks serve one table, now and at the next start, which times nothing."""
        self.start.assert_agreed()
        if tuned is not None:
            assert self.start.tasks_tuned() == tuned
        self.again.assert_warm()

    def rank_by_rank(self, reason: str, agreement: str) -> None:
        """All ranks say why they cannot share, and write nothing."""
        assert {report.agreement for report in self.start.reports} == {agreement}
        assert all(reason in report.reason for report in self.start.reports)
        assert reason in self.start.warnings
        self.again.assert_agreed()
        assert (
            self.again.tasks_tuned() == self.again[0].task_count("tuned")
            or len(self.again.ranks) > 2
        )


def on(do: str, rank: int, **more: Any) -> Fault:
    return {"do": do, "on": (rank,), **more}


def last(do: str, **more: Any) -> Faults:
    """Return a fault of the last rank."""
    return lambda size: (on(do, size - 1, **more),)


def first(do: str, **more: Any) -> Faults:
    """Return a fault of rank 0."""
    return lambda _size: (on(do, 0, **more),)


def stamps(name: str, common: str, of_last: str) -> Faults:
    """Return another value of one field of FlashInfer's stamp on the last rank."""
    return lambda size: (
        {"do": "stamp", "on": tuple(range(size - 1)), name: common},
        {"do": "stamp", "on": (size - 1,), name: of_last},
    )


# -- tables that differ ----------------------------------------------------------------------------


def lose_second_node(job: Job) -> None:
    job.lose(1)


def halves(job: Job) -> None:
    """Leave the one half of the tasks on the first node and the other half on the second."""
    for node in (0, 1):
        job.keep(node, lambda task, _record, node=node: int(task, 16) % 2 == node)  # type: ignore[misc]


def half_of_the_buckets(job: Job) -> None:
    job.keep(0, lambda task, _record: int(task, 16) % 2 == 0)


def one_op_each(job: Job) -> None:
    for node, op in enumerate(("embedded::moe_gemm1", "embedded::moe_gemm2")):
        job.keep(node, lambda _task, record, op=op: record.op == op)  # type: ignore[misc]


# -- what must come of it --------------------------------------------------------------------------


def warm_at_once(seen: Seen) -> None:
    seen.start.assert_warm()
    seen.again.assert_warm()
    assert seen.job.entries(0) == seen.job.entries(1)


def tunes_what_nobody_has(seen: Seen) -> None:
    job_tasks = len({key for node in set(seen.job.nodes) for key in seen.job.entries(node)})
    assert 0 < seen.start.tasks_tuned() == job_tasks - seen.known
    seen.agree_and_stay_warm()


def agrees(seen: Seen) -> None:
    seen.agree_and_stay_warm()


def tunes_twins_once(seen: Seen) -> None:
    seen.agree_and_stay_warm()
    tuned = [report.ops["embedded::expert_gemm"].get("tuned", 0) for report in seen.start.reports]
    twins = {key for key in seen.job.entries() if "expert_gemm" in key}
    assert len(twins) == 2 * sum(tuned) > 0, "each twin's key holds the winner of the one"


def skips_on_all(seen: Seen) -> None:
    seen.agree_and_stay_warm()
    assert "another rank's skip list" in seen.start.warnings
    for rank in seen.start.ranks:
        served = [answer for call, answer in rank.served.items() if "moe_gemm1" in call]
        assert {tactic for _, tactic in served} <= {-1}


def uses_rank_0_s_mode(seen: Seen) -> None:
    seen.agree_and_stay_warm()
    assert "mode=read-only, rank 0's on is used" in seen.start.warnings


def each_its_own(reason: str) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        seen.rank_by_rank(reason, "none")

    return check


def defaults(reason: str) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        seen.rank_by_rank(reason, "defaults")
        assert all(tactic == -1 for rank in seen.start.ranks for _, tactic in rank.served.values())

    return check


def another_wins(seen: Seen) -> None:
    seen.agree_and_stay_warm()
    answers = {a for rank in seen.start.ranks for c, a in rank.served.items() if "::gemm" in c}
    assert ("BlockedGemmRunner", 0) not in answers
    assert all(tactic != -1 for _, tactic in answers)


def default_on_all(op: str, reason: str) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        seen.agree_and_stay_warm()
        calls = [(c, a) for rank in seen.start.ranks for c, a in rank.served.items()]
        assert any(op in call and tactic == -1 for call, (_, tactic) in calls)
        assert reason in seen.start.warnings

    return check


def named_and_tuned_again(rank: int) -> Callable[[Seen], None]:
    """The others end and name the rank (counted from the last if negative)."""

    def check(seen: Seen) -> None:
        lost = rank % len(seen.start.ranks)
        for other in seen.start.ranks:
            if other.rank != lost:
                assert other.error is not None, seen.start.told()
                assert other.error[::2] == ("RankLostError", lost), seen.start.told()
        seen.again.assert_agreed()

    return check


ROWS = (
    Row(
        number="F1",
        injected="one node has the table, the other node's directory is empty",
        happens="nobody times; the other node gets the table",
        seconds=0.0, two_nodes=True, before=lose_second_node, check=warm_at_once,
    ),
    Row(
        number="F2",
        injected="file keys that hold the rank (expert parallel)",
        happens="twins: tuned by one rank, stored under each rank's key",
        seconds=0.0, config={"ep": 2}, check=tunes_twins_once,
    ),
    Row(
        number="F3",
        injected="two nodes with tables of other keys",
        happens="the union serves; nobody times",
        seconds=0.0, two_nodes=True, before=halves, check=warm_at_once,
    ),
    Row(
        number="F4",
        injected="a table with half of the buckets",
        happens="only the other half is timed",
        seconds=0.0, before=half_of_the_buckets, check=tunes_what_nobody_has,
    ),
    Row(
        number="F5",
        injected="winners in the tuner's memory on one rank, from an earlier pass",
        happens="the agreed table takes their place",
        seconds=0.0, faults=last("tuned_before"), lasting=True, check=agrees,
    ),
    Row(
        number="F6",
        injected="one node has op A, the other op B, as many tactics each",
        happens="the union serves; only what nobody holds is timed",
        seconds=0.0, two_nodes=True, before=one_op_each, check=tunes_what_nobody_has,
    ),
    Row(
        number="F7",
        injected="a skip list on one rank",
        happens="the op serves its default on all ranks",
        seconds=0.0, faults=last("context", skip_ops=["embedded::moe_gemm1"]), lasting=True,
        check=skips_on_all,
    ),
    Row(
        number="F7",
        injected="another mode in one rank's environment",
        happens="rank 0's is used, with a warning",
        seconds=0.0, faults=last("environ", WARMUP_PLUGIN_MODE="read-only"), lasting=True,
        check=uses_rank_0_s_mode,
    ),
    Row(
        number="F8",
        injected="a tactics blocklist on one rank",
        happens="ranks have other candidates: each tunes for itself, nothing is written",
        seconds=0.0, faults=last("blocklist"),
        check=each_its_own(BLOCKLIST),
    ),
    Row(
        number="F8",
        injected="the same where ranks must agree",
        happens="defaults on all ranks",
        seconds=0.0, faults=last("blocklist"),
        env={"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, check=defaults(BLOCKLIST),
    ),
    Row(
        number="F9",
        injected="other buckets on one rank",
        happens="the union is tuned, each task once",
        seconds=0.0, faults=last("context", tuning_buckets=[3, 5]), lasting=True, check=agrees,
    ),
    Row(
        number="F9",
        injected="a data-parallel rank without a token",
        happens="it has nothing to tune and agrees",
        seconds=0.0, faults=last("idle"), lasting=True, config={"tp": 1, "pp": 1, "dp": 2},
        check=agrees,
    ),
    Row(
        number="F10",
        injected="pipeline stages with other ops",
        happens="each task is tuned by a rank that has it",
        seconds=0.0, config={"tp": 1, "pp": 2}, check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that comes late",
        happens="the others wait, as long as their group does",
        seconds=0.0, faults=last("sleep", at="before", seconds=2 * SILENCE_S), check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that takes longer in a step than the group's time-out",
        happens="it beats, so the others wait: no collective is pending",
        seconds=0.0, faults=last("sleep", at="agree", seconds=5.0),
        job={"group_timeout_s": 4.0}, check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that is silent, since a compile holds the interpreter",
        happens="its process runs, so the others wait",
        seconds=0.0, faults=first("hold_the_interpreter", at="plan", seconds=2 * SILENCE_S),
        check=agrees,
    ),
    Row(
        number="F12",
        injected="SIGKILL of one rank in the middle of tuning, and at each step's begin",
        happens="the others name it and end; the next start is warm or tunes",
        seconds=0.0, test="test_killed.py::test_the_others_name_it_and_the_next_start_is_sound",
    ),
    Row(
        number="F13",
        injected="a tactic that raises on the rank that tunes",
        happens="another tactic wins",
        seconds=0.0, faults=lambda _size: (on("fail_tactic", 0), on("fail_tactic", 2)), lasting=True,
        check=another_wins,
    ),
    Row(
        number="F13",
        injected="a winner that raises on a rank that did not tune it",
        happens="dropped: its task serves the default on all ranks",
        seconds=0.0, faults=last("fail_tactic", op="embedded::lm_head"),
        check=default_on_all("lm_head", "RuntimeError: injected"),
    ),
    Row(
        number="F14",
        injected="a tactic that never returns",
        happens="the others name the rank and task; its process ends itself (status 79)",
        seconds=0.0, faults=first("hang", at="profile:60", seconds=25.0),
        env={"WARMUP_PLUGIN_TASK_LIMIT_S": "2"}, check=named_and_tuned_again(0),
    ),
    Row(
        number="F15",
        injected="no memory for the inputs of a measurement",
        happens="the task serves the default on all ranks",
        seconds=0.0, faults=first("fail_synthesis", error="MemoryError"),
        check=default_on_all("::gemm", ""),
    ),
    Row(
        number="F15",
        injected="no memory in a tactic on the rank that tunes",
        happens="the task serves the default on all ranks",
        seconds=0.0, faults=first("fail_tactic", error="OutOfMemoryError"),
        check=default_on_all("::gemm", ""),
    ),
    Row(
        number="F15",
        injected="no memory on a rank that did not tune",
        happens="dropped: the tasks serve the default on all ranks",
        seconds=0.0, faults=last("fail_synthesis", error="OutOfMemoryError"),
        check=default_on_all("lm_head", "OutOfMemoryError: injected"),
    ),
    Row(
        number="F16",
        injected="KeyboardInterrupt or SIGTERM while a tactic is measured",
        happens="what is tuned is kept, the others name the rank; the next start times the rest",
        seconds=0.0, test="test_sigterm.py::test_results_are_kept",
    ),
    Row(
        number="F21",
        injected="a field of FlashInfer's stamp that one rank does not know",
        happens="no difference: all share",
        seconds=0.0, faults=stamps("cudnn_version", "91002", "unknown"), lasting=True, check=agrees,
    ),
    Row(
        number="F22",
        injected="another cuBLAS on one rank",
        happens="each tunes for itself, nothing is written",
        seconds=0.0, faults=stamps("cublas_version", "13.1.0", "13.2.0"),
        check=each_its_own("stamp.cublas_version"),
    ),
    Row(
        number="F22",
        injected="the same where ranks must agree",
        happens="defaults on all ranks",
        seconds=0.0, faults=stamps("cublas_version", "13.1.0", "13.2.0"),
        env={"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, check=defaults("stamp.cublas_version"),
    ),
    Row(
        number="F24",
        injected="two engines that start together on one directory",
        happens="one tunes, the other waits and adopts",
        seconds=0.0, test="test_replicas.py::test_one_tunes_the_other_adopts",
    ),
    Row(
        number="F35",
        injected="a host without a local rank 0",
        happens="its first rank writes",
        seconds=0.0, two_nodes=True, job={"local_ranks": (0, 1, 2, 3)}, check=agrees,
    ),
)  # fmt: skip
