# SPDX-License-Identifier: Apache-2.0
"""The rows of the fault table, each on two and on four ranks; `docs/faults.md` is made of them.

A row is one thing gone wrong on one rank or one node. Whatever it is, a start ends within a bound,
all ranks agree on what they serve or all end and name the one at fault, the reason is logged, and
the next start is sound. Rows whose test is elsewhere are here for the page, which this file writes
when it is run as a script.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.coordination.versions import BUILD

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Ran

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

PAGE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
MARKER = "<!-- From here on: python tests/faults/test_rows.py -->"

SILENCE_S = 1.5
#: What any start may take on a machine that is busy with nine others.
BOUND_S = 30.0
BLOCKLIST = "FLASHINFER_TACTICS_BLOCKLIST"

Layout = Mapping[str, int]
LAYOUTS: dict[str, Layout] = {
    "TP2": {"tp": 2},
    "TP2xPP2": {"tp": 2, "pp": 2},
    "TP4": {"tp": 4},
}

Fault = Mapping[str, Any]
#: Faults by the number of ranks: the last rank is the one that differs from rank 0.
Faults = Callable[[int], Sequence[Fault]]
Check = Callable[["Ran"], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    ``before`` changes the tables of a first, sound start; ``env`` is for all ranks; ``lasting``
    faults are there at the start after, too. A row without ``check`` has its test elsewhere.
    """

    number: str
    injected: str
    happens: str
    test: str = "test_rows.py::test_row"
    check: Check | None = None
    faults: Faults = lambda _size: ()
    before: Callable[[Job], None] | None = None
    two_nodes: bool = False
    lasting: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    shape: Callable[[Layout], Layout] = lambda layout: layout
    job: Mapping[str, Any] = field(default_factory=dict)

    def case(self, size: int) -> dict[str, Any]:
        """Return what `conftest.run_cases` takes."""
        found = {
            "faults": self.faults(size),
            "two_nodes": self.two_nodes,
            "lasting": self.lasting,
            "env": self.env,
            **self.job,
        }
        return found if self.before is None else {**found, "before": self.before}


def ranks_of(layout: Layout) -> int:
    return layout.get("tp", 1) * layout.get("pp", 1) * layout.get("dp", 1)


def with_experts(layout: Layout) -> Layout:
    return {**layout, "ep": 2}


def two_replicas(layout: Layout) -> Layout:
    return {"tp": ranks_of(layout) // 2, "dp": 2}


def one_stage(layout: Layout) -> Layout:
    """Without this package FlashInfer hangs where stages with other ops are one tuning group."""
    return {"tp": ranks_of(layout)}


def two_stages(layout: Layout) -> Layout:
    return {"tp": ranks_of(layout) // 2, "pp": 2}


def on(do: str, rank: int, **more: Any) -> Fault:
    return {"do": do, "on": (rank,), **more}


def last(do: str, **more: Any) -> Faults:
    """Return a fault of the last rank."""
    return lambda size: (on(do, size - 1, **more),)


def first(do: str, **more: Any) -> Faults:
    """Return a fault of rank 0."""
    return lambda _size: (on(do, 0, **more),)


def second_replica(do: str) -> Faults:
    """Return a fault of the second half of the ranks."""
    return lambda size: ({"do": do, "on": tuple(range(size // 2, size))},)


def stamps(name: str, common: str, of_last: str) -> Faults:
    """Return another value of one field of FlashInfer's stamp on the last rank."""
    return lambda size: (
        {"do": "stamp", "on": tuple(range(size - 1)), name: common},
        {"do": "stamp", "on": (size - 1,), name: of_last},
    )


def refused_blocklist(size: int) -> Sequence[Fault]:
    """Return one blocklist for all ranks, of an environment that the last rank cannot confirm."""
    everyone = {"do": "blocklist", "on": tuple(range(size)), "cudnn_version": "91002"}
    return (*stamps("cudnn_version", "91002", "unknown")(size), everyone)


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


# -- tables that are damaged, of elsewhere, or edited ----------------------------------------------


def nothing(_job: Job) -> None:
    """Have a sound start go before."""


def overwrite(content: str, *nodes: int) -> Callable[[Job], None]:
    """Put this in place of each table of these nodes."""

    def change(job: Job) -> None:
        for node in nodes or (0,):
            for path in job.tables(node):
                path.write_text(content)

    return change


def truncate(job: Job) -> None:
    for path in job.tables():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(change: Callable[[dict[str, Any]], object], *, vouch: bool = False) -> Callable[..., None]:
    return lambda job: job.edit(0, change, vouch=vouch)


def null_entry(document: dict[str, Any]) -> None:
    document[next(key for key in document if not key.startswith("_"))] = None


def stamped(**fields: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["_metadata"].update(fields)


def without_stamp(document: dict[str, Any]) -> None:
    del document["_metadata"]


def tactic_99(document: dict[str, Any]) -> None:
    for key, entry in document.items():
        if key.startswith("('embedded::gemm'"):
            entry[1] = 99


def climbing_key(document: dict[str, Any]) -> None:
    document["('../../../../climbed', 'R', ((1, 1),), ())"] = ["/etc/passwd", 0]


def climbing_identity(job: Job) -> None:
    for path in job.directory().glob("*.manifest.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "identity": "../../climbed"}))


def link_out(job: Job) -> None:
    """Put a link to another user's good table in place of ours."""
    for path in job.tables():
        outside = job.root / "outside.json"
        path.rename(outside)
        path.symlink_to(outside)


def link_folders_out(job: Job) -> None:
    """Put links in place of the folders that are written to."""
    for name in ("reports", "journal", "foreign"):
        outside, folder = job.root / "outside" / name, job.directory() / name
        outside.mkdir(parents=True)
        (outside / "mine.json").write_text("mine")
        shutil.rmtree(folder, ignore_errors=True)
        folder.symlink_to(outside)
    overwrite("[]")(job)


def copy_by_hand(job: Job) -> None:
    """Carry the tables to another node, into a directory that is not there yet."""
    shutil.rmtree(job.roots[1])
    shutil.move(job.roots[0], job.roots[1])


def make_read_only(job: Job) -> None:
    for path in (job.roots[0], *job.roots[0].rglob("*")):
        if path.is_dir():
            path.chmod(0o555)


def closed(job: Job) -> None:
    shutil.rmtree(job.roots[0])
    job.roots[0].mkdir(mode=0)


def empty_and_read_only(job: Job) -> None:
    shutil.rmtree(job.roots[0])
    job.roots[0].mkdir(mode=0o555)


# -- what must come of it --------------------------------------------------------------------------


def warm_at_once(seen: Ran) -> None:
    """Nobody times, now or later; each node has the whole table."""
    agrees(seen)
    assert [rank.timed for rank in seen.start.ranks] == [0] * len(seen.start.ranks)
    assert seen.job.entries(0) == seen.job.entries(1)


def tunes_what_nobody_has(seen: Ran) -> None:
    """Each task that no node had is timed by one rank."""
    agrees(seen)
    assert 0 < seen.start.tasks_tuned() == len(seen.job.tasks() - seen.known)


def agrees(seen: Ran) -> None:
    """All ranks serve one table, now and at the next start, which times nothing."""
    seen.start.assert_agreed()
    seen.again.assert_warm()


def tunes_twins_once(seen: Ran) -> None:
    """A task is tuned by one rank and stored under each rank's key."""
    agrees(seen)
    counts = [report.ops.get("embedded::expert_gemm", {}) for report in seen.start.reports]
    twins = {key for key in seen.job.entries() if "expert_gemm" in key}
    assert len(twins) == 2 * sum(count.get("tuned", 0) for count in counts) > 0


def skips_on_all(seen: Ran) -> None:
    """The op that one rank skips serves its default everywhere."""
    agrees(seen)
    assert "one rank's skip list" in seen.start.warnings
    answers = [a for rank in seen.start.ranks for c, a in rank.served.items() if "moe_gemm1" in c]
    assert answers
    assert {tactic for _, tactic in answers} == {-1}


def uses_rank_0_s_mode(seen: Ran) -> None:
    """A warning names the rank, the setting and both values."""
    agrees(seen)
    assert "mode=read-only, rank 0's on is used" in seen.start.warnings


def agrees_when_idle(seen: Ran) -> None:
    """The idle rank holds what the others hold, for the day on which it gets a token."""
    agrees(seen)
    *_, idle = seen.start.ranks
    assert idle.task_count("seen") == 0
    assert sorted(idle.held) == sorted(seen.start[0].held) != []


def each_its_own(reason: str) -> Check:
    """All ranks say why, serve their own winners, and write nothing; then all is in order again."""

    def check(seen: Ran) -> None:
        assert {report.agreement for report in seen.start.reports} == {"none"}
        assert all(reason in report.reason for report in seen.start.reports)
        assert reason in seen.start.warnings
        assert not [path for path in seen.after if "rank_" in path]
        assert all(rank.task_count("tuned") for rank in seen.start.ranks)
        seen.again.assert_whole()

    return check


def defaults(reason: str) -> Check:
    """All ranks say why, serve FlashInfer's defaults, and write nothing."""

    def check(seen: Ran) -> None:
        assert {report.agreement for report in seen.start.reports} == {"defaults"}
        assert all(reason in report.reason for report in seen.start.reports)
        assert all(tactic == -1 for rank in seen.start.ranks for _, tactic in rank.served.values())
        assert not [path for path in seen.after if "rank_" in path]
        seen.again.assert_whole()

    return check


def another_wins(seen: Ran) -> None:
    """The tactic that raises is not served; another one is, not the default."""
    agrees(seen)
    answers = {a for rank in seen.start.ranks for c, a in rank.served.items() if "::gemm" in c}
    assert answers
    assert not {("BlockedGemmRunner", 0), ("BlockedGemmRunner", -1)} & answers


def default_this_time(op: str, reason: str) -> Check:
    """The op serves its default everywhere and the log says why; the next start tunes it."""

    def check(seen: Ran) -> None:
        seen.start.assert_agreed()
        seen.again.assert_agreed()
        served = [
            {a[1] for rank in start.ranks for c, a in rank.served.items() if op in c}
            for start in (seen.start, seen.again)
        ]
        assert [-1 in tactics for tactics in served] == [True, False]
        assert reason in seen.start.warnings
        assert sum(rank.timed for rank in seen.again.ranks) > 0

    return check


def last_ends_itself(seen: Ran) -> None:
    """The others name rank and task, the rank ends itself."""
    *others, stuck = seen.start.ranks
    assert stuck.status == 79, seen.start.told()
    for other in others:
        other.assert_gave_up(stuck.rank)
        assert "task_limit_s" in other.outcome() or "did not return" in other.outcome()
    seen.again.assert_whole()


def ends_itself(seen: Ran) -> None:
    """The others name rank and task; the next start tunes the rest and leaves that task alone."""
    stuck, *others = seen.start.ranks
    assert stuck.status == 79, seen.start.told()
    assert any("this process ends (status 79)" in line for line in stuck.logged)
    for other in others:
        other.assert_gave_up(0)
        assert "task_limit_s" in other.outcome() or "did not return" in other.outcome()
    seen.again.assert_whole()
    assert seen.again[0].task_count("from_cache") > 0
    assert seen.again[0].task_count("default") == 1


def set_aside_and_tuned(seen: Ran) -> None:
    """The file is kept in foreign/ and named in the log; it is tuned again, once."""
    agrees(seen)
    assert "rank_tp0_pp0_dp0.json" in seen.job.set_aside()
    assert str(seen.job.tables()[0]) in seen.start.warnings
    assert seen.start.tasks_tuned() == len(seen.job.tasks())


def other_node_serves(seen: Ran) -> None:
    """The file is set aside; the other node has a good one."""
    warm_at_once(seen)
    assert "rank_tp0_pp0_dp0.json" not in seen.job.set_aside(0)
    assert [name for name in seen.job.set_aside(1) if "manifest" not in name]


def warm_and_nothing_written(seen: Ran) -> None:
    """Served as it is; one warning."""
    seen.start.assert_warm()
    seen.again.assert_warm()
    assert "not writable" in seen.start.warnings


def in_memory(reason: str) -> Check:
    """Tuned and agreed on, and not stored; the log says why."""

    def check(seen: Ran) -> None:
        seen.start.assert_whole()
        seen.again.assert_whole()
        assert reason in seen.start.warnings, seen.start.warnings
        assert not [path for path in seen.after if "/rank_" in path]

    return check


def stored_anew(seen: Ran) -> None:
    """The table is stored in a directory made again."""
    seen.start.assert_whole()
    seen.again.assert_warm()


def one_file_for_both(seen: Ran) -> None:
    """One of the nodes writes it."""
    agrees(seen)
    assert [path.name for path in seen.job.tables()] == ["rank_tp0_pp0_dp0.json"]


def op_is_tuned_again(seen: Ran) -> None:
    """What was skipped is missing, not done."""
    seen.start.assert_agreed()
    seen.again.assert_whole()
    skipped = [a for r in seen.start.ranks for c, a in r.served.items() if "moe_gemm1" in c]
    assert {tactic for _, tactic in skipped} == {-1}
    tuned = sum(
        r.report.ops.get("embedded::moe_gemm1", {}).get("tuned", 0) for r in seen.again.ranks
    )
    assert tuned == seen.again.tasks_tuned() > 0


def default_between_buckets(seen: Ran) -> None:
    """The bucket of the batch that was asked for keeps the default; the others are tuned."""
    seen.start.assert_agreed()
    seen.again.assert_agreed()
    assert "invalid split for 100 rows" in seen.start.warnings
    answers = {c: a for c, a in seen.start[0].served.items() if c.startswith("embedded::gemm ")}
    assert {a[1] for c, a in answers.items() if c.endswith("@ 64")} == {-1}
    assert -1 not in {a[1] for c, a in answers.items() if not c.endswith("@ 64")}
    assert [rank.timed for rank in seen.again.ranks] == [0] * len(seen.again.ranks)


def refused_and_tuned(seen: Ran) -> None:
    """Said and tuned on all ranks alike, at once."""
    agrees(seen)
    assert "a stored tactic is refused: embedded::gemm" in seen.start.warnings
    assert "99" in seen.start.warnings
    answers = {a for r in seen.start.ranks for c, a in r.served.items() if "::gemm" in c}
    assert answers
    assert not {tactic for _, tactic in answers} & {99, -1}
    tuned = {op for r in seen.start.ranks for op, n in r.report.ops.items() if n.get("tuned")}
    assert tuned == {"embedded::gemm"}


def refused_now_or_next_time(seen: Ran) -> None:
    """At once, unless a stage waits for one whose forward has failed."""
    if all(rank.report for rank in seen.start.ranks):
        refused_and_tuned(seen)
        return
    assert not any(rank.report for rank in seen.start.ranks), seen.start.told()
    seen.again.assert_agreed()
    assert "a stored tactic is refused: embedded::gemm" in seen.again.warnings
    tuned = {op for r in seen.again.ranks for op, n in r.report.ops.items() if n.get("tuned")}
    assert tuned == {"embedded::gemm"}


def comes_up_the_next_time(seen: Ran) -> None:
    """The others end and name the rank; the next start tries each tactic apart first."""
    *others, failing = seen.start.ranks
    assert failing.raised == "RuntimeError", seen.start.told()
    for other in others:
        told = " ".join([*other.logged, other.outcome(), other.cause])
        assert f"rank {failing.rank}" in told, seen.start.told()
    seen.again.assert_agreed()
    assert "a stored tactic is refused" in seen.again.warnings


def raised_by_all(error: str) -> Check:
    """The forward's own error, at once, on every rank; then a sound start."""

    def check(seen: Ran) -> None:
        for rank in seen.start.ranks:
            assert error in f"{rank.outcome()} {rank.cause} {rank.logged}", seen.start.told()
        assert seen.start.seconds < 2 * SILENCE_S + 10
        seen.again.assert_whole()

    return check


def unguarded(seen: Ran) -> None:
    """FlashInfer tunes in the forward, as without this package; the report says so."""
    assert {report.agreement for report in seen.start.reports} == {"unguarded"}
    assert "_collect_metadata" in seen.start.warnings
    seen.again.assert_whole()


def nothing_outside(seen: Ran) -> None:
    """Nothing outside the root is read, written or removed; what is in the way stays."""
    seen.start.assert_whole()
    seen.again.assert_whole()
    assert "leads out of" in seen.start.warnings
    for path in (seen.job.root / "outside").rglob("*"):
        assert path.is_dir() or path.read_text() == "mine"
    assert len(list((seen.job.root / "outside").rglob("*.json"))) == 3


def link_is_set_aside(seen: Ran) -> None:
    """The link is moved and not what it leads to."""
    set_aside_and_tuned(seen)
    assert "leads out of" in seen.start.warnings
    assert json.loads((seen.job.root / "outside.json").read_text())["_metadata"]


def nothing_climbs(seen: Ran) -> None:
    """A key is never a path."""
    agrees(seen)
    assert not [path for path in seen.job.root.rglob("*") if "climbed" in path.name]


def ends_for_all(rank: int | None, reason: str) -> Check:
    """All ranks end at once and name the rank whose message is no good; then a sound start."""

    def check(seen: Ran) -> None:
        for each in seen.start.ranks:
            assert each.raised in ("RankLostError", "SessionError"), seen.start.told()
        told = " ".join(each.outcome() for each in seen.start.ranks)
        assert reason in told, told
        assert rank is None or f"rank {rank % len(seen.start.ranks)} is lost" in told
        assert seen.start.seconds < 2 * SILENCE_S + 10
        seen.again.assert_whole()

    return check


def lives_and_leaves(rank: int, *reasons: str) -> Check:
    """All ranks raise what names the one that cannot go on, at once; nobody is taken for lost."""

    def check(seen: Ran) -> None:
        culprit = rank % len(seen.start.ranks)
        for each in seen.start.ranks:
            assert each.raised == "SessionError", seen.start.told()
            assert "is lost" not in each.outcome()
            assert each.rank == culprit or f"rank {culprit} cannot go on: " in each.outcome()
            assert all(reason in each.outcome() for reason in reasons), seen.start.told()
        assert seen.start.seconds < SILENCE_S + 10
        seen.again.assert_whole()

    return check


def says_that_ranks_may_differ(inner: Check) -> Check:
    """Return a check that the log names the setting that forbids it."""

    def check(seen: Ran) -> None:
        inner(seen)
        assert "ranks may serve different tactics for one call" in seen.start.warnings
        assert "WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that" in seen.start.warnings

    return check


def each_for_itself(seen: Ran) -> None:
    """Nothing is shared and nothing written; the next start, alike on all ranks, shares."""
    assert {report.agreement for report in seen.start.reports} == {"none"}
    seen.again.assert_whole()


def everyone(do: str, **more: Any) -> Faults:
    """Return a fault of every rank."""
    return lambda size: ({"do": do, "on": tuple(range(size)), **more},)


_ROWS = (
    Row(
        number="F1",
        injected="one node has the table, the other node's directory is empty",
        happens="nobody times; the other node gets the table",
        two_nodes=True, before=lose_second_node, check=warm_at_once,
    ),
    Row(
        number="F2",
        injected="file keys that hold the rank (expert parallel)",
        happens="twins: tuned by one rank, stored under each rank's key",
        shape=with_experts, check=tunes_twins_once,
    ),
    Row(
        number="F3",
        injected="two nodes with tables of other keys",
        happens="the union serves; nobody times",
        two_nodes=True, before=halves, check=warm_at_once,
    ),
    Row(
        number="F4",
        injected="a table with half of the buckets",
        happens="only the other half is timed",
        before=half_of_the_buckets, check=tunes_what_nobody_has,
    ),
    Row(
        number="F5",
        injected="winners in the tuner's memory on one rank, from an earlier pass",
        happens="the agreed table takes their place",
        faults=last("tuned_before"), lasting=True, check=agrees,
    ),
    Row(
        number="F6",
        injected="one node has op A, the other op B, as many tactics each",
        happens="the union serves; only what nobody holds is timed",
        two_nodes=True, before=one_op_each, check=tunes_what_nobody_has,
    ),
    Row(
        number="F7",
        injected="a skip list on one rank",
        happens="the op serves its default on all ranks",
        faults=last("context", skip_ops=["embedded::moe_gemm1"]), lasting=True,
        check=skips_on_all,
    ),
    Row(
        number="F7",
        injected="another mode in one rank's environment",
        happens="rank 0's is used, with a warning",
        faults=last("environ", WARMUP_PLUGIN_MODE="read-only"), lasting=True,
        check=uses_rank_0_s_mode,
    ),
    Row(
        number="F8",
        injected="a tactics blocklist on one rank",
        happens="ranks have other candidates: each tunes for itself, nothing is written",
        faults=last("blocklist"),
        check=each_its_own(BLOCKLIST),
    ),
    Row(
        number="F8",
        injected="the same where ranks must agree",
        happens="defaults on all ranks",
        faults=last("blocklist"),
        env={"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, check=defaults(BLOCKLIST),
    ),
    Row(
        number="F8",
        injected="a blocklist that one rank's FlashInfer refuses (an unknown stamp field)",
        happens="rank 0's candidates decide for all",
        faults=refused_blocklist, lasting=True, check=agrees,
    ),
    Row(
        number="F9",
        injected="other buckets on one rank",
        happens="the union is tuned, each task once",
        faults=last("context", tuning_buckets=[3, 5]), lasting=True, check=agrees,
    ),
    Row(
        number="F9",
        injected="a data-parallel replica without a token",
        happens="it has nothing to tune, holds what the others hold, and agrees",
        faults=second_replica("idle"), lasting=True, shape=two_replicas,
        check=agrees_when_idle,
    ),
    Row(
        number="F10",
        injected="pipeline stages with other ops",
        happens="each task is tuned by a rank that has it",
        shape=two_stages, check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that comes late",
        happens="the others wait, as long as their group does",
        faults=last("sleep", at="before", seconds=2 * SILENCE_S), check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that takes longer in a step than the group's time-out",
        happens="it beats, so the others wait: no collective is pending",
        faults=last("sleep", at="agree", seconds=5.0),
        job={"group_timeout_s": 4.0}, check=agrees,
    ),
    Row(
        number="F11",
        injected="a rank that is silent, since a compile holds the interpreter",
        happens="its process runs, so the others wait",
        faults=first("hold_the_interpreter", at="plan", seconds=2 * SILENCE_S),
        check=agrees,
    ),
    Row(
        number="F12",
        injected="SIGKILL of one rank in the middle of tuning, and at each step's begin",
        happens="the others name it and end; the next start is warm or tunes",
        test="test_killed.py::test_the_others_name_it_and_the_next_start_is_sound",
    ),
    Row(
        number="F13",
        injected="a tactic that raises on the rank that tunes",
        happens="another tactic wins",
        faults=first("fail_tactic"), lasting=True, check=another_wins,
    ),
    Row(
        number="F13",
        injected="a winner that raises on a rank that did not tune it",
        happens="dropped: its task serves the default on all ranks; the next start tunes it again",
        faults=last("fail_tactic", op="embedded::lm_head", tactic=None),
        env={"WARMUP_PLUGIN_STRATEGY": "leader"},  # else it may have tuned it itself
        check=default_this_time("lm_head", "RuntimeError: injected"),
    ),
    Row(
        number="F14",
        injected="a tactic that never returns",
        happens="the others name the rank and task; its process ends itself (status 79)",
        faults=first("hang", at="profile:60", seconds=25.0),
        env={"WARMUP_PLUGIN_TASK_LIMIT_S": "4"}, check=ends_itself,
    ),
    Row(
        number="F14",
        injected="a winner that never returns on a rank that did not tune it",
        happens="the same; the next start tunes again",
        faults=last("hang", at="build", seconds=25.0),
        env={"WARMUP_PLUGIN_TASK_LIMIT_S": "4"}, check=last_ends_itself,
    ),
    Row(
        number="F15",
        injected="no memory for the inputs of a measurement",
        happens="the task serves the default on all ranks; the next start tunes it again",
        faults=first("fail_synthesis", error="MemoryError"),
        check=default_this_time("::gemm", "out of memory"),
    ),
    Row(
        number="F15",
        injected="no memory in a tactic on the rank that tunes",
        happens="another tactic wins",
        faults=first("fail_tactic", error="OutOfMemoryError"), check=another_wins,
    ),
    Row(
        number="F15",
        injected="no memory on a rank that did not tune",
        happens="dropped: the tasks serve the default on all ranks; the next start tunes them",
        faults=last("fail_synthesis", error="OutOfMemoryError"),
        check=default_this_time("lm_head", "OutOfMemoryError: injected"),
    ),
    Row(
        number="F16",
        injected="KeyboardInterrupt or SIGTERM while a tactic is measured",
        happens="what is tuned is kept, the others name the rank; the next start times the rest",
        test="test_sigterm.py::test_results_are_kept",
    ),
    Row(
        number="F17",
        injected="one node's table is truncated",
        happens="set aside; the other node's serves, nobody times",
        two_nodes=True, before=overwrite('{"_metadata": {"', 1),
        check=other_node_serves,
    ),
    Row(
        number="F17",
        injected="one node's table is a list",
        happens="set aside; the other node's serves, nobody times",
        two_nodes=True, before=overwrite("[]", 1), check=other_node_serves,
    ),
    *(
        Row(
            number="F17",
            injected=f"all there is of tables is {what}",
            happens="set aside and tuned again, once",
            before=change, check=set_aside_and_tuned,
        )
        for what, change in {
            "empty": overwrite(""), "truncated": truncate, "a list": overwrite("[]"),
            "of wrong values": edit(null_entry),
        }.items()
    ),
    Row(
        number="F18",
        injected="a table without a stamp",
        happens="set aside and tuned again, once",
        before=edit(without_stamp), check=set_aside_and_tuned,
    ),
    Row(
        number="F18",
        injected='a table stamped "*"',
        happens="set aside and tuned again, once",
        before=edit(stamped(cuda_version="*")), check=set_aside_and_tuned,
    ),
    Row(
        number="F19",
        injected="another GPU of the same architecture, on one root",
        happens="it has a directory of its own; both stay",
        test="test_places.py::test_two_gpus_on_one_root",
    ),
    Row(
        number="F20",
        injected="a table of another FlashInfer in our place",
        happens="set aside and tuned again, once",
        before=edit(stamped(flashinfer_version="0.6.0")), check=set_aside_and_tuned,
    ),
    Row(
        number="F20",
        injected="a new cuDNN in the image, the same override directory",
        happens="another directory below it; the old table serves the old image again",
        test="test_places.py::test_a_new_image_below_one_override",
    ),
    Row(
        number="F21",
        injected="a field of FlashInfer's stamp that one rank does not know",
        happens="no difference: all share",
        faults=stamps("cudnn_version", "91002", "unknown"), lasting=True, check=agrees,
    ),
    Row(
        number="F22",
        injected="another cuBLAS on one rank",
        happens="each tunes for itself, nothing is written",
        faults=stamps("cublas_version", "13.1.0", "13.2.0"),
        check=each_its_own("stamp.cublas_version"),
    ),
    Row(
        number="F22",
        injected="the same where ranks must agree",
        happens="defaults on all ranks",
        faults=stamps("cublas_version", "13.1.0", "13.2.0"),
        env={"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, check=defaults("stamp.cublas_version"),
    ),
    Row(
        number="F24",
        injected="two engines that start together on one directory",
        happens="one tunes, the other waits and adopts",
        test="test_replicas.py::test_one_tunes_the_other_adopts",
    ),
    Row(
        number="F23",
        injected="a read-only directory with a table",
        happens="warm; nothing is written, one warning",
        faults=everyone("obey_permissions"), lasting=True, before=make_read_only,
        check=warm_and_nothing_written,
    ),
    Row(
        number="F23",
        injected="an empty read-only directory",
        happens="tuned at every start and kept in memory; one warning",
        faults=everyone("obey_permissions"), lasting=True, before=empty_and_read_only,
        check=in_memory("not writable"),
    ),
    Row(
        number="F23",
        injected="a directory that may not even be read",
        happens="tuned at every start and kept in memory; one warning",
        faults=everyone("obey_permissions"), lasting=True, before=closed,
        check=in_memory("Permission denied"),
    ),
    Row(
        number="F23",
        injected="the directory is removed while it is tuned",
        happens="made again and stored; the next start is warm",
        faults=first("lose_directory", at="tune:5"), check=stored_anew,
    ),
    Row(
        number="F23",
        injected="the directory is removed just before the file is written",
        happens="made again and stored; the next start is warm",
        faults=first("lose_directory", at="publish"), check=stored_anew,
    ),
    Row(
        number="F23",
        injected="a file system without room",
        happens="served from memory; stored by a start that has room",
        test="../ranks/test_bad_tables.py::test_a_file_system_without_room",
    ),
    Row(
        number="F24",
        injected="16 processes publish into one directory, a third is killed",
        happens="readers see whole tables; the last one holds every published task",
        test="test_disk_races.py::test_nothing_published_is_lost",
    ),
    Row(
        number="F25",
        injected="two nodes on one directory",
        happens="one of them writes",
        two_nodes=True, job={"one_disk": True}, check=one_file_for_both,
    ),
    Row(
        number="F25",
        injected="a node that does not see the directory yet, where there is a table",
        happens="it is given the other node's; nobody times",
        two_nodes=True, job={"one_disk": True}, before=nothing, faults=last("stale_listing"),
        check=agrees,
    ),
    Row(
        number="F25",
        injected="ESTALE at the rename",
        happens="served from memory; the next start stores",
        faults=everyone("stale_handles"), check=in_memory("Stale file handle"),
    ),
    Row(
        number="F25",
        injected="the time of day jumps by a day on one rank",
        happens="nothing: waits and silences are counted by a clock that does not jump",
        faults=first("jump_clock", at="tune:3", seconds=86400.0), check=agrees,
    ),
    Row(
        number="F25",
        injected="the time of day jumps back by a day on one rank",
        happens="the same",
        faults=last("jump_clock", at="agree", seconds=-86400.0), check=agrees,
    ),
    Row(
        number="F26",
        injected="tables carried to another node by hand",
        happens="warm at once: no path and no host is part of the identity",
        two_nodes=True, before=copy_by_hand, check=warm_at_once,
    ),
    Row(
        number="F27",
        injected="a skip list in one start, none in the next",
        happens="the op is tuned then",
        faults=everyone("context", skip_ops=["embedded::moe_gemm1"]), check=op_is_tuned_again,
    ),
    Row(
        number="F28",
        injected="tactics that take the buckets but not the batch between two",
        happens="run at that batch before they serve: that bucket keeps its default",
        faults=everyone("refuse_sizes"), lasting=True, check=default_between_buckets,
    ),
    Row(
        number="F29",
        injected="tactic 99 written into the table by hand",
        happens="tried apart, refused with the reason, tuned in the same start",
        before=edit(tactic_99), check=refused_and_tuned,
    ),
    Row(
        number="F29",
        injected="tactic 99 in a table whose manifest vouches for it",
        happens="the forward is run again without stored tactics, or, where another stage waits "
        "for it, all end and the next start is; then the same",
        before=edit(tactic_99, vouch=True), check=refused_now_or_next_time,
    ),
    Row(
        number="F29",
        injected="a stored tactic that has come to raise on one rank, in its forward",
        happens="all end and name the rank; the next start tries it apart and comes up",
        before=nothing, lasting=True,
        faults=last("fail_tactic", op="embedded::lm_head", tactic=None),
        check=comes_up_the_next_time,
    ),
    Row(
        number="F30",
        injected="autotune(cache=...) in the forward",
        happens="its file is ignored, ours stays loaded",
        faults=everyone("own_cache"), lasting=True, check=agrees,
    ),
    Row(
        number="F30",
        injected="autotune_v2 in the forward",
        happens="recorded and tuned as such a call",
        faults=everyone("autotune_v2"), lasting=True, check=agrees,
    ),
    Row(
        number="F30",
        injected="autotune_v2 inside autotune_v2",
        happens="FlashInfer's own error on every rank, at once",
        faults=everyone("autotune_v2", nested=True), check=raised_by_all("nest"),
    ),
    Row(
        number="F31",
        injected="the forward is captured into a CUDA graph",
        happens="nothing is timed in it",
        faults=everyone("capture"), lasting=True, check=agrees,
    ),
    Row(
        number="F32",
        injected="a rank joins with another CUDA",
        happens="each tunes for itself, nothing is written",
        faults=stamps("cuda_version", "13.0", "12.8"), check=each_its_own("stamp.cuda_version"),
    ),
    Row(
        number="F33",
        injected="a private name of FlashInfer's is gone on one rank",
        happens="FlashInfer tunes in the forward on all, as without this package",
        faults=last("forget_symbol", name="_collect_metadata"), check=unguarded,
        shape=one_stage,
    ),
    Row(
        number="F34",
        injected="a link out of the root in place of the table",
        happens="set aside, its target untouched; tuned again",
        before=link_out, check=link_is_set_aside,
    ),
    Row(
        number="F34",
        injected="links out of the root in place of the folders we write to",
        happens="nothing is written, moved or removed there; tuned and kept in memory",
        before=link_folders_out, check=nothing_outside,
    ),
    Row(
        number="F34",
        injected="`../` in a key",
        happens="a key is never a path",
        before=edit(climbing_key), check=nothing_climbs,
    ),
    Row(
        number="F34",
        injected="`../` as a manifest's identity",
        happens="the manifest is of elsewhere, its table is tried apart",
        before=climbing_identity, check=nothing_climbs,
    ),
    Row(
        number="F34",
        injected="a table's bytes are damaged on the wire",
        happens="all ranks end and say so; the next start is sound",
        faults=first("say_instead", key="body/", flip=True), check=ends_for_all(None, "sha256"),
    ),
    Row(
        number="F34",
        injected="5 MB where a rank's word should be",
        happens="all ranks end and name it",
        faults=last("say_instead", key="agree/", size=5 * 2**20),
        check=ends_for_all(-1, "bytes"),
    ),
    Row(
        number="F34",
        injected="a rank's word is no object",
        happens="all ranks end and name it",
        faults=last("say_instead", key="survey0/", body='["pickle"]'),
        check=ends_for_all(-1, "cannot be read"),
    ),
    Row(
        number="F36",
        injected="20 ms for each question to the session's store",
        happens="slower by a second; no message for each tactic",
        faults=everyone("slow_network", seconds=0.02), check=agrees,
    ),
    Row(
        number="F37",
        injected="a rank of an engine is killed or stopped before all have met",
        happens="the others name it and its host within a silence; the job ends",
        test="../ranks/test_readiness.py::test_a_rank_that_is_lost_before_its_word_is_named",
    ),
    Row(
        number="F38",
        injected="one rank of an engine has no descriptor left for the session's store",
        happens="all warm up as without this package, at once",
        test="../ranks/test_readiness.py::test_one_without_a_descriptor_is_the_reason_on_all",
    ),
    Row(
        number="F39",
        injected="no memory for what is ours on one rank, in the middle of the session",
        happens="all leave the session and name it; an engine then warms up as without it",
        faults=last("fail_at", at="share", error="MemoryError"),
        check=lives_and_leaves(-1, "MemoryError: injected"),
    ),
    Row(
        number="F39",
        injected="the same on rank 0, which holds the store",
        happens="the same",
        faults=first("fail_at", at="plan", error="OSError"),
        check=lives_and_leaves(0, "OSError: [Errno 5] injected"),
    ),
    Row(
        number="F40",
        injected="a rank that hands in the vote of another step",
        happens="named on all with both steps; an engine then warms up as without it",
        faults=last("change_vote", step="agree", change={"step": "load"}),
        check=lives_and_leaves(-1, "its vote at step agree is one of step 'load'"),
    ),
    Row(
        number="F41",
        injected="a vote that lacks a field",
        happens="rank and field are named on all; an engine then warms up as without it",
        faults=last("change_vote", step="survey0", without=["missing"]),
        check=lives_and_leaves(-1, "its vote at step survey0 has no 'missing'"),
    ),
    Row(
        number="F41",
        injected="a field of another type in a vote",
        happens="rank, field, value and rule are named on all",
        faults=last("change_vote", step="certify", change={"published": 7}),
        check=lives_and_leaves(-1, "has 'published' = 7: expected `array`, got `int`"),
    ),
    Row(
        number="F42",
        injected="another version of this package on one rank",
        happens="both versions are named on all; an engine then warms up as without it",
        faults=last("change_vote", step="open", change={"plugin": "0.0.9"}, without=["margin"]),
        check=lives_and_leaves(-1, "its warmup-plugin is 0.0.9", f"another rank's {BUILD}: must"),
    ),
    Row(
        number="F43",
        injected="SIGTERM of one rank when all is tuned, at each step's begin",
        happens="the table is stored; said on all, the job ends: none is certified",
        test="test_sigterm.py::test_after_tuning_the_table_is_stored_and_the_job_ends",
    ),
    Row(
        number="F44",
        injected="`per_rank` in rank 0's environment alone",
        happens="each tunes for itself; the warning names the setting that forbids it",
        faults=first("environ", WARMUP_PLUGIN_STRATEGY="per_rank"),
        check=says_that_ranks_may_differ(each_for_itself),
    ),
    Row(
        number="F44",
        injected="a FlashInfer switch in one rank's environment",
        happens="the same",
        faults=last("blocklist"), check=says_that_ranks_may_differ(each_for_itself),
    ),
    Row(
        number="F45",
        injected="a hardened pod: read-only root, no /tmp, a user without an account",
        happens="comes up, cold and warm: a start needs none",
        test="test_hardened_pod.py::test_the_engine_comes_up_cold_and_warm",
    ),
    Row(
        number="F46",
        injected="a resource is denied to all ranks, to rank 0 or to another, one of 22 kinds",
        happens="never worse than alone: up wherever the engine alone is, at once",
        test="test_denials.py::test_never_worse_than_alone",
    ),
    Row(
        number="F47",
        injected="a pipe, a device, a directory or a link where the lease should be",
        happens="nobody's lease; tuned and stored at once",
        test="test_resources.py::test_something_else_in_the_place_of_the_lease",
    ),
    Row(
        number="F48",
        injected="the disk fails once while a task is journalled",
        happens="the record is written again; no death is told of",
        test="test_resources.py::test_a_disk_that_fails_once_is_nobodys_death",
    ),
    Row(
        number="F49",
        injected="a file system that grants a lock to everybody",
        happens="a live engine is seen to live; replicas wait for it",
        test="test_resources.py::test_a_live_engine_is_not_dead_where_everybody_gets_a_lock",
    ),
    Row(
        number="F49",
        injected="a file system that does not answer when asked for a lock",
        happens="done without locks after two seconds",
        test="test_resources.py::test_nobody_waits_for_a_lock_without_an_answer",
    ),
    Row(
        number="F50",
        injected="a link out of the root at any level of the path",
        happens="nothing is read or written behind it, journals included",
        test="test_resources.py::test_nothing_is_written_behind_a_link_out_of_the_root",
    ),
    Row(
        number="F50",
        injected="a directory open to all, where a private one is required",
        happens="nothing is read or written there, journals included",
        test="test_resources.py::test_nothing_is_written_in_a_directory_that_is_refused",
    ),
    Row(
        number="F51",
        injected="a cache root whose name is no text",
        happens="used as any other",
        test="test_resources.py::test_a_root_whose_name_is_no_text",
    ),
    Row(
        number="F52",
        injected="one rank lacks descriptors, threads or a way to rank 0",
        happens="named on all at once; an engine then warms up as without this package",
        test="../ranks/test_rendezvous.py::test_what_one_rank_lacks_all_hear_of_at_once",
    ),
    Row(
        number="F35",
        injected="a host without a local rank 0",
        happens="its first rank writes",
        two_nodes=True, job={"local_ranks": (0, 1, 2, 3)}, check=agrees,
    ),
)  # fmt: skip

ROWS = tuple(sorted(_ROWS, key=lambda row: int(row.number[1:])))

#: By layout, then by the shape that a row makes of it: the cases that run at once.
TABLES: dict[str, dict[tuple[tuple[str, int], ...], dict[int, dict[str, Any]]]] = {}
for layout_name, layout in LAYOUTS.items():
    for index, row in enumerate(ROWS):
        if row.check is not None:
            shape = tuple(row.shape(layout).items())
            cases = TABLES.setdefault(layout_name, {}).setdefault(shape, {})
            cases[index] = row.case(ranks_of(layout))

#: A change runs each row on two ranks or on four, by turns; `make guarantees` on both.
SHAPES = ("TP2", "TP2xPP2")


def _marks(name: str, index: int) -> tuple[pytest.MarkDecorator, ...]:
    if name not in SHAPES:
        return (pytest.mark.soak,)
    return () if name == SHAPES[index % 2] else (pytest.mark.guarantee,)


HERE = [
    pytest.param(name, index, id=f"{row.number}-{index}-{name}", marks=_marks(name, index))
    for name in (*SHAPES, "TP4")
    for index, row in enumerate(ROWS)
    if row.check is not None
]


@pytest.mark.parametrize(("name", "index"), HERE)
def test_row(name: str, index: int, ran: Callable[..., Ran]) -> None:
    """The fault, the start after it, and that both end in time."""
    row = ROWS[index]
    assert row.check is not None
    shape = tuple(row.shape(LAYOUTS[name]).items())
    seen = ran(TABLES[name][shape], index, **dict(shape))
    seen.start.assert_nobody_waits()
    seen.again.assert_nobody_waits()
    row.check(seen)
    assert seen.start.seconds < BOUND_S
    assert seen.job.litter() == []


def table() -> str:
    """Return the page's table."""
    lines = [
        "| row | injected | what happens | test in `tests/faults/` |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        cells = (row.number, row.injected, row.happens, f"`{row.test}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page() -> str:
    """Return the page as it should be: its own words down to the marker, then the table."""
    words, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    return f"{words}{MARKER}\n\n{table()}\n"


def test_the_page_has_these_rows() -> None:
    """`docs/faults.md` is made of the rows above."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/faults/test_rows.py"


def test_every_row_is_there_and_has_its_test() -> None:
    """The rows asked for, each with a test that exists."""
    numbers = {row.number for row in ROWS}
    assert numbers == {f"F{number}" for number in range(1, len(numbers) + 1)}
    for row in ROWS:
        file, _, function = row.test.partition("::")
        assert f"\ndef {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
