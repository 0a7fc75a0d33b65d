# SPDX-License-Identifier: Apache-2.0
"""The notes of starts that serve a bundle: what counts as a death, and what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.fleet.tables import write
from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.lazy_table import unread_table
from warmup_plugin.cache.table import Table
from warmup_plugin.fleet import quarantine
from warmup_plugin.runtime.process_info import ProcessCard, own_card
from warmup_plugin.runtime.safe_json import digest

X, Y = "a" * 64, "b" * 64
_DIES = """
import os, sys, pathlib
from warmup_plugin.fleet import quarantine
quarantine.begin(pathlib.Path(sys.argv[1]), sys.argv[2], "1d", "driver")
print("begun", flush=True)
sys.stdin.read()
os._exit(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fleet" / "starts"


@pytest.fixture
def begin(folder: Path) -> Callable[..., subprocess.Popen[str]]:
    """A process that has begun to serve a bundle; it dies when its input is closed."""

    def begun(bundle: str = X) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _DIES, str(folder), bundle],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    return begun


def die(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate()


def passed_over(folder: Path, driver: str | None = "driver") -> set[str]:
    return set(quarantine.passed_over(folder, driver))


def test_two_starts_that_died_one_after_the_other(
    folder: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """Of one bundle; another one's start is no such."""
    die(begin())
    die(begin(Y))
    assert passed_over(folder) == set()
    second = begin()
    assert passed_over(folder) == set(), "it lives"
    die(second)
    assert passed_over(folder) == passed_over(folder, None) == {X}
    assert passed_over(folder, "another driver") == set()


def test_processes_that_ran_side_by_side_are_one_start(
    folder: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """Replicas of one node end together; those of the next start are its second one."""
    die(*[begin() for _ in range(4)])
    assert passed_over(folder) == set()
    die(*[begin() for _ in range(4)])
    assert passed_over(folder) == {X}


def changed(folder: Path, **other: Any) -> None:
    """Change all notes as if another process had written them."""
    for path in folder.iterdir():
        note = msgspec.json.decode(path.read_bytes(), type=quarantine.Note)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(note, **other)))


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        ({"host": "another"}, True),
        ({"boot": "before"}, True),
        ({"host": "another", "boot": "before"}, False),
        ({"bundle": Y}, False),
        ({"card": own_card()}, False),
        ({"card": ProcessCard(1, 2, "another container")}, True),
    ],
    ids=["another name", "before the boot", "another host", "not its name's", "lives",
         "out of sight"],
)  # fmt: skip
def test_whose_deaths_count(
    folder: Path, begin: Callable[..., subprocess.Popen[str]], other: dict[str, Any], *,
    counts: bool,
) -> None:  # fmt: skip
    """Those of this host, of processes that are known to be gone."""
    for _ in range(2):
        die(begin())
    changed(folder, **other)
    assert passed_over(folder) == ({X} if counts else set())


def test_a_process_out_of_sight_lives_as_long_as_it_holds_its_lock(
    folder: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """In another container of this host nothing else is seen of it."""
    die(begin())
    second = begin()
    changed(folder, card=ProcessCard(1, 2, "another container"))
    assert passed_over(folder) == set()
    die(second)
    assert passed_over(folder) == {X}


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 9999, b"\xff" * 5000, b'{"bundle": 1}'])
def test_damaged_notes_are_none(
    folder: Path, begin: Callable[..., subprocess.Popen[str]], content: bytes
) -> None:
    """They count for nothing and are in nobody's way, nor are pipes and other files."""
    die(begin())
    for number in range(3):
        (folder / f"{X}.{number:016x}.json").write_bytes(content)
    (folder / "notes.txt").write_text("mine")
    (folder / f"{Y}.{0:016x}.json").mkdir()
    assert passed_over(folder) == set()
    die(begin())
    assert passed_over(folder) == {X}


def test_a_note_is_taken_back_and_made_once(folder: Path) -> None:
    """By the process that has made it."""
    for _ in range(2):
        quarantine.begin(folder, X, "1d", "driver")
    assert len(list(folder.iterdir())) == 1
    quarantine.take_back(Y)
    assert len(list(folder.iterdir())) == 1
    quarantine.take_back(X)
    assert list(folder.iterdir()) == []
    quarantine.take_back(X)


def test_no_more_than_so_many_stay(folder: Path) -> None:
    """The oldest go, whatever they say."""
    folder.mkdir(parents=True)
    for number in range(100):
        (folder / f"{Y}.{number:016x}.json").write_bytes(b"{}")
    quarantine.begin(folder, X, "1d", "driver")
    assert len(list(folder.iterdir())) == 64
    assert list(folder.glob(f"{X}.*"))
    quarantine.take_back(X)


def test_without_a_place_nothing_is_noted_and_nothing_raised(tmp_path: Path) -> None:
    """Nor is anything passed over."""
    (tmp_path / "fleet").write_text("a file")
    quarantine.begin(tmp_path / "fleet" / "starts", X, "1d", "driver")
    quarantine.take_back(X)
    assert quarantine.passed_over(tmp_path / "fleet" / "starts", None) == {}
    assert quarantine.lift(tmp_path / "fleet" / "starts", []) == []


def test_only_the_deaths_of_these_identities_are_lifted(
    folder: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """By their first digits; a start that lives keeps its note."""
    die(begin())
    living = begin()
    assert quarantine.lift(folder, ["2"]) == []
    assert [note.bundle for note in quarantine.lift(folder, ["1D"])] == [X]
    assert len(list(folder.iterdir())) == 1
    die(living)


def test_of_the_same_table_no_entry_is_looked_at(tmp_path: Path) -> None:
    """A host that has tuned what the fleet has reads neither table's entries for that."""
    write(tmp_path / "own", ["x"])
    (path,) = (tmp_path / "own").glob("rank_*0.json")
    data = path.read_bytes()
    table = unread_table(data)
    assert isinstance(table, Table)
    own = CachedTable(table, None, path=str(path), sha256=digest(data))
    bundle = replace(own, path=str(tmp_path / f"bundle-{'a' * 64}" / path.name))
    assert quarantine.relied_on([own, bundle], own) == set()
    assert "_decoded" not in vars(table.entries)
    assert quarantine.relied_on([bundle], bundle) == {"a" * 64}
