# SPDX-License-Identifier: Apache-2.0
"""One rank's part in one session: what all steps share, and what they have come to.

Owns two values. `Job` is the context: fixed once the session is open. `Trace` is what the steps add
to it: how far the ranks share by now, and what the receipt tells. What fails in a step and is told
with the next vote is neither: the step returns it (`Failure`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from warmup_plugin.cache.paths import Placement
from warmup_plugin.cache.store import Store
from warmup_plugin.coordination.base import Rendezvous
from warmup_plugin.coordination.decisions import OpenDecision
from warmup_plugin.errors import (
    RankLostError,
    WarmupError,
)
from warmup_plugin.identity import Identity
from warmup_plugin.observability.exposition import Figures
from warmup_plugin.observability.progress import Progress as ProgressLine
from warmup_plugin.observability.report_rows import FileRead, RankStats, Span, Wait, Winner
from warmup_plugin.steps.options import Options
from warmup_plugin.tuner.counters import Observations
from warmup_plugin.tuner.known_ops import KnownOps
from warmup_plugin.tuner.tuner_state import Installed

if TYPE_CHECKING:
    from warmup_plugin.cache.journal import Journal  # noqa: TC004  # of a struct that is never decoded
    from warmup_plugin.runtime.sigterm import Shutdown  # noqa: TC004  # of a struct that is never decoded
    from warmup_plugin.steps.fleet import Fleet  # noqa: TC004  # of a struct that is never decoded

logger = logging.getLogger("warmup_plugin")


class Failure(msgspec.Struct):
    """Why a step could not do its part on this rank; an empty string where it could."""

    reason: str = ""


class Files(msgspec.Struct, frozen=True, dict=True):
    """Where a session keeps files on this rank."""

    #: Makes the journal; where nothing may be kept, one that forgets.
    make_journal: Callable[[], Journal]
    #: Where the tables of this identity lie; None where no path can be made.
    placement: Placement | None = None
    #: Its directory, where that may be used.
    directory: Path | None = None
    #: Reads and writes the tables, on the first rank of a node.
    store: Store | None = None
    #: Why there is no placement, or no layer; an empty string otherwise.
    lack: str = ""

    @functools.cached_property
    def journal(self) -> Journal:
        """What this rank has tuned and is about to tune; a warm start has none."""
        return self.make_journal()

    def close(self) -> None:
        """Close the journal, where one was begun."""
        if "journal" in vars(self):
            self.journal.close()


class Trace(msgspec.Struct):
    """What a session has come to so far on this rank."""

    #: How far the ranks share by now, and why not further: at first as `OpenDecision` says.
    go: str
    reason: str
    #: Whether the last record is there, after which no rank waits for another any more.
    is_settled: bool = False
    #: Whether rank 0 writes the directory of this node too.
    is_redundant: bool = False
    #: What the engine's forward has raised on this rank.
    forward_error: BaseException | None = None
    #: Owner of the shutdown signal, once this rank has tuned.
    shutdown: Shutdown | None = None
    #: Seconds by step.
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    #: The steps in time; they begin to count when the first round is over.
    spans: list[Span] = msgspec.field(default_factory=list)
    #: The tasks that were tuned here, on the machine's monotonic clock.
    timeline: list[Span] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    #: Those of them that have been logged already.
    logged: set[str] = msgspec.field(default_factory=set)
    #: What became of each file of this node.
    read: list[FileRead] = msgspec.field(default_factory=list)
    #: The keys of borrowed entries, each with the table that lent it.
    lenders: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Waits for other engines and other sessions.
    waited: list[Wait] = msgspec.field(default_factory=list)
    #: On rank 0: of every rank.
    rows: list[RankStats] = msgspec.field(default_factory=list)
    winners: list[Winner] = msgspec.field(default_factory=list)


class Job(msgspec.Struct, frozen=True):
    """What the steps of one rank have in common, from the first round on."""

    options: Options
    coordinator: Rendezvous
    #: The decision of the first round.
    opened: OpenDecision
    identity: Identity
    ops: KnownOps
    stamp: Mapping[str, str]
    #: What the tuner holds, and held before.
    installed: Installed
    #: What FlashInfer has measured on this rank.
    seen: Observations
    #: What is let go of when the session ends.
    stack: contextlib.ExitStack
    figures: Figures
    progress: ProgressLine
    files: Files
    #: On rank 0, where a fleet is set.
    fleet: Fleet | None
    #: When the first round was over, on the machine's monotonic clock.
    zero: float
    trace: Trace

    @property
    def leads(self) -> bool:
        """Return whether this is rank 0."""
        return self.coordinator.rank == 0

    @property
    def shares(self) -> bool:
        """Return whether the ranks have one table in common."""
        return self.trace.go == "share"

    @property
    def is_unguarded(self) -> bool:
        """Return whether FlashInfer must tune inside the forward, as without this package."""
        return self.trace.go == "unguarded"

    @property
    def leaves(self) -> str:
        """Return why this rank is about to end although it has not failed, or an empty string."""
        shutdown = self.trace.shutdown
        is_asked = shutdown is not None and shutdown.is_requested
        return "SIGTERM: it ends, and with it the job" if is_asked else ""

    @property
    def store(self) -> Store | None:
        """Return this node's tables where this rank reads and writes them."""
        return None if self.trace.is_redundant else self.files.store

    @property
    def may_write(self) -> bool:
        """Return whether this rank writes its node's files in this session."""
        return self.store is not None and self.opened.mode == "on"

    def warn(self, *texts: str) -> None:
        """Keep warnings for the report; rank 0 logs those that its store has not ``logged``."""
        self.trace.warnings.extend(texts)
        for text in texts if self.leads else ():
            if text not in self.trace.logged:
                logger.warning("warmup-plugin: %s", text)

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the body's time to a step, and tell the others that this rank is at it."""
        self.coordinator.note(step)
        self.progress.step(step)
        began = time.monotonic()
        try:
            yield
        finally:
            self.took(step, began)

    def took(self, step: str, began: float) -> None:
        """Add the time since ``began`` to a step."""
        taken, trace = time.monotonic() - began, self.trace
        trace.seconds[step] = trace.seconds.get(step, 0.0) + taken
        trace.spans.append(Span(step, began - self.zero, taken))

    @contextlib.contextmanager
    def in_forward(self) -> Iterator[None]:
        """Run the engine's forward in the body; what it raises is its own."""
        with self.coordinator.in_forward():
            try:
                yield
            except BaseException as error:
                self.trace.forward_error = error
                raise

    @contextlib.contextmanager
    def failing_as_data(self) -> Iterator[Failure]:
        """Make what fails in the body a value, to be told with the next vote; no round in it."""
        found = Failure()
        try:
            yield found
        except RankLostError:
            raise
        except WarmupError as error:
            found.reason = str(error)
        except Exception as error:
            logger.exception("warmup-plugin: rank %d: the session goes on:", self.coordinator.rank)
            found.reason = f"{type(error).__name__}: {error}"[:1000]

    def serve_defaults(self, reason: str) -> None:
        """Take this session's entries out of the tuner, as all ranks do now."""
        self.trace.go, self.trace.reason = "defaults", reason
        self.installed.put_back()
        self.warn(f"all ranks serve FlashInfer's defaults: {reason}")
