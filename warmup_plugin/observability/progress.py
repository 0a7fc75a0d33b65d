# SPDX-License-Identifier: Apache-2.0
"""What a job is at while it warms up: one line for people, one small file for a readiness probe.

    {"state": "warming", "step": "tune", "doing": "tuning", "task": ..., "tactic": 3, "of": 17, ...}

Owns both. The line is rank 0's: it moves on a terminal, else it is logged every 30 s. The file is
written by the first rank of each node where a setting names it. Both have a clock of their own, so
that one long task of one rank is told of as well. Counts are the job's: what other ranks are at is
heard from their heartbeats. Never raises: a file that cannot be written is logged once, and no
caller waits for any of this.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import msgspec

from warmup_plugin.cache.files import write_files
from warmup_plugin.observability.pace import Pace, duration
from warmup_plugin.runtime.compiling import is_compiling
from warmup_plugin.runtime.terminal import MovingLine
from warmup_plugin.runtime.ticker import Ticking

logger = logging.getLogger("warmup_plugin")

State = Literal["warming", "ready", "failed"]
#: What a rank is at within a step. "stuck": for `STUCK_S` nothing has moved and nothing compiles.
Doing = Literal["", "working", "tuning", "compiling", "waiting", "stuck"]

#: Not oftener than this, seconds: a line of the log, a line that moves, the file.
LOG_S: Final = 30.0
MOVE_S: Final = 0.1
FILE_S: Final = 1.0
#: How often it is looked whether the log or the file has something to be told, seconds.
TICK_S: Final = 5.0
STUCK_S: Final = 60.0
_COUNT: Final = r".* \((\d+) done\)"


def counted(label: str, done: int) -> str:
    """Return a task's label as it stands in the heartbeat: with how many this rank has done."""
    return f"{label} ({done} done)"


class Glance(msgspec.Struct, frozen=True):
    """One look at the current task: its tactic ``number`` of ``of``, and the fastest so far.

    Both are 0 before there are candidates; ``of`` grows where an op asks one runner after another.
    """

    number: int = 0
    of: int = 0
    best_ms: float | None = None

    @property
    def words(self) -> str:
        best = f", best {self.best_ms:.4g} ms" if self.best_ms is not None else ""
        return f"tactic {self.number} of {self.of}{best}" if self.of else "no tactic yet"


class Progress:
    """One rank's view of the job. Called from its main thread, its heartbeat's and a clock's.

    Unless it ``draws``, no line moves: the runner shows what goes on by itself.
    """

    def __init__(
        self,
        rank: int,
        *,
        path: Path | None = None,
        stream: TextIO | None = None,
        draws: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank, self._path, self._clock = rank, path, clock
        stream = stream if stream is not None else sys.stderr
        self._line = MovingLine(stream, wanted=draws and rank == 0)
        self._lock = threading.Lock()
        self._began = self._told = self._moved = clock()
        self._filed = -math.inf
        self._has_warned = False
        self._step, self._task, self._reason = "open", "", ""
        self._state: State = "warming"
        self._pace = Pace(clock)
        self._thread = threading.get_ident()
        self._ticking = Ticking(self.tick, TICK_S)
        self._look: Callable[[], Glance] = Glance
        self._glance = Glance()
        self._limit_s: float | None = None
        self._task_began = self._changed = clock()
        self._waits_for: tuple[int, ...] = ()

    def files(self, path: Path | None) -> None:
        """Know now whether this rank is the one of its node that writes the file: this, or none."""
        with self._lock:
            self._path = path
        self.begin()

    def begin(self) -> None:
        """Tell from now on by the clock, too, where there is a reader."""
        if self.listens:
            self._ticking.begin()

    def hush(self) -> None:
        """Tell nothing by the clock any more."""
        self._ticking.end()

    def tick(self) -> None:
        """Look at the current task, and tell what is due."""
        with self._lock:
            found = self._look()
            if found != self._glance:
                self._see(found)
                self._changed = self._clock()
        self._tell()

    def waits(self, ranks: Iterable[int]) -> None:
        """This rank waits for these, or for none any more."""
        with self._lock:
            self._waits_for = tuple(ranks)

    @property
    def listens(self) -> bool:
        """Return whether what the other ranks are at is of interest here."""
        return self._rank == 0 or self._path is not None

    def step(self, step: str) -> None:
        """This rank begins a step."""
        with self._lock:
            self._step, self._task = step, ""
            self._look, self._limit_s = Glance, None
            self._see(Glance())
            self._changed = self._clock()
        self._tell(at_once=True)

    def plan(self, total: int) -> None:
        """So many tasks are to be tuned by all ranks together."""
        with self._lock:
            self._pace.begin(total)

    def task(
        self,
        label: str,
        done: int,
        look: Callable[[], Glance] = Glance,
        limit_s: float | None = None,
    ) -> None:
        """This rank begins a task and has done so many before.

        ``look`` tells how far it is and is called from any thread; ``limit_s``: when it is given
        up.
        """
        with self._lock:
            self._task = label
            self._pace.note(self._rank, done)
            self._look, self._limit_s = look, limit_s
            self._see(Glance())
            self._task_began = self._changed = self._clock()
        self._tell()

    def tuned(self, ms: float | None, default_ms: float | None) -> None:
        """A task is tuned: its winner's time and FlashInfer's default's, where both are known."""
        with self._lock:
            self._pace.tuned(ms, default_ms)

    def heard(self, rank: int, step: str, task: str) -> None:
        """Another rank's heartbeat has come."""
        match = re.fullmatch(_COUNT, task)
        if match and step == "tune":
            with self._lock:
                self._pace.note(rank, int(match[1]))
            self._tell()

    def end(self, state: State, reason: str = "") -> None:
        """The warm-up is over."""
        self._ticking.end()
        with self._lock:
            self._state, self._reason, self._task = state, reason, ""
            self._look, self._limit_s = Glance, None
            self._see(Glance())
            self._waits_for = ()
            if state == "ready":
                self._pace.complete(self._rank)
            self._line.give_up()
        self._tell(at_once=True)

    def document(self) -> dict[str, Any]:
        """Return what the file says."""
        done, total = self._pace.counts()
        return {
            "schema": 1,
            "state": self._state,
            "step": self._step,
            "doing": self._doing(),
            "task": self._task,
            "tactic": self._glance.number,
            "of": self._glance.of,
            "best_ms": self._glance.best_ms,
            "in_task_s": self._in_task_s(),
            "limit_s": self._limit_s,
            "waits_for": list(self._waits_for),
            "done": done,
            "total": total,
            "left_s": self._pace.left_s() if self._state == "warming" else None,
            "over_default": self._pace.over_default(),
            "seconds": round(self._clock() - self._began, 3),
            "reason": self._reason,
            "rank": self._rank,
            "pid": os.getpid(),
            "at": round(time.time(), 3),
        }

    def line(self) -> str:
        """Return the line for people."""
        done, total = self._pace.counts()
        doing = self._doing()
        if doing == "waiting":
            ranks = ", ".join(map(str, self._waits_for))
            return f"warmup-plugin: step {self._step}, waiting for rank {ranks}"
        if self._step != "tune" and not (total and done < total):
            return f"warmup-plugin: step {self._step}" + (", compiling" * (doing == "compiling"))
        left, gain = self._pace.left_s(), self._pace.over_default()
        words = [f"{done} of {total} tasks"]
        words += [f"about {duration(left)} left"] if left is not None and doing != "stuck" else []
        words += [f"{gain:.2f} x the default's speed so far"] if gain else []
        what = doing if doing in ("compiling", "stuck") else "tuning"
        return f"warmup-plugin: {what}{self._task_words(doing)}; {', '.join(words)}"

    def _task_words(self, doing: Doing) -> str:
        if not self._task:
            return ""
        words = [f": {self._task}"]
        words += [self._glance.words] if self._look is not Glance else []
        if doing == "stuck":
            words.append(f"nothing has moved for {duration(self._clock() - self._changed)}")
            if self._limit_s is not None:
                limit = duration(self._limit_s)
                words.append(f"given up {limit} after it began (WARMUP_PLUGIN_TASK_LIMIT_S)")
        return ", ".join(words)

    def _doing(self) -> Doing:
        """Return what this rank is at, as far as it can be told from another thread."""
        if self._state != "warming":
            return ""
        if self._waits_for:
            return "waiting"
        if is_compiling(self._thread):
            return "compiling"
        if not self._task:
            return "working"
        return "stuck" if self._clock() - self._changed >= STUCK_S else "tuning"

    def _in_task_s(self) -> float | None:
        return round(self._clock() - self._task_began, 1) if self._task else None

    def _see(self, found: Glance) -> None:
        """Know how far the current task is; it counts by its tactics behind it."""
        self._glance = found
        if found.of:
            self._pace.reach(max(found.number - 1, 0) / found.of, 1 / found.of)
        else:
            self._pace.reach()

    def _tell(self, *, at_once: bool = False) -> None:
        with self._lock:
            now = self._clock()
            if self._path is not None and (at_once or now - self._filed >= FILE_S):
                self._filed = now
                self._write(self._path)
            if self._rank or self._state != "warming":
                return
            if self._line.moves and self._pace.total and now - self._moved >= MOVE_S:
                self._moved = now
                self._line.say(self.line())
            elif not self._line.moves and now - self._told >= LOG_S:
                self._told = now
                logger.info("%s", self.line())

    def _write(self, path: Path) -> None:
        """Put the file in place, whole. It is not synchronised: it is of use to the living only."""
        try:
            write_files({path: json.dumps(self.document()).encode() + b"\n"}, synced=False)
        except OSError as error:
            if not self._has_warned:
                logger.warning("warmup-plugin: no progress file: %s: %s", path, error.strerror)
            self._has_warned = True
