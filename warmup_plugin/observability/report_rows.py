# SPDX-License-Identifier: Apache-2.0
"""The rows of a receipt: files, ranks, tuned tasks, waits, the fleet's answer.

Owns their fields; `report.py` has the receipt around them. Fields have the names of their keys in
the file but `Wait.for_whom`, whose key is ``for``. A row is read strictly: a receipt in which one
lacks a field that every version has written, or has another type, is no receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Span(NamedTuple):
    """A step, a wait or a task in time; a row of three values in the file.

    Attributes:
        name: the step, the round that was waited in, or the task.
        began: its begin in seconds, on a clock of the rank's own.
        seconds: how long it took.
    """

    name: str
    began: float
    seconds: float


class FileRead(msgspec.Struct, frozen=True):
    """What became of one file of a node.

    Attributes:
        path: the table's path.
        entries: the number of its entries; 0 where it was not used.
        reason: why it was not used, or not trusted; empty where it was.
        generation: how often the table has been written; None where no manifest says so.
        complete: whether the table answered all that the engine asked for last.
    """

    path: str
    entries: int = 0
    reason: str = ""
    generation: int | None = None
    complete: bool = False


class RankStats(msgspec.Struct, frozen=True):
    """What one rank did.

    Attributes:
        rank: the rank.
        steps: its steps in their order; begins count from the end of its first round.
        waits: its waits, by the round; begins as above.
        tactics_timed: the number of tactics that FlashInfer timed on this rank.
        passed_through_tactics: how many of these were timed by ops that are passed through.
        inputs_synthesised: the number of inputs that FlashInfer made on this rank.
        bytes_sent: bytes that this rank sent to other ranks.
        bytes_received: bytes that this rank received from other ranks.
        ops: its tasks by op, and by what became of them.
    """

    rank: int
    steps: tuple[Span, ...]
    waits: tuple[Span, ...] = ()
    tactics_timed: int = 0
    passed_through_tactics: int = 0
    inputs_synthesised: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    ops: Mapping[str, Mapping[str, int]] = msgspec.field(default_factory=dict)


class Winner(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task that one rank has tuned. Fields from ``launches`` on are of its race, None without.

    Attributes:
        task: the task's id, 32 hex digits.
        op: the custom op.
        bucket: its dynamic dimensions, ``64`` or ``64x8``.
        rank: the rank that tuned it.
        began: its begin in seconds since the end of the rank's first round.
        seconds: the time that tuning it took.
        runner: the class of the winner's runner; empty without a winner.
        ms: milliseconds of one call of what serves; None where that has not run.
        default_ms: milliseconds of one call of FlashInfer's default; None where it did not race.
        reason: why there is no winner; empty where there is one.
        launches: the number of launches of the race.
        device_ms: milliseconds that these took on the device.
        share: their time over that of FlashInfer's sweep, a fraction.
        noise: the standard error of one measurement over its mean, a fraction.
        confidence: how often one of the ``tied`` would win again, a fraction.
        tied: the number of tactics that the race could not tell apart, the winner among them.
    """

    task: str
    op: str
    bucket: str
    rank: int
    began: float
    seconds: float
    runner: str
    ms: float | None
    default_ms: float | None
    reason: str
    launches: int | None = None
    device_ms: float | None = None
    share: float | None = None
    noise: float | None = None
    confidence: float | None = None
    tied: int | None = None


class Wait(msgspec.Struct, frozen=True):
    """Who waited for whom.

    Attributes:
        at: the round, or ``wait`` for another engine or another session of the process.
        ranks: the ranks that waited, in their order.
        for_whom: the rank that came last, or what else was waited for, in words.
        seconds: the longest of these waits.
    """

    at: str
    ranks: tuple[int, ...]
    for_whom: int | str = msgspec.field(name="for")
    seconds: float


class FleetCheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """A winner of the fleet that was timed on this host.

    Attributes:
        task: the task's id, 32 hex digits.
        op: the custom op.
        bucket: its dynamic dimensions, ``64`` or ``64x8``.
        runner: the class of the winner's runner.
        tactic: its tactic, as text.
        ms: milliseconds of one call of the winner; None where it was not timed.
        default_ms: milliseconds of one call of FlashInfer's default; None as above.
        is_slower: whether the default is faster by more than the margin.
        host: the host's name.
        gpu: the GPU's name.
        reason: why it was not timed; empty where it was.
    """

    task: str
    op: str
    bucket: str
    runner: str = ""
    tactic: str = ""
    ms: float | None = None
    default_ms: float | None = None
    is_slower: bool = False
    host: str = ""
    gpu: str = ""
    reason: str = ""


class FleetAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the fleet gave a start, and what it is given. Without a fleet every field is empty.

    Attributes:
        url: where the fleet is.
        role: ``read`` or ``write``.
        state: ``fetched``, ``kept``, ``absent``, ``refused`` or ``failed``.
        reason: why it gave nothing; empty where it did.
        bundle: the sha256 of its bundle, 64 hex digits.
        generation: how often the bundle's table has been written.
        entries: the number of the bundle's entries.
        complete: whether the bundle's table answered all that an engine asked for.
        bytes: the bundle's size, where it was fetched.
        seconds: how long the start waited for the fleet.
        directory: where the bundle's files lie on this host.
        publishes: when this start's table is given to the fleet, or ``no`` and why.
        lease: whether it was this start's turn to tune: ``held``, ``adopted``, ``free``, ``tried``,
            ``over``, ``failed`` or ``lost``; empty where it was not asked.
        lease_reason: why it was not, or was taken over; empty otherwise.
        holder: the host that it has waited for, in words; empty where it has not.
        waited: how many seconds it has waited for that host.
        checks: its winners that were timed on this host.
    """

    url: str = ""
    role: str = ""
    state: str = ""
    reason: str = ""
    bundle: str = ""
    generation: int = 0
    entries: int = 0
    complete: bool = False
    bytes: int = 0
    seconds: float = 0.0
    directory: str = ""
    publishes: str = ""
    lease: str = ""
    lease_reason: str = ""
    holder: str = ""
    waited: float = 0.0
    checks: tuple[FleetCheck, ...] = ()
