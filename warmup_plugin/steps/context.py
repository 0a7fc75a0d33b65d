# SPDX-License-Identifier: Apache-2.0
"""One rank's part in one session: what all steps share, opened together and let go of together.

Owns the first meeting (who is here, how far they can share), the clock of the steps, the warnings.
`open_job` raises `SessionError` on every rank or on none.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from warmup_plugin.cache.journal import Journal
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
    from warmup_plugin.runtime.sigterm import Shutdown  # noqa: TC004  # of a struct that is never decoded
    from warmup_plugin.steps.fleet import Fleet  # noqa: TC004  # of a struct that is never decoded

logger = logging.getLogger("warmup_plugin")


class Job(msgspec.Struct):
    """What the steps of one rank have in common. ``opened``: the decision of the first round."""

    options: Options
    coordinator: Rendezvous
    opened: OpenDecision
    identity: Identity
    ops: KnownOps
    stamp: Mapping[str, str]
    installed: Installed
    seen: Observations
    stack: contextlib.ExitStack
    figures: Figures
    placement: Placement | None = None
    #: Its directory, where it may be used.
    directory: Path | None = None
    store: Store | None = None
    journal: Journal = msgspec.field(default_factory=lambda: Journal(None, "", driver="", stamp={}))
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    warnings: list[str] = msgspec.field(default_factory=list)
    logged: set[str] = msgspec.field(default_factory=set)
    timeline: list[Span] = msgspec.field(default_factory=list)
    failure: str = ""
    forward_error: BaseException | None = None
    #: Whether the last record is there, after which nobody waits for anybody any more.
    is_settled: bool = False
    #: Who owns the shutdown signal, once this rank has tuned.
    shutdown: Shutdown | None = None
    #: For the receipt. ``zero``: when the first meeting was over, on the monotonic clock; ``spans``
    #: of the steps count from there. ``read``: what became of each file. ``lenders``: borrowed
    #: keys, by whom. ``waited``: for other engines. ``rows``, ``winners``: of all ranks, on rank 0.
    zero: float = 0.0
    spans: list[Span] = msgspec.field(default_factory=list)
    read: list[FileRead] = msgspec.field(default_factory=list)
    lenders: Mapping[str, str] = msgspec.field(default_factory=dict)
    waited: list[Wait] = msgspec.field(default_factory=list)
    progress: ProgressLine = msgspec.field(default_factory=lambda: ProgressLine(1))
    rows: list[RankStats] = msgspec.field(default_factory=list)
    winners: list[Winner] = msgspec.field(default_factory=list)
    #: On rank 0, where a fleet is set.
    fleet: Fleet | None = None

    @property
    def leads(self) -> bool:
        """Return whether this is rank 0."""
        return self.coordinator.rank == 0

    @property
    def shares(self) -> bool:
        """Return whether the ranks have one table in common."""
        return self.opened.go == "share"

    @property
    def is_unguarded(self) -> bool:
        """Return whether FlashInfer must tune inside the forward, as without this package."""
        return self.opened.go == "unguarded"

    @property
    def leaves(self) -> str:
        """Return why this rank is about to end although it has not failed, or an empty string."""
        is_asked = self.shutdown is not None and self.shutdown.is_requested
        return "SIGTERM: it ends, and with it the job" if is_asked else ""

    @property
    def may_write(self) -> bool:
        """Return whether this rank writes its node's files in this session."""
        return self.store is not None and self.opened.mode == "on"

    def warn(self, *texts: str) -> None:
        """Keep warnings for the report; rank 0 logs those that its store has not ``logged``."""
        self.warnings.extend(texts)
        for text in texts if self.leads else ():
            if text not in self.logged:
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
            taken = time.monotonic() - began
            self.seconds[step] = self.seconds.get(step, 0.0) + taken
            self.spans.append(Span(step, began - self.zero, taken))

    @contextlib.contextmanager
    def in_forward(self) -> Iterator[None]:
        """Run the engine's forward in the body; what it raises is its own."""
        with self.coordinator.in_forward():
            try:
                yield
            except BaseException as error:
                self.forward_error = error
                raise

    @contextlib.contextmanager
    def failing_as_data(self) -> Iterator[None]:
        """Make what fails in the body a part of the next vote, `failure`; no meeting in it."""
        try:
            yield
        except RankLostError:
            raise
        except WarmupError as error:
            self.failure = str(error)
        except Exception as error:
            logger.exception("warmup-plugin: rank %d: the session goes on:", self.coordinator.rank)
            self.failure = f"{type(error).__name__}: {error}"[:1000]

    def take_failure(self) -> str:
        """Return what has failed, once; an empty string where nothing has."""
        failure, self.failure = self.failure, ""
        return failure

    def serve_defaults(self, reason: str) -> None:
        """Take this session's entries out of the tuner, as all ranks do now."""
        self.opened = msgspec.structs.replace(self.opened, go="defaults", reason=reason)
        self.installed.put_back()
        self.warn(f"all ranks serve FlashInfer's defaults: {reason}")
