# SPDX-License-Identifier: Apache-2.0
"""The receipt of a warm-up, as JSON and as one log line.

Owns the words for the outcome of a session. Pure; `store` keeps the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from warmup_plugin.observability.report_rows import (
    FileRead,
    FleetAnswer,
    RankStats,
    Span,
    Wait,
    Winner,
)
from warmup_plugin.runtime.process_info import ProcessCard

#: certified: all ranks serve the certificate's tactics. none: each rank its own. defaults: all
#: ranks FlashInfer's. unguarded: FlashInfer tuned inside the forward. off: nothing was done.
#: partial: as certified, but for the tasks named in ``differing``, of which each rank has its own.
Agreement = Literal["certified", "partial", "none", "defaults", "unguarded", "off"]
#: The outcomes of a task, in the order of the log line.
OUTCOMES = (
    "from_cache", "tuned", "received", "adopted", "default", "unshared", "failed", "left",
)  # fmt: skip
#: The outcomes that a warm start does not have.
_NEW = ("tuned", "received", "default", "failed", "left")


class WarmupReport(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's receipt of one session.

    A task is a custom op at one bucket. Times are seconds. A begin is in seconds since the rank's
    first round was over, on its own clock.

    Attributes:
        engine: the engine's name, as the runner gave it.
        engine_version: the engine's version, as the runner gave it.
        plugin_version: the version of this package.
        flashinfer_version: the version of the installed FlashInfer.
        rank: the rank whose receipt this is.
        world_size: the number of ranks in the session.
        mode: rank 0's setting, which counts for all ranks.
        strategy: rank 0's setting, which counts for all ranks.
        agreement: what the ranks serve; `Agreement` explains the words.
        reason: why there is no certificate; empty where there is one.
        certificate: the sha256 over what the tuners of all ranks serve, 64 hex digits.
        identity: the sha256 of the config factors, 64 hex digits.
        path: the table of this node; empty where the session worked in memory only.
        published: paths of the tables that this start wrote.
        tasks: this rank's tasks by outcome: ``seen``, and of these ``from_cache``, ``tuned`` (on
            this rank), ``received`` (from the rank that tuned it), ``adopted`` (an entry of another
            table answers), ``default``, ``unshared`` (each rank tunes it for itself), ``failed``
            (no winner this time), ``left`` (for the next start).
        ops: the same counts by custom op.
        passed_through: op -> reason, of ops that are called as they are.
        skipped_ops: ops on the skip list.
        unshared: task -> reason, of tasks whose winners cannot be shared.
        differing: tasks of which ranks serve different tactics.
        tactics_timed: the number of tactics that FlashInfer timed on this rank.
        passed_through_tactics: how many of these were timed by ops that are passed through.
        inputs_synthesised: the number of inputs that FlashInfer made on this rank.
        passed_through_inputs: how many of these were made for ops that are passed through.
        seconds: seconds by step, on this rank.
        timeline: each task tuned here; a begin is on the machine's monotonic clock.
        costs: seconds by task, of every task that the job tuned; on rank 0.
        race: of the tasks raced on this rank: ``tasks``, ``launches``, ``device_s``, and
            ``sweep_s``, the seconds that FlashInfer's sweep would have taken.
        bytes_sent: bytes that this rank sent to other ranks.
        bytes_received: bytes that this rank received from other ranks.
        met_on: the store on which the ranks met: ``loopback``, ``address A`` or ``job store``;
            empty for a single rank.
        warnings: the warnings that were logged.
        at: the end of the session in unix seconds.
        read: one row for each file of this node.
        adopted_from: table -> number of the job's tasks that it answers.
        ranks: one row for each rank, on rank 0.
        winners: one row for each task that was tuned, on rank 0.
        waited: one row for each wait, on rank 0.
        process: this process; None in receipts that do not say so.
        factors: the config factors, on rank 0.
        fleet: what the fleet gave or why not, on rank 0; empty where no fleet is asked.
    """

    engine: str
    engine_version: str
    plugin_version: str
    flashinfer_version: str
    rank: int
    world_size: int
    mode: str
    strategy: str
    agreement: Agreement
    reason: str = ""
    certificate: str = ""
    identity: str = ""
    path: str = ""
    published: tuple[str, ...] = ()
    tasks: Mapping[str, int] = msgspec.field(default_factory=dict)
    ops: Mapping[str, Mapping[str, int]] = msgspec.field(default_factory=dict)
    passed_through: Mapping[str, str] = msgspec.field(default_factory=dict)
    skipped_ops: tuple[str, ...] = ()
    unshared: Mapping[str, str] = msgspec.field(default_factory=dict)
    differing: tuple[str, ...] = ()
    tactics_timed: int = 0
    passed_through_tactics: int = 0
    inputs_synthesised: int = 0
    passed_through_inputs: int = 0
    seconds: Mapping[str, float] = msgspec.field(default_factory=dict)
    timeline: tuple[Span, ...] = ()
    costs: Mapping[str, float] = msgspec.field(default_factory=dict)
    race: Mapping[str, float] = msgspec.field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    met_on: str = ""
    warnings: tuple[str, ...] = ()
    at: float = 0.0
    read: tuple[FileRead, ...] = ()
    adopted_from: Mapping[str, int] = msgspec.field(default_factory=dict)
    ranks: tuple[RankStats, ...] = ()
    winners: tuple[Winner, ...] = ()
    waited: tuple[Wait, ...] = ()
    process: ProcessCard | None = None
    factors: Mapping[str, Any] = msgspec.field(default_factory=dict)
    fleet: FleetAnswer = msgspec.field(default_factory=FleetAnswer)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values.

        Returns:
            Every field by name, and ``schema``, the number of the form.
        """
        values: dict[str, Any] = msgspec.to_builtins(self, str_keys=True, enc_hook=dict)
        return {"schema": 1, **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WarmupReport:
        """Return the receipt of JSON values; fields of a newer schema are left out.

        Args:
            data: a document that `to_json` made, of this or of another version of this package.

        Returns:
            The receipt; a field that the document does not have has its default.

        Raises:
            ValueError: a field is missing that every version writes, or has another type.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"no receipt: {error}") from error

    @property
    def total_seconds(self) -> float:
        """The time of the whole session in seconds."""
        return sum(self.seconds.values())

    @property
    def tactics_of_tasks(self) -> int:
        """Return how many tactics were timed of tasks, those of ops left to themselves aside."""
        return self.tactics_timed - self.passed_through_tactics

    @property
    def inputs_of_tasks(self) -> int:
        """Return how many inputs were synthesised for tasks."""
        return self.inputs_synthesised - self.passed_through_inputs

    @property
    def is_warm(self) -> bool:
        """Whether every winner that this rank serves was there before: no task was tuned for it."""
        new = sum(self.tasks.get(name, 0) for name in _NEW)
        is_shared = self.agreement in ("certified", "partial")
        return is_shared and not self.tactics_of_tasks and not new

    def line(self) -> str:
        """Return the line for the log.

        Returns:
            Tasks by outcome, tactics timed, seconds, agreement and path, without a line break.
        """
        counts = self.tasks
        parts = [
            f"{counts.get('from_cache', 0)} of {counts.get('seen', 0)} tasks from cache",
            *(f"{counts[name]} {name}" for name in OUTCOMES[1:] if counts.get(name)),
            f"{self.tactics_of_tasks} tactics timed",
        ]
        if self.passed_through_tactics:
            parts.append(f"{self.passed_through_tactics} more by ops left to themselves")
        found = self.agreement + (f" {self.certificate[:12]}" if self.certificate else "")
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"warmup-plugin {self.plugin_version} [{self.engine} {self.engine_version}, FlashInfer "
            f"{self.flashinfer_version}, {self.world_size} rank(s)]: {', '.join(parts)} in "
            f"{self.total_seconds:.2f} s; agreement: {found}{why}; {self.path or 'memory only'}"
        )
