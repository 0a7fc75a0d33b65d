# SPDX-License-Identifier: Apache-2.0
"""What a live rank of an engine lacks, or hands in wrongly: planted before its warm-up.

Owns what a name of ``Spec.fault`` stands for, of the faults that the ranks of the embedded engine
have too: denials of `../faults/denials.py`, faults of `../faults/in_rank.py`.
"""

from __future__ import annotations

import ctypes.util
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
#: What another version of this package calls itself.
OLDER = "0.0.9"
#: The steps in which a signal comes when all is tuned.
AFTER_TUNING = ("share", "prepare", "publish", "certify")

#: By name: the function of `in_rank.py`, and what it is told.
_IN_RANK: dict[str, tuple[str, dict[str, Any]]] = {
    "vote_of_another_step": ("change_vote", {"step": "agree", "change": {"step": "load"}}),
    "vote_without_a_field": ("change_vote", {"step": "agree", "without": ["vouched"]}),
    "older_vote": (
        "change_vote", {"step": "open", "change": {"plugin": OLDER}, "without": ["margin"]},
    ),
    "one_failed_write": ("one_fault_of_the_disk", {"call": "write"}),
    "one_failed_fsync": ("one_fault_of_the_disk", {"call": "fsync"}),
    "blocklist": ("blocklist", {}),
    **{f"sigterm_in_{step}": ("send", {"at": step, "name": "SIGTERM"}) for step in AFTER_TUNING},
}  # fmt: skip


class _Rank:
    """What a fault of `in_rank.py` asks of the rank that has it; a mark says that it has struck."""

    def __init__(self, rank: int, root: Path) -> None:
        self.rank, self._mark = rank, root / f"struck rank {rank}"

    def say(self, _event: str, **_more: Any) -> None:
        self._mark.touch()


def has_struck(root: Path) -> bool:
    """Return whether one of those that strike once has; ``root`` as when it was planted."""
    return any(root.rglob("struck rank *"))


def plant(names: Iterable[str], rank: int, root: Path) -> None:
    """Plant this rank's faults. ``root``: a folder that all ranks of the start see."""
    for name in names:
        if found := _IN_RANK.get(name):
            function, told = found
            _named(f"faults/in_rank.py:{function}")(_Rank(rank, root), **told)
        elif name in _HERE:
            _HERE[name](root)


def _named(reference: str) -> Any:
    from warmup_plugin.engines.embedded.config import resolve

    return resolve(f"{TESTS / reference}")


def _no_place_for_files(root: Path) -> None:
    _named("faults/denials.py:without_temporary_directory")(root)


def _a_user(root: Path) -> None:
    """Be one of whom the system knows nothing, the same on all ranks, and of no other test."""
    number = 200_000 + zlib.crc32(os.fsencode(root)) % 100_000
    _named("faults/denials.py:become_a_user")(number, root)


def _no_thread(_root: Path) -> None:
    _named("faults/denials.py:BY_ID")["threads:0"].deny(None)


def _no_search_by_files(_root: Path) -> None:
    """Stand in for a linker that knows cuBLAS: Python then has no compiler look for it."""
    vars(ctypes.util).update(_findLib_gcc=lambda _name: None, _findLib_ld=lambda _name: None)


def _older_version(_root: Path) -> None:
    """Be of another version from the first meeting on."""
    from warmup_plugin.engines import readiness

    vars(readiness).update(BUILD=OLDER, _ANSWERED=f"answered {OLDER}")


def _umask(_root: Path) -> None:
    os.umask(0o777)


def _no_error_stream(_root: Path) -> None:
    os.close(2)  # Python still believes to have it


def _unprivileged(_root: Path) -> None:
    """Have no right to write where permissions forbid it, as any user but root."""
    _named("ranks/on_ranks.py:give_up_overrides")()


_HERE: dict[str, Callable[[Path], None]] = {
    "unprivileged": _unprivileged, "umask_0777": _umask, "no_error_stream": _no_error_stream,
    "no_place_for_files": _no_place_for_files, "no_search_by_files": _no_search_by_files,
    "a_user": _a_user, "no_thread": _no_thread, "older_version": _older_version,
}  # fmt: skip
