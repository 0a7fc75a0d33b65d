# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's environment stamp, the slow half of it looked up once for all ranks that see alike.

Two fields make up nearly all that a stamp costs: for the version of cuBLAS FlashInfer runs
ldconfig, a compiler and a linker, and for both it reads the metadata of every installed package
(0.7.2.post1; `package_names.py`). What an earlier process has found is taken where it still holds
(`kept_environment.py`). Where nothing is kept, ranks with equal `surroundings` look each up once
among them, at the same time: rank 0 the first, on a thread of its own while the ranks meet. Any
other rank, and any that cannot tell, looks for itself, and all other fields each reads for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from warmup_plugin.cache.paths import machines_folder
from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES
from warmup_plugin.cache.store import unsafe
from warmup_plugin.errors import PlacementError, SessionError
from warmup_plugin.topology import machine_id
from warmup_plugin.tuner import compat, kept_environment
from warmup_plugin.tuner.library_search import bearing_failed_searches
from warmup_plugin.tuner.package_names import naming_packages_quickly
from warmup_plugin.tuner.packages import by_content, remember

if TYPE_CHECKING:
    from warmup_plugin.coordination.base import Rendezvous
    from warmup_plugin.settings import Settings

#: What the dynamic linker finds without a search, since it is loaded already.
_LOADED = (b"cublas", b"cudnn")

#: What is kept is looked up this long after the session, seconds: programs are run for it, and the
#: engine goes on with its start.
_LATER_S = 1.0
#: So long a process that ends at once, as a job that only tunes, waits for what it keeps.
_LEAVE_S = 2.0

#: The one that is looking, if one is, and what this process saw before.
_under_way: threading.Thread | None = None
_seen = ""
#: Of the slow fields, what an earlier process on this machine has found, and still holds.
_kept: dict[str, str] = {}
#: What this process was before it looked, where it found nothing kept.
_process: kept_environment.Process | None = None


def surroundings(maps: bytes | None = None) -> str:
    """Return a digest of all that the slow fields depend on.

    Empty where that cannot be told, or where FlashInfer makes its stamp of other facts. Machine,
    mount namespace, root and working directory, user, the variables that direct the linker, as they
    are and as the process began with them, the libraries of interest that are loaded already,
    interpreter, where packages are imported from, torch and FlashInfer. ``maps``: the process's
    mappings, where they have been read before.
    """
    if not compat.can_answer():
        return ""
    try:
        root = Path("/").stat()
        seen = [
            *kept_environment.facts_of_process(), machine_id(),
            Path("/proc/self/ns/mnt").stat().st_ino,
            root.st_dev, root.st_ino, Path.cwd(), _loaded(maps or _mappings()),
        ]  # fmt: skip
    except OSError:
        return ""
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _mappings() -> bytes:
    return Path("/proc/self/maps").read_bytes()


def _loaded(maps: bytes) -> list[bytes]:
    """Return device, inode and path of the libraries of interest among a process's mappings."""
    found = {
        b" ".join(line.split(maxsplit=5)[3:])
        for line in maps.splitlines()
        if any(name in line for name in _LOADED)
    }
    return sorted(found)


def folder_of(
    settings: Settings, argument: Path | None = None, engine_root: Path | None = None
) -> Path | None:
    """Return below which folder a look is kept: where the tables are; None where it may not be."""
    with contextlib.suppress(PlacementError):
        folder = machines_folder(
            settings, argument=argument, engine_root=engine_root, environ=os.environ
        )
        if not unsafe(folder / kept_environment.FOLDER, folder, settings):
            return folder
    return None


def recall(folder: Path | None) -> None:
    """Take what is kept of an earlier look below this folder, where it holds for this process."""
    global _kept, _process  # noqa: PLW0603  # of the process, as FlashInfer keeps the answer
    if folder is None or _kept or _process or not compat.slow_fields():
        return
    _process = kept_environment.this_process()
    if _process is None:
        return
    found = _kept_by(_process, folder)
    _kept = {name: found[name] for name in compat.slow_fields() if name in found}


def _kept_by(process: kept_environment.Process, folder: Path) -> dict[str, str]:
    """Return what is kept of an earlier look that holds for this process."""
    found = kept_environment.read(folder, process)
    if packages := found.get(PACKAGES, ""):
        remember(found.get(FINGERPRINT, ""), packages)
    return found


def foreseen(folder: Path | None) -> dict[str, str] | None:
    """Return the stamp by what is kept below this folder; None where that leaves out a field.

    The session looks for itself: until then a library may be loaded, or replaced.
    """
    process = kept_environment.this_process() if folder is not None else None
    if folder is None or process is None:
        return None
    found, slow = _kept_by(process, folder), compat.slow_fields()
    if not slow.keys() <= found.keys():
        return None
    with compat.answering({name: found[name] for name in slow}):
        return compat.stamp()


def kept() -> dict[str, str]:
    """Return the slow fields that this process has taken from an earlier look."""
    return dict(_kept)


def keep_later(folder: Path) -> None:
    """Look once more and keep what is found, on a thread; a process that ends waits a little."""
    global _process  # noqa: PLW0603  # as above: once per process
    if _process is None:
        return
    process, ends = _process, threading.Event()
    _process = None

    def keep() -> None:
        ends.wait(_LATER_S)
        kept_environment.keep(folder, process)

    def leave() -> None:
        ends.set()
        thread.join(_LEAVE_S)

    thread = threading.Thread(target=keep, name="warmup-environment", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread: the next start looks, too
        thread.start()
        # Not `atexit`, which processes made by `multiprocessing`, as engines' workers, pass by.
        Finalize(None, leave, exitpriority=0)


def _unknown() -> dict[str, Callable[[], str]]:
    """Return what looks up each slow field that is neither kept nor known to FlashInfer."""
    return {name: look for name, look in compat.slow_fields().items() if name not in _kept}


def begin(*, tells: bool) -> str:
    """Begin to look up what other programs are run for, unless it is known or has been begun.

    Returns, for a rank that ``tells`` others, the surroundings in which this process has looked: a
    look may itself load a library. Where it fails, or does not end, who needs the answer is told.
    """
    global _seen  # noqa: PLW0603  # of the process, as FlashInfer keeps the answer
    maps = None
    if _kept and not _unknown():
        return ""  # the others have it kept, too, or look for themselves
    if tells and not _seen:
        with contextlib.suppress(OSError):  # nobody is told then, and each looks for itself
            maps = _mappings()
    _look()  # before the rest of it: every rank will wait for this
    if maps is not None:
        _seen = surroundings(maps)
    return _seen


def look_round() -> bool:
    """Note the surroundings of a rank that does not tell others, before anything is looked up.

    Returns whether there is anything to look up for which programs are run.
    """
    global _seen  # noqa: PLW0603  # as above
    is_slow = compat.BY_PROGRAMS in _unknown()
    if is_slow and not _seen:
        _seen = surroundings()
    return is_slow


def _look() -> None:
    global _under_way  # noqa: PLW0603  # as above
    if (look := _unknown().get(compat.BY_PROGRAMS)) is None or _under_way is not None:
        return

    def look_quietly() -> None:
        global _under_way  # noqa: PLW0603  # as above
        # Nobody hears of what fails here: FlashInfer asks again.
        with contextlib.suppress(Exception), bearing_failed_searches(), naming_packages_quickly():
            look()
        _under_way = None

    _under_way = threading.Thread(target=look_quietly, name="warmup-lookup", daemon=True)
    try:
        _under_way.start()
    except RuntimeError:  # no thread: looked up where it is needed
        _under_way = None


def _look_meanwhile() -> None:
    """Look up, as long as the programs run, what none is run for."""
    for field, look in _unknown().items():
        if field != compat.BY_PROGRAMS:
            # What fails here is told of where it is needed.
            with contextlib.suppress(Exception), naming_packages_quickly():
                by_content(look())


class Lookup:
    """Who looks up the slow fields of this process's stamp: this rank, or others that see alike.

    ``is_alike``: this rank sees all that they depend on as rank 0 does. ``taken``: the fields that
    another such rank looks up. ``limit_s``: how long is waited for the programs that FlashInfer
    runs; it sets no limit itself.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.is_alike = False
        self.taken: tuple[str, ...] = ()

    @property
    def is_slow(self) -> bool:
        """Whether programs are run for it: a tenth of a second in which each rank waits."""
        return compat.BY_PROGRAMS in _unknown()

    def divide(self, coordinator: Rendezvous, rank_0s: str) -> None:
        """Settle which fields this rank looks up; ``rank_0s``: the surroundings of rank 0.

        Rank 0 has begun with those that other programs are run for. Any other is the first one's
        who comes: that is another rank, where one sees alike, unless rank 0 has ended before.
        """
        self.is_alike, slow = coordinator.rank == 0, _unknown()
        if coordinator.size == 1 or not slow:
            return
        if coordinator.rank == 0:
            self._wait()
        elif rank_0s and rank_0s == (_seen or surroundings()):
            self.is_alike = True
        if self.is_alike:
            is_rank_0s = coordinator.rank > 0
            self.taken = tuple(
                field
                for field in slow
                if (
                    is_rank_0s
                    if field == compat.BY_PROGRAMS
                    else coordinator.take(f"lookup/{field}")
                )
            )

    def stamp(self) -> dict[str, str]:
        """Return this process's stamp, without the fields that are ``taken``.

        Raises `SessionError` where the programs have not come to an end within the limit.
        """
        with compat.answering({**_kept, **dict.fromkeys(self.taken, "")}):
            if _under_way is not None:
                _look_meanwhile()
                self._wait()
            found = compat.stamp()
        return {name: value for name, value in found.items() if name not in self.taken}

    def _wait(self) -> None:
        if (thread := _under_way) is None:
            return
        thread.join(timeout=self._limit_s)
        if thread.is_alive():
            raise SessionError(
                f"{compat.BY_PROGRAMS}: FlashInfer has looked it up for {self._limit_s:.0f} s "
                "(ldconfig, gcc, ld): task_limit_s"
            )
