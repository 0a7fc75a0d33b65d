# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin demo`: real ranks, what it claims of them, and that it can say no."""

from __future__ import annotations

import copy
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from warmup_plugin.cli import demo_run as work
from warmup_plugin.cli.demo_run import TwoStarts, judge
from warmup_plugin.cli.demo_text import print_starts
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, RankResult
from warmup_plugin.engines.embedded.progress import parse
from warmup_plugin.runtime.safe_json import Miss

if TYPE_CHECKING:
    from tests.cli.conftest import Ran, Watched

Cli = Callable[..., "Ran"]

CHECKS = ["one table", "tuned once", "warm start", "same certificate", "same tactics"]
FORM = r"/flashinfer_autotune/[0-9][0-9A-Za-z.+!_-]*/cpu/[0-9a-f]{64}/rank_tp0_pp0_dp0\.json"


def printed(found: TwoStarts, width: int) -> str:
    from rich.console import Console

    file = io.StringIO()
    print_starts(Console(file=file, width=width, markup=False, highlight=False), found)
    return file.getvalue()


def altered(
    results: Any,
    rank: int,
    *,
    counts: dict[str, int] | None = None,
    served: Any = None,
    **report: Any,
) -> list[RankResult]:
    """Return the results of a start with one rank's changed."""
    ranks = copy.deepcopy(list(results))
    old = ranks[rank]
    ranks[rank] = replace(
        old,
        report=msgspec.structs.replace(old.report, **report),
        counts={**old.counts, **(counts or {})},
        served={**old.served, **(served or {})},
    )
    return ranks


# -- real ranks -----------------------------------------------------------------------------------


def test_the_demo_holds_on_every_rank(two_starts: TwoStarts) -> None:
    """A cold start that tunes and a warm one that times nothing, with one certificate."""
    assert two_starts.holds
    assert [check.name for check in two_starts.checks] == CHECKS
    assert len(two_starts.cold) == len(two_starts.warm) == 4
    assert sum(rank.counts["profile_single_kernel"] for rank in two_starts.cold) > 100
    for rank in two_starts.warm:
        assert rank.counts["profile_single_kernel"] == rank.counts["prepare_input_tensors"] == 0
        assert rank.report.tasks["from_cache"] == rank.report.tasks["seen"] > 0


def test_the_table_lies_where_the_mission_has_it(two_starts: TwoStarts) -> None:
    """Below the root: layout, version, arch, identity, rank."""
    below = str(two_starts.table.path).removeprefix(str(two_starts.root))
    assert re.fullmatch(FORM, below)
    assert two_starts.table.vouched


def test_progress_is_told_by_every_rank(two_starts: TwoStarts, watched: Watched) -> None:
    """Each start's forward; tasks only where there are any, and only by ranks that tune."""
    assert two_starts.holds
    told = [(start, rank, parse(line)) for start, rank, line in watched]
    steps = {(start, rank, line.step) for start, rank, line in told if line}
    assert {(start, rank, "survey") for start in ("cold", "warm") for rank in range(4)} <= steps
    reports = [result.report for result in two_starts.cold]
    assert {found for found in steps if found[2] == "tune"} == {
        ("cold", report.rank, "tune") for report in reports if report.tasks["tuned"]
    }
    first = next(
        line for start, rank, line in told if (start, rank) == ("cold", 0) and line and line.total
    )
    # Which of a stage's tasks it gets is as it happens.
    assert first.done < first.total == two_starts.cold[0].report.tasks["seen"]
    assert first.task.startswith("embedded::")


def test_again_on_the_same_root(two_starts: TwoStarts, cli: Cli) -> None:
    """Both starts are warm, which is said; standard output is one JSON document."""
    ran = cli("demo", "--tp", 2, "--pp", 2, "--root", two_starts.root, "--json")
    assert ran.code == 0
    assert ran.document["holds"] is True
    assert ran.document["kept"] is True
    assert ran.document["layout"] == {"tp": 2, "pp": 2, "dp": 1, "ep": 1}
    assert [check["name"] for check in ran.document["checks"]] == CHECKS
    assert "before: the table was there" in ran.document["checks"][1]["words"]
    assert {rank["counts"]["profile_single_kernel"] for rank in ran.document["cold"]} == {0}
    assert ran.document["table"] == str(two_starts.table.path)
    assert ran.err.splitlines()[0] == "cold start: ranks load torch and FlashInfer"


def test_per_rank_is_told_as_it_is(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares and keeps nothing: every line of the verdict says no, and so does the exit code."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ran = cli("demo", "--tp", 2, "--strategy", "per_rank", width=80)
    assert ran.code == 1
    verdict = re.findall(r"^  (yes|NO) ", ran.out, re.MULTILINE)
    assert verdict.count("NO") >= 4
    assert "NO  warm start" in ran.out
    assert "agreement: none" in ran.out
    assert "cold start: the ranks tune 62 tasks" in ran.err
    assert "warm start: the ranks tune 62 tasks" in ran.err
    assert list(tmp_path.iterdir()) == []


# -- how it reads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 200])
def test_it_fits_the_terminal(two_starts: TwoStarts, width: int) -> None:
    """No line is cut or wrapped but the command to copy; one screen; every step has a row."""
    text = printed(two_starts, width)
    lines = text.splitlines()
    assert max(len(line) for line in lines if "warmup-plugin show" not in line) <= width
    assert len(lines) < 45
    assert all(line == line.rstrip() for line in lines)
    assert (
        "  rank                    0      1      2      3          0      1      2      3" in lines
    )
    for step in two_starts.cold[0].report.seconds:
        assert re.search(rf"^    {step} ", text, re.MULTILINE)
    for check in CHECKS:
        assert re.search(rf"^  yes  {check} ", text, re.MULTILINE)
    assert str(two_starts.table.path) in "".join(line.strip() for line in lines)


def told_apart(two_starts: TwoStarts) -> TwoStarts:
    """Give each rank of the cold start counts of its own: by chance two may have tuned as many."""
    cold = two_starts.cold
    for rank in range(len(cold)):
        counts = {**cold[rank].counts, "profile_single_kernel": 1000 + rank}
        cold = altered(cold, rank, counts=counts, tactics_timed=1000 + rank)
    return replace(two_starts, cold=cold)


def test_many_ranks_share_columns(two_starts: TwoStarts) -> None:
    """Where eight ranks do not fit, those with equal counts stand together."""
    two_starts = told_apart(two_starts)
    lead, peer = two_starts.cold[0], two_starts.cold[1]
    lead_warm, peer_warm = two_starts.warm[0], two_starts.warm[1]
    many = replace(
        two_starts,
        config=EngineConfig(tp=4, dp=2),
        cold=[lead, *(replace(peer, rank=rank) for rank in range(1, 8))],
        warm=[lead_warm, *(replace(peer_warm, rank=rank) for rank in range(1, 8))],
    )
    lines = printed(many, 80).splitlines()
    assert "  rank                    0    1-7          0    1-7" in lines
    assert "    dp                    0    0-1          0    0-1" in lines
    assert "seconds are the slowest one's" in printed(many, 80)


def test_one_column_at_a_time_on_a_narrow_terminal(two_starts: TwoStarts) -> None:
    """Where not even that fits, blocks stand below each other."""
    text = printed(told_apart(two_starts), 40)
    assert text.count("cold start") == 4


# -- that it can say no ---------------------------------------------------------------------------


def verdict(cold: Any, warm: Any, table: Any) -> dict[str, bool]:
    return {check.name: check.holds for check in judge(cold, warm, table)}


def test_no_when_the_warm_start_timed_something(two_starts: TwoStarts) -> None:
    """Counted inside FlashInfer, on whichever rank."""
    for function in ("profile_single_kernel", "prepare_input_tensors"):
        warm = altered(two_starts.warm, 3, counts={function: 1})
        assert not verdict(two_starts.cold, warm, two_starts.table)["warm start"]


def test_ops_left_to_themselves_are_counted_apart(two_starts: TwoStarts) -> None:
    """What they time makes no warm start cold, in the table and in the verdict."""
    warm: Any = two_starts.warm
    for rank in range(4):
        warm = altered(
            warm, rank, counts={"profile_single_kernel": 6, "prepare_input_tensors": 3},
            tactics_timed=6, passed_through_tactics=6, inputs_synthesised=3,
            passed_through_inputs=3,
        )  # fmt: skip
    checks = judge(two_starts.cold, warm, two_starts.table)
    text = printed(replace(two_starts, warm=warm, checks=checks), 80)
    for label, of_tasks, apart in (("tactics timed", 0, 6), ("inputs synthesised", 0, 3)):
        rows = rf"^  {label} .*(    +{of_tasks}){{4}}\n    left alone .*(    +{apart}){{4}}$"
        assert re.search(rows, text, re.MULTILINE), text
    assert "24 tactics more by ops left to themselves" in " ".join(text.split())
    assert all(check.holds for check in checks)
    one_more = altered(warm, 2, counts={"profile_single_kernel": 7})
    assert not verdict(two_starts.cold, one_more, two_starts.table)["warm start"]


def test_no_when_a_task_was_tuned_twice(two_starts: TwoStarts) -> None:
    """By another rank of the cold start, or again by the warm one."""
    twice = altered(two_starts.cold, 1, tasks={"seen": 27, "tuned": 1})
    assert not verdict(twice, two_starts.warm, two_starts.table)["tuned once"]
    again = altered(two_starts.warm, 1, tasks={"seen": 27, "tuned": 1})
    assert not verdict(two_starts.cold, again, two_starts.table)["tuned once"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"certificate": "ab" * 32}, id="another"),
        pytest.param({"certificate": ""}, id="none"),
        pytest.param({"agreement": "defaults"}, id="defaults"),
    ],
)
def test_no_when_a_certificate_differs(two_starts: TwoStarts, change: dict[str, Any]) -> None:
    """On one rank of one start."""
    for which in range(2):
        starts: list[Any] = [two_starts.cold, two_starts.warm]
        starts[which] = altered(starts[which], 2, **change)
        cold, warm = starts
        assert not verdict(cold, warm, two_starts.table)["same certificate"]


def test_no_when_a_rank_serves_another_tactic(two_starts: TwoStarts) -> None:
    """For a kind of call in common; ops that are passed through are their own affair."""
    call = next(call for call in two_starts.warm[1].served if call.startswith("embedded::gemm"))
    warm = altered(two_starts.warm, 1, served={call: ("BlockedGemmRunner", 99)})
    assert not verdict(two_starts.cold, warm, two_starts.table)["same tactics"]
    passed = "embedded::all_reduce 64 @ 1"
    warm = altered(two_starts.warm, 1, served={passed: ("AllReduceRunner", 99)})
    assert verdict(two_starts.cold, warm, two_starts.table)["same tactics"]


def test_no_when_the_table_is_missing_or_not_alone(two_starts: TwoStarts) -> None:
    """No file at the path; or a file somewhere else besides."""
    missing = replace(two_starts.table, table=Miss("no such file", "absent"))
    assert not verdict(two_starts.cold, two_starts.warm, missing)["one table"]
    cold = altered(two_starts.cold, 1, published=("/elsewhere/rank_tp1_pp0_dp0.json",))
    assert not verdict(cold, two_starts.warm, two_starts.table)["one table"]


def test_a_start_without_a_forward_has_a_certificate_of_its_own(two_starts: TwoStarts) -> None:
    """`on_hit=skip`: no tasks were met, so it is over the table alone; still one for all ranks."""
    warm = [
        replace(
            rank,
            report=msgspec.structs.replace(
                rank.report, certificate="cd" * 32, seconds={"open": 0.1}
            ),
        )
        for rank in two_starts.warm
    ]
    assert verdict(two_starts.cold, warm, two_starts.table)["same certificate"]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--tp", "3"], "tp=3: must divide the model's heads=4", id="does not divide"),
        pytest.param(["--tp", "0"], "tp=0: must be at least 1", id="zero"),
        pytest.param(["--tokens", "0"], "tokens=0: must be at least 1", id="no batch"),
        pytest.param(["--dp", "17"], "must be at most 16 ranks", id="too many"),
        pytest.param(["--tp", "two"], "invalid int value: 'two'", id="no number"),
        pytest.param(["--strategy", "best"], "invalid choice: 'best'", id="no strategy"),
    ],
)
def test_wrong_usage(cli: Cli, options: list[str], words: str) -> None:
    """Exit code 2, before a process is started."""
    ran = cli("demo", *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


def test_a_malformed_setting(cli: Cli) -> None:
    """Named with variable, value and rule."""
    ran = cli("demo", WARMUP_PLUGIN_MODE="bogus")
    assert ran.code == 2
    assert "WARMUP_PLUGIN_MODE is 'bogus': must be one of on," in ran.err


def test_without_torch(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extras to install are named."""
    monkeypatch.setattr(work, "find_spec", lambda _name: None)
    ran = cli("demo")
    assert ran.code == 1
    assert "pip install 'warmup-plugin[torch,flashinfer]'" in ran.err


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        pytest.param(
            "Traceback (most ...\n  File\nRuntimeError: broken", "RuntimeError: broken", id="raised"
        ),
        pytest.param(
            "not finished after 600 s; it stood at\n  File",
            "not finished after 600 s; it",
            id="stuck",
        ),
    ],
)
def test_a_rank_that_fails(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, failure: str, words: str, tmp_path: Path
) -> None:
    """One line that names start and rank; all of it with --debug; nothing is left behind."""

    def launch(*_args: object, **_options: object) -> None:
        raise LaunchError(1, {1: failure}, {})

    monkeypatch.setattr(work, "launch", launch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ran = cli("demo")
    assert ran.code == 1
    assert f"the cold start failed on rank 1: {words}" in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []
    assert failure in cli("demo", "--debug").err


# -- what surrounds it -----------------------------------------------------------------------------


def test_mode_off_has_nothing_to_show(cli: Cli) -> None:
    """It is said before anything is started."""
    ran = cli("demo", WARMUP_PLUGIN_MODE="off")
    assert (ran.code, ran.out) == (2, "")
    assert "WARMUP_PLUGIN_MODE is 'off': must be another mode" in ran.err


def test_a_baked_table_can_be_tried(cli: Cli, two_starts: TwoStarts, tmp_path: Path) -> None:
    """In a layer and with `require-complete`, as an image has it: the verdict is yes."""
    ran = cli(
        "demo", "--tp", "2", "--pp", "2", "--root", tmp_path / "empty", "-q", width=200,
        WARMUP_PLUGIN_LAYERS=str(two_starts.root), WARMUP_PLUGIN_MODE="require-complete",
    )  # fmt: skip
    assert ran.code == 0, ran.out
    assert "62 tasks, before: the table was there" in ran.out
    assert re.search(r"^  tactics timed( +0){8}$", ran.out, re.MULTILINE)
    # The engine's all-reduce has no file of its own below this root.
    assert re.search(r"^    left alone( +[1-9]\d*){4}( +0){4}$", ran.out, re.MULTILINE)
    assert ran.err == ""


def test_a_table_that_takes_over_anothers_winners(
    cli: Cli, two_starts: TwoStarts, tmp_path: Path
) -> None:
    """Beside a sibling's table nothing is tuned, not even cold, and the verdict is yes."""
    root = shutil.copytree(two_starts.root, tmp_path / "root")
    for wanted in ("0 tasks, 62 taken over from another table", "62 tasks, before: the table was"):
        ran = cli("demo", "--tp", "2", "--root", root, "-q", width=200)
        assert ran.code == 0, ran.out
        assert wanted in ran.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """No temporary root, and the exit code says which it was."""
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "warmup_plugin", "demo", "--tp", "2"], env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "forward" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list(tmp_path.glob("warmup-demo-*")) == []
