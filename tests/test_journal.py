# SPDX-License-Identifier: Apache-2.0
"""The journal: each record by itself, marks, deaths, and who is still writing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from warmup_plugin.cache.journal import (
    Journal,
    Past,
    deaths_in,
    lift,
    read_journals,
    shorten,
)
from warmup_plugin.cache.table import Entry
from warmup_plugin.cache.task_result import Result
from warmup_plugin.runtime.process_info import ProcessCard
from warmup_plugin.steps.resume import part_of

STAMP = {"flashinfer_version": "0.7.2.post1"}
KEYS = ("('op', 'A', 1)", "('op', 'B', 1)")
LIMIT = 1 << 20


def tuned(task: str, tactic: int = 3, winner: int = 1) -> Result:
    entry = Entry("B", (tactic, "x"), ("hot", 1))
    return Result(task, "tuned", winner, entry, ms=1.5, default_ms=2.0, rank=1, host="h", at=5.0)


def journal(directory: Path, name: str = "s.0", driver: str = "d") -> Journal:
    return Journal(directory, name, driver=driver, stamp=STAMP)


def only(directory: Path) -> Past:
    (past,) = read_journals(directory, LIMIT)
    return past


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Results with their tactics as tuples, and the mark that stands."""
    writer = journal(tmp_path)
    assert read_journals(tmp_path, LIMIT) == []
    writer.begins("t", "op @ 1")
    assert only(tmp_path).in_hand is not None
    writer.found("op", KEYS, tuned("t"))
    past = only(tmp_path)
    assert past.in_hand is None
    assert [row.result for row in past.found] == [tuned("t")]
    assert past.found[0].keys == KEYS
    assert past.opened.stamp == STAMP
    writer.begins("u", "op @ 2", synced=False)
    writer.leaves()
    writer.leaves()
    writer.close()
    writer.begins("v", "op @ 3")
    past = only(tmp_path)
    assert past.in_hand is None
    assert past.is_dead, "nobody writes here any more"


def test_a_record_is_on_the_disk_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks and results are synchronised; a mark that need not outlive the machine is not."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    writer = journal(tmp_path)
    writer.begins("t", "l")
    assert len(synced) == 1
    writer.found("op", KEYS, tuned("t"))
    assert len(synced) == 2
    writer.begins("u", "l", synced=False)
    assert len(synced) == 2
    writer.leaves()
    assert len(synced) == 3
    # Where the next task begins at once, one wait for the disk is enough for both records.
    writer.begins("v", "l")
    writer.found("op", KEYS, tuned("v"), synced=False)
    assert len(synced) == 4
    writer.begins("w", "l")
    assert len(synced) == 5
    writer.found("op", KEYS, tuned("w"), synced=False)
    writer.leaves()
    assert len(synced) == 6, "and the last result is on the disk when the tuning ends"


def damaged(content: bytes) -> list[bytes]:
    """Every cut of the last line, and every line with one bit changed."""
    lines = content.splitlines(keepends=True)
    last = len(content) - len(lines[-1])
    cuts = [content[:end] for end in range(last, len(content) - 1)]
    flips = []
    for number in range(1, len(lines)):
        line = bytearray(lines[number])
        line[len(line) // 2] ^= 1
        flips.append(b"".join([*lines[:number], bytes(line), *lines[number + 1 :]]))
    return [*cuts, *flips]


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    """A torn line, a changed bit: the others count, and nothing raises."""
    writer = journal(tmp_path)
    for name in "abc":
        writer.found("op", KEYS, tuned(name))
    writer.close()
    path = only(tmp_path).path
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        assert len(only(tmp_path).found) == 2
    for content in (b"", b"\xff\xfe", b"[]\n", b"0 {}\n", b"[" * 100_000):
        path.write_bytes(content)
        assert read_journals(tmp_path, LIMIT) == []


def test_too_large_is_not_read(tmp_path: Path) -> None:
    writer = journal(tmp_path)
    writer.found("op", KEYS, tuned("a"))
    assert read_journals(tmp_path, 100) == []


CHILD = """
import sys, time
from pathlib import Path
from warmup_plugin.cache.journal import Journal
writer = Journal(Path(sys.argv[1]), sys.argv[2], driver="d", stamp={})
writer.begins("t", "op @ 8")
print("begun", flush=True)
time.sleep(60)
"""


def test_a_death_is_a_mark_whose_process_is_gone(tmp_path: Path) -> None:
    """Not while it lives, nor stopped; under another driver it does not count."""
    for number in (1, 2):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), f"s{number}.0"], stdout=subprocess.PIPE
        ) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == b"begun\n"
                living = [past for past in read_journals(tmp_path, LIMIT) if past.is_running]
                assert [past.path.stem for past in living] == [f"s{number}.0"]
                child.send_signal(signal.SIGSTOP)
                assert len(deaths_in(read_journals(tmp_path, LIMIT), "d")) == number - 1
            finally:
                child.kill()
        deaths = deaths_in(read_journals(tmp_path, LIMIT), "d")
        assert [len(death.journals) for death in deaths.values()] == [number]
        assert deaths["t"].is_blocked == (number == 2)
        assert deaths["t"].label == "op @ 8"
    assert deaths_in(read_journals(tmp_path, LIMIT), "another") == {}
    for past in read_journals(tmp_path, LIMIT):
        lift(past)
    assert deaths_in(read_journals(tmp_path, LIMIT), "d") == {}


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_fault_of_the_disk_that_passes_by_is_nobodys_death(
    call: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is written once more; nothing is lost, and nothing stands there twice."""
    calls, own = iter(range(100)), getattr(os, call)

    def fails_once(*args: Any) -> Any:
        if next(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return own(*args)

    monkeypatch.setattr(os, call, fails_once)
    writer = journal(tmp_path)
    for name in ("a", "b"):
        writer.begins(name, "l")
        writer.found("op", KEYS, tuned(name))
    writer.close()
    past = only(tmp_path)
    assert [row.result.task for row in past.found] == ["a", "b"]
    assert past.in_hand is None
    assert len(past.path.read_bytes().splitlines()) == 5


@pytest.mark.parametrize("call", ["write", "fsync", "half a write"])
@pytest.mark.parametrize("can_remove", [True, False])
def test_a_disk_that_goes_leaves_no_mark(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_remove: bool
) -> None:
    """Where its file cannot be removed either, the mark is taken back when the session ends."""
    writer = journal(tmp_path)
    writer.begins("a", "l")
    own = os.write

    def fails(*args: Any) -> Any:
        if call == "half a write" and len(args) == 2:
            return own(args[0], args[1][: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if call == "fsync" else "write", fails)
        if not can_remove:
            patch.setattr(Path, "unlink", fails)
        writer.found("op", KEYS, tuned("a"))
        writer.begins("b", "l")
    if can_remove:
        assert read_journals(tmp_path, LIMIT) == []
        writer.close()
        assert read_journals(tmp_path, LIMIT) == []
    else:
        writer.close()
        assert deaths_in(read_journals(tmp_path, LIMIT), "d") == {}


def test_another_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "s.0.log").write_text("theirs")
    writer = journal(tmp_path)
    writer.begins("a", "l")
    writer.close()
    assert (tmp_path / "journal" / "s.0.log").read_text() == "theirs"


REAL = fcntl.flock


def granted_to_all(_descriptor: int, _operation: int) -> None:
    """As flock on many a network file system."""


def refused(_descriptor: int, _operation: int) -> NoReturn:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("flock", [granted_to_all, refused, fcntl.flock])
def test_who_is_seen_to_live_is_not_dead_whatever_locks_say(
    flock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "s.0"], stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begun\n"
            assert only(tmp_path).is_running
            child.send_signal(signal.SIGSTOP)
            assert deaths_in(read_journals(tmp_path, LIMIT), "d") == {}
        finally:
            child.kill()
    assert only(tmp_path).is_dead


@pytest.mark.parametrize(
    ("flock", "days", "dead"),
    [
        (REAL, 0, True), (granted_to_all, 0, False), (refused, 0, False),
        (granted_to_all, 2, True), (refused, 2, True),
    ],
)  # fmt: skip
def test_who_cannot_be_seen_is_dead_by_a_lock_that_works_or_a_day(
    flock: Any, days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, dead: bool
) -> None:
    """A process of another machine, or of another container of this one."""
    theirs = ProcessCard(1, 1, "another machine/1")
    with monkeypatch.context() as patch:
        patch.setattr("warmup_plugin.cache.journal.own_card", lambda: theirs)
        writer = journal(tmp_path)
        writer.begins("t", "l")
    monkeypatch.setattr(fcntl, "flock", flock)
    then = time.time() - days * 86_400 - 1
    os.utime(only(tmp_path).path, (then, then))
    if flock is REAL:
        assert not only(tmp_path).is_dead, "it holds its lock"
    writer.close()
    os.utime(only(tmp_path).path, (then, then))
    assert only(tmp_path).is_dead == dead


def test_only_the_mark_stays(tmp_path: Path) -> None:
    """Of a journal whose results stand in a table."""
    writer = journal(tmp_path)
    writer.found("op", KEYS, tuned("a"))
    writer.begins("t", "op @ 1")
    writer.close()
    before = only(tmp_path)
    shorten(before)
    after = only(tmp_path)
    assert after.found == ()
    assert (after.in_hand, after.opened) == (before.in_hand, before.opened)


def test_no_disk_no_journal(tmp_path: Path) -> None:
    """Nothing raises, nothing is tried twice."""
    (tmp_path / "journal").write_text("a file")
    writer = journal(tmp_path)
    writer.begins("t", "l")
    writer.found("op", KEYS, tuned("t"))
    assert (tmp_path / "journal").read_text() == "a file"
    nowhere = Journal(None, "", driver="", stamp={})
    nowhere.begins("t", "l")
    nowhere.close()
    assert read_journals(tmp_path / "none", LIMIT) == []


def test_records_become_a_table_nobody_vouches_for(tmp_path: Path) -> None:
    """The first record of a task counts; tasks that killed, and records that cannot be, do not."""
    writer = journal(tmp_path)
    for result in (
        tuned("a"), tuned("a", 9), tuned("dead"), tuned("out of range", winner=2),
        Result("none", "default", reason="all tactics failed"), Result("x", "unshared"),
    ):  # fmt: skip
        writer.found("op", KEYS, result)
    part = part_of(only(tmp_path).found, STAMP, identity="i", without={"dead"})
    assert part.table.entries == {KEYS[1]: Entry("B", (3, "x"), ("hot", 1))}
    assert part.manifest is not None
    assert part.manifest.loose == (KEYS[1],)
    assert {name: row.outcome for name, row in part.manifest.tasks.items()} == {
        "a": "tuned", "none": "default",
    }  # fmt: skip
    assert part.manifest.tasks["a"].default_ms == 2.0
    assert not part.manifest.complete
