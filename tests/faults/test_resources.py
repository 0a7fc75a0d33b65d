# SPDX-License-Identifier: Apache-2.0
"""Places and locks that are not what they should be, and disks that fail once, in whole jobs.

What a rank is denied altogether is in `test_denials.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

#: A sound start, and what a busy machine adds; nobody waits for a lock or a pipe longer than this.
BOUND_S = 30.0
BOTH = (0, 1)


def lose_tables(job: Job) -> None:
    for path in job.directory().glob("rank_*"):
        path.unlink()


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a directory", "a link to a pipe"])
def test_something_else_in_the_place_of_the_lease(
    kind: str, start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """It is nobody's lease: tuned at once, and stored."""
    job = make_job("one")
    start([job], tp=2)[0].assert_whole()
    lose_tables(job)
    journal = job.directory() / "journal"
    journal.mkdir(exist_ok=True)
    lease, pipe = journal / "tuning.json", job.root / "pipe"
    if kind == "a directory":
        lease.mkdir()
    elif kind == "a device":
        lease.symlink_to("/dev/zero")
    else:
        os.mkfifo(pipe if "link" in kind else lease)
    if kind == "a link to a pipe":
        lease.symlink_to(pipe)
    (again,) = start([job], tp=2)
    again.assert_whole()
    assert again.tasks_tuned() > 0
    assert again.seconds < BOUND_S
    start([job], tp=2)[0].assert_warm()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fails_once_is_nobodys_death(
    call: str, start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Its job is killed later on: the next start knows of the one task that was in hand."""
    job = make_job("one")
    job.faults = [
        {"do": "one_fault_of_the_disk", "on": BOTH, "call": call},
        {"do": "kill", "on": [0], "at": "tune:4"},
    ]
    (first,) = start([job], tp=2)
    assert all("failed" in rank.said for rank in first.ranks)
    (again,) = start([job], tp=2)
    again.assert_whole()
    assert again.warnings.count("a process has died in it") <= 2  # on each rank of one node
    assert "2 processes" not in again.warnings
    start([job], tp=2)[0].assert_warm()


def test_a_live_engine_is_not_dead_where_everybody_gets_a_lock(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """A replica waits for it as ever, and takes nothing of it for a death."""
    engines = [make_job("same"), make_job("same")]
    for job in engines:
        job.faults = [{"do": "flock", "on": BOTH, "answer": "all"}]
    engines[0].faults = [*engines[0].faults, {"do": "slow_tasks", "on": BOTH, "seconds": 0.05}]
    engines[1].faults = [
        *engines[1].faults, {"do": "sleep", "on": BOTH, "at": "read", "seconds": 1.0}
    ]  # fmt: skip
    found = start(engines, tp=2)
    for each in found:
        each.assert_agreed()
        assert "died" not in each.warnings
    assert sum(each.tasks_tuned() for each in found) == len(engines[0].tasks())
    start(engines[:1], tp=2)[0].assert_warm()


def test_nobody_waits_for_a_lock_without_an_answer(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Cold and warm: it is asked once, two seconds long, and done without."""
    job = make_job("one")
    for _ in ("cold", "warm"):
        job.faults = [{"do": "flock", "on": BOTH, "answer": "none"}]
        (found,) = start([job], tp=2)
        found.assert_agreed()
        assert found.seconds < BOUND_S
    found.assert_warm()


LEVELS = ("layout", "version", "arch", "identity")


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_written_behind_a_link_out_of_the_root(
    level: str, start: Callable[..., list[Start]], make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """At whichever part of the path it stands; the log says how to keep tables elsewhere."""
    job, disk = make_job("one"), tmp_path / "disk"
    start([job], tp=2)
    place = job.directory()
    for _ in range(len(LEVELS) - 1 - LEVELS.index(level)):
        place = place.parent
    shutil.rmtree(place)
    disk.mkdir()
    place.symlink_to(disk)
    for _ in range(2):
        (found,) = start([job], tp=2)
        found.assert_agreed()
        assert "make the root itself the link" in found.warnings
    assert [*disk.rglob("*")] == []


def test_nothing_is_written_in_a_directory_that_is_refused(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Every user may write there, and the operator has asked for a private one."""
    job = make_job("one")
    start([job], tp=2)
    lose_tables(job)
    job.directory().chmod(0o777)
    before = sorted(job.directory().rglob("*"))
    for _ in range(2):
        job.env = {"WARMUP_PLUGIN_REQUIRE_PRIVATE": "1"}
        (found,) = start([job], tp=2)
        found.assert_agreed()
        assert found.tasks_tuned() > 0
    assert sorted(job.directory().rglob("*")) == before


def test_a_root_whose_name_is_no_text(
    start: Callable[..., list[Start]], tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    """It is used as any other, and the receipt is kept there."""
    job: Any = make_job(os.fsdecode(b"caf\xe9"))
    start([job], tp=2)[0].assert_whole()
    assert [*(job.directory() / "reports").iterdir()]
    start([job], tp=2)[0].assert_warm()
    assert [path.name for path in tmp_path.iterdir()] == [os.fsdecode(b"caf\xe9")]
