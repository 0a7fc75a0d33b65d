# SPDX-License-Identifier: Apache-2.0
"""What a start has tuned and what it was at, on disk as soon as it is known.

    journal/<session>.<rank>.log    one process's records (`journal_records.py`)

Owns these files: appended to by one process, read by later starts. A process that is gone and whose
last mark stands has died in that task. Never raises `OSError`: without a disk nothing is resumed,
that is all.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.cache.files import make_directory, read_file, write_files
from warmup_plugin.cache.flock import is_let_go, try_lock
from warmup_plugin.cache.journal_records import (
    Begun,
    Found,
    Left,
    Opened,
    Record,
    decoded,
    encoded,
)
from warmup_plugin.cache.paths import JOURNAL, JOURNAL_SUFFIX
from warmup_plugin.cache.task_result import Result
from warmup_plugin.runtime.process_info import ProcessCard, own_card, view
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.topology import host_name

logger = logging.getLogger("warmup_plugin")

#: Who cannot be seen and has not written for so long has ended, seconds.
_LONGEST_S: Final = 86_400.0
#: The files that this process is writing.
_own: set[Path] = set()
#: After so many deaths in a task it serves its default.
MOST_DEATHS: Final = 2


class Journal:
    """This process's file. It appears with the first record; without a directory there is none."""

    def __init__(
        self, directory: Path | None, name: str, *, driver: str, stamp: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._path = directory / JOURNAL / f"{name}{JOURNAL_SUFFIX}" if directory else None
        self._driver, self._stamp = driver, dict(stamp)
        self._name = self._path or Path()
        self._descriptor: int | None = None
        self._size = 0
        self._is_in_hand = False
        self._is_unsynced = False

    def begins(self, task: str, label: str, *, synced: bool = True) -> None:
        """Mark a task, before anything of it runs.

        Unless ``synced`` the mark outlives the process only, not the machine.
        """
        self._is_in_hand = True
        self._append(Begun(task, label), synced=synced)

    def found(self, op: str, keys: tuple[str, ...], result: Result, *, synced: bool = True) -> None:
        """Keep the outcome of the current task.

        Unless ``synced`` it outlives the process from now on, and the machine from the next record
        on: to wait for the disk once is enough where another task begins at once.
        """
        self._is_in_hand = False
        self._append(Found(op, keys, result), synced=synced)

    def leaves(self) -> None:
        """Take the mark back: if this process ends now, it is not by the task."""
        if self._is_in_hand or self._is_unsynced:
            self._is_in_hand = False
            self._append(Left(), synced=True)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._path is None:  # given up, and still there: its mark, at least, is taken back
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\n" + encoded(Left()))
        _own.discard(self._name)
        self._path = None
        os.close(descriptor)

    def _append(self, record: Record, *, synced: bool) -> None:
        if self._path is None:
            return
        try:
            if self._descriptor is None:
                self._open(self._path)
            self._write(record, synced=synced)
        except OSError as error:
            # No warning: the store has one for the same directory.
            logger.info("warmup-plugin: %s: %s; no journal is kept", self._path, error.strerror)
            self._give_up(self._path)

    def _write(self, record: Record, *, synced: bool) -> None:
        """Write a record; a fault that has passed by the second time leaves no trace."""
        assert self._descriptor is not None
        body = encoded(record)
        with contextlib.suppress(OSError):
            self._put(body, synced=synced)
            return
        os.ftruncate(self._descriptor, self._size)
        self._put(body, synced=synced)

    def _put(self, body: bytes, *, synced: bool) -> None:
        assert self._descriptor is not None
        if os.write(self._descriptor, body) != len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if synced:
            os.fsync(self._descriptor)
        self._size += len(body)
        self._is_unsynced = not synced

    def _give_up(self, path: Path) -> None:
        """Take the file away: a mark that stands in it would tell of a death that there was not.

        Where even that fails, a line that says so may still have room, here or at the end.
        """
        if self._descriptor is not None:  # else it is none of ours
            with contextlib.suppress(OSError):
                path.unlink()
                self.close()
        self._path = None

    def _open(self, path: Path) -> None:
        make_directory(path.parent, self._directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor, self._size = os.open(path, flags, 0o644), 0
        _own.add(self._name)
        try_lock(self._descriptor)  # where there are none the card in the first line has to do
        opened = Opened(own_card(), host_name(), self._driver, self._stamp)
        self._write(opened, synced=False)


class Past(msgspec.Struct, frozen=True):
    """One process's records. ``in_hand``: the open mark; ``is_dead``: no process writes here."""

    path: Path
    opened: Opened
    found: tuple[Found, ...]
    in_hand: Begun | None
    is_dead: bool

    @property
    def is_running(self) -> bool:
        """Whether another live process writes here now; this one's own earlier records are past."""
        return not self.is_dead and self.opened.card != own_card()


def read_journals(directory: Path, limit: int) -> list[Past]:
    """Return the journals of a directory by name, up to ``limit`` bytes each. Never raises."""
    try:
        paths = sorted(p for p in (directory / JOURNAL).iterdir() if p.suffix == JOURNAL_SUFFIX)
    except OSError:
        return []
    return [past for path in paths if (past := _read(path, limit)) is not None]


def _read(path: Path, limit: int) -> Past | None:
    lines = _lines(path, limit)
    if not lines or not isinstance(lines[0], Opened):
        return None
    if is_dead := _is_dead(path, lines[0].card):
        lines = _lines(path, limit) or lines  # who died in between has said all by now
    in_hand: Begun | None = None
    for line in lines:
        in_hand = line if isinstance(line, Begun) else None
    opened = lines[0]
    assert isinstance(opened, Opened)
    found = tuple(line for line in lines if isinstance(line, Found))
    return Past(path, opened, found, in_hand, is_dead)


def _lines(path: Path, limit: int) -> list[Record]:
    content = read_file(path, limit, path.parent.parent).content
    raws = [] if isinstance(content, Miss) else content.splitlines()
    return [line for raw in raws if (line := decoded(raw)) is not None]


def _is_dead(path: Path, card: ProcessCard) -> bool:
    """Return whether no process writes here any more; this one knows."""
    return path not in _own if card == own_card() else has_ended(path, card)


def has_ended(path: Path, card: ProcessCard) -> bool:
    """Return whether the process is gone that writes a file and has locked it.

    One that is seen to live has not, against what a lock says. One that cannot be seen from here
    has, once it has released a lock that is known to work, or has not written for a day: no task
    takes as long.
    """
    seen = view(card)
    if seen != "unseen":
        return seen == "gone"
    return is_let_go(path) or _age_s(path) > _LONGEST_S


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


class Death(msgspec.Struct, frozen=True):
    """A task in which processes have died: which, by the names of their journals."""

    label: str
    journals: tuple[str, ...]

    @property
    def is_blocked(self) -> bool:
        """Return whether the task serves its default from now on."""
        return len(self.journals) >= MOST_DEATHS


def deaths_in(journals: Iterable[Past], driver: str) -> dict[str, Death]:
    """Return the tasks in which processes have died under this driver, by id."""
    found: dict[str, Death] = {}
    for past in journals:
        if past.is_dead and past.in_hand is not None and past.opened.driver == driver:
            task, label = past.in_hand.task, past.in_hand.label
            before = found[task].journals if task in found else ()
            found[task] = Death(label, (*before, past.path.stem))
    return found


def lift(past: Past) -> None:
    """Take a dead process's mark back, as an operator may; raises `OSError`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(past.path, flags)
    try:
        os.write(descriptor, b"\n" + encoded(Left()))  # its last line may be torn
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_session(directory: Path, session: str) -> None:
    """Remove the journals of a session of our own, unread: what they say is in the table."""
    with contextlib.suppress(OSError):
        for path in [*(directory / JOURNAL).glob(f"{session}.*{JOURNAL_SUFFIX}")]:
            path.unlink()


def remove(journals: Iterable[Past]) -> None:
    """Remove journals that no start needs any more."""
    for past in journals:
        with contextlib.suppress(OSError):
            past.path.unlink()


def shorten(past: Past) -> None:
    """Leave of a dead process's journal the mark alone, which every start reads."""
    if past.in_hand is not None and past.found:
        body = encoded(past.opened) + encoded(past.in_hand)
        with contextlib.suppress(OSError):
            write_files({past.path: body})
