# SPDX-License-Identifier: Apache-2.0
"""What a warm-up did: the receipt, as JSON and as one log line.

Owns the words in which a session's outcome is told. Pure; `store` keeps the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

#: certified: all ranks serve the certificate's tactics. none: each rank its own. defaults: all
#: ranks FlashInfer's. unguarded: FlashInfer tuned inside the forward. off: nothing was done.
#: partial: as certified, but for the tasks named in ``differing``, of which each rank has its own.
Agreement = Literal["certified", "partial", "none", "defaults", "unguarded", "off"]
_TUPLES = (
    "published", "skipped_ops", "differing", "warnings", "read", "ranks", "winners", "waited",
)  # fmt: skip
#: What may become of a task, in the order of the log line.
OUTCOMES = (
    "from_cache", "tuned", "received", "adopted", "default", "unshared", "failed", "left",
)  # fmt: skip
#: Those of which a warm start has none: they were not there before it.
_NEW = ("tuned", "received", "default", "failed", "left")


@dataclass(frozen=True, kw_only=True)
class WarmupReport:
    """One rank's receipt of one session.

    ``tasks`` counts this rank's tasks by what became of them: seen, from_cache, tuned (here),
    received (from the rank that tuned it), adopted (another's entry answers), default, unshared
    (each rank tunes for itself), failed (no winner this time), left (to the next start).
    ``passed_through_tactics``, ``passed_through_inputs``: those of the tactics timed, and of the
    inputs synthesised, that are of ops left to themselves.
    ``seconds`` is by step, ``ops`` by custom op. ``timeline`` has a row for each task tuned here:
    [label, began, seconds] on the machine's monotonic clock. ``costs``, on rank 0: seconds by label
    of every task the job has tuned. ``race``: of the tasks that this rank has raced their number,
    launches, seconds on the device, and what FlashInfer's sweep of them would have taken, reckoned
    from the times measured. ``at`` is the time of day, unix seconds. ``read``: what became
    of each file of this node; ``adopted_from``: tasks that another table answers, by that table;
    ``differing``: labels of the tasks of which ranks serve different tactics; ``process``: what
    tells this process from others on its machine; ``met_on``: the store on which the ranks have met
    (loopback, address A, job store), empty for a single rank.

    On rank 0 alone, about all ranks: ``ranks`` has a row for each (steps, waits, counts; times in
    seconds since the first meeting was over), ``winners`` one for each task that was tuned, and
    ``waited`` says who waited for whom, at which meeting. ``fleet``: what the fleet gave, or why
    not, and whether this start's table is given to it; empty where no fleet is asked.
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
    tasks: Mapping[str, int] = field(default_factory=dict)
    ops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    passed_through: Mapping[str, str] = field(default_factory=dict)
    skipped_ops: tuple[str, ...] = ()
    unshared: Mapping[str, str] = field(default_factory=dict)
    differing: tuple[str, ...] = ()
    tactics_timed: int = 0
    passed_through_tactics: int = 0
    inputs_synthesised: int = 0
    passed_through_inputs: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    timeline: tuple[tuple[str, float, float], ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    race: Mapping[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    met_on: str = ""
    warnings: tuple[str, ...] = ()
    at: float = 0.0
    read: tuple[Mapping[str, Any], ...] = ()
    adopted_from: Mapping[str, int] = field(default_factory=dict)
    ranks: tuple[Mapping[str, Any], ...] = ()
    winners: tuple[Mapping[str, Any], ...] = ()
    waited: tuple[Mapping[str, Any], ...] = ()
    process: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Any] = field(default_factory=dict)
    fleet: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values, its schema's number first."""
        import msgspec  # whoever only imports this package has no receipt to write

        values: dict[str, Any] = msgspec.to_builtins(self, str_keys=True, enc_hook=dict)
        return {"schema": 1, **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WarmupReport:
        """Return the receipt of JSON values; fields of a newer schema are left out."""
        known = {row.name for row in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        for name in _TUPLES:
            values[name] = tuple(values.get(name, ()))
        values["timeline"] = tuple((n, b, s) for n, b, s in values.get("timeline", ()))
        return cls(**values)

    @property
    def total_seconds(self) -> float:
        """Return the whole session's time."""
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
        """Return whether all that this rank serves was there before: no task was tuned for it."""
        new = sum(self.tasks.get(name, 0) for name in _NEW)
        is_shared = self.agreement in ("certified", "partial")
        return is_shared and not self.tactics_of_tasks and not new

    def line(self) -> str:
        """Return the one line for the log."""
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
