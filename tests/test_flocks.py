# SPDX-License-Identifier: Apache-2.0
"""Locks are believed where one was refused, and never waited for."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from warmup_plugin.cache import flock
from warmup_plugin.cache.locks import locked


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file, open as its writer has it."""
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield path, descriptor
    os.close(descriptor)


@pytest.fixture
def unanswered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file system whose server is gone: a call does not come back, whatever it is asked."""
    over = threading.Event()
    monkeypatch.setattr(flock, "_silent", set())
    monkeypatch.setattr(flock, "_ANSWER_S", 0.2)
    monkeypatch.setattr(fcntl, "flock", lambda *_args: over.wait(60))
    yield
    over.set()


def test_held_and_let_go(file: tuple[Path, int]) -> None:
    path, descriptor = file
    assert flock.try_lock(descriptor) == "taken"
    assert not flock.is_let_go(path)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    assert flock.is_let_go(path)
    path.chmod(0o444)
    assert flock.is_let_go(path)


def test_a_lock_that_everybody_gets_says_nothing(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_args: None)
    path, descriptor = file
    assert flock.try_lock(descriptor) == "taken"
    assert not flock.is_let_go(path)


@pytest.mark.usefixtures("unanswered")
def test_nobody_waits_for_a_file_system_that_does_not_answer(
    file: tuple[Path, int], tmp_path: Path
) -> None:
    """It is asked once."""
    path, descriptor = file
    began = time.monotonic()
    assert flock.try_lock(descriptor) == "none"
    assert not flock.is_let_go(path)
    with locked(tmp_path):
        asking = [thread for thread in threading.enumerate() if thread.name == "warmup-flock"]
    assert len(asking) == 1
    assert time.monotonic() - began < 10.0  # and not the minute that the call takes


def test_without_a_thread_there_is_no_lock(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_thread: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    assert flock.try_lock(file[1]) == "none"
    assert not flock.is_let_go(file[0])


@pytest.mark.parametrize("kind", ["none", "a pipe", "a link", "a directory", "closed"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "place"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        (tmp_path / "elsewhere").touch()
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "a directory":
        path.mkdir()
    assert not flock.is_let_go(path)
    if kind == "closed":
        assert flock.try_lock(10_000) == "none"
