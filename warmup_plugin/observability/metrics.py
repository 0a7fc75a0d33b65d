# SPDX-License-Identifier: Apache-2.0
"""Figures of the last start for Prometheus: their names, labels and values.

Owns what dashboards and alerts ask for. `exposition.py` says when figures are told, `textfile.py`
and `gauges.py` where they are shown; names, labels and help are the same in both places. Every
family is a gauge of the last start, with the labels `COMMON` before its own; a label's value that
is not known is empty, which to Prometheus is a label that is not there. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from warmup_plugin.cache.gains import over_default
from warmup_plugin.observability.report import OUTCOMES, Agreement, WarmupReport

PREFIX: Final = "warmup_plugin_"
#: ``host`` is the pod's name where one is given, ``device`` the first rank's GPU as CUDA numbers it
#: on that host, ``session`` which of the warm-ups of its process it is: an engine may have several.
COMMON: Final = ("engine", "host", "device", "session")

#: What became of a start: the agreements of a receipt, but for `off`, which shows nothing; and what
#: has none: a start that goes on (or whose process has ended without a word), that has failed, that
#: was left to the engine.
State = Agreement | Literal["warming", "failed", "left_alone"]
STATES: Final = (
    "warming", "certified", "partial", "none", "defaults", "unguarded", "failed", "left_alone",
)  # fmt: skip
#: Of these a zero is shown as well. Steps as in a receipt, of which not every start takes all.
STEPS: Final = (
    "open", "read", "agree", "survey", "try", "plan", "wait", "tune", "share", "prepare",
    "publish", "check", "certify", "unguarded",
)  # fmt: skip
#: What a start got from the fleet; `off` where none was asked.
FLEET: Final = ("off", "fetched", "kept", "absent", "refused", "failed")
#: Whether it was the last start's turn to tune for the fleet; `none` where that was not asked.
LEASES: Final = ("none", "held", "adopted", "free", "tried", "over", "failed", "lost")


class Family(NamedTuple):
    """One metric: its help and the labels of its own."""

    help: str
    labels: tuple[str, ...] = ()


#: The node exporter drops figures of one name whose help differs between two files of a machine:
#: a help text that is changed is a metric renamed.
FAMILIES: Final = {
    "info": Family(
        "What the last warm-up ran with.",
        ("engine_version", "plugin_version", "flashinfer_version", "mode", "strategy", "identity"),
    ),
    "state": Family("1 for what became of the last start, 0 for all else.", ("state",)),
    "success": Family("1 where the last start has ended with a receipt."),
    "warm": Family("1 where the last start has found every winner that it serves."),
    "started_timestamp_seconds": Family("When the last start began."),
    "finished_timestamp_seconds": Family("When the last start was over, 0 until then."),
    "ranks": Family("Ranks of the job, 0 where that is not known."),
    "tasks": Family("Tasks of this node's first rank, by what became of them.", ("outcome",)),
    "tactics_timed": Family("Tactics of tasks that this node's first rank has timed."),
    "passed_through_tactics_timed": Family("Tactics that ops left to themselves have timed."),
    "step_seconds": Family("Seconds by step on this node's first rank.", ("step",)),
    "bytes": Family("Bytes between this node's first rank and others.", ("direction",)),
    "waited_seconds": Family("Seconds that ranks waited for the last one, longest waits."),
    "fleet": Family("1 for what the fleet gave the last start, 0 for all else.", ("state",)),
    "fleet_seconds": Family("Seconds that the last start waited for the fleet."),
    "fleet_lease": Family("1 for what became of the fleet's lease, 0 for all else.", ("state",)),
    "fleet_lease_seconds": Family("Seconds that the last start waited for a host that tuned."),
    "fleet_checks": Family("Winners of the fleet timed by the last start.", ("result",)),
    "speed_over_default": Family("Default's time over the winner's, geometric mean."),
}


class Sample(NamedTuple):
    """One value; the labels' values are in the order of their names in `FAMILIES`."""

    name: str
    labels: tuple[str, ...]
    value: float


def samples(state: State, report: WarmupReport, started: float) -> Iterator[Sample]:
    """Return the figures of a start, family by family. ``report``: what of it is known.

    Every label set is there in every state, so that a series goes on from start to start.
    """
    yield Sample("info", _info(report), 1)
    for name in STATES:
        yield Sample("state", (name,), float(name == state))
    is_over = state not in ("warming", "failed", "left_alone")
    yield Sample("success", (), float(is_over))
    yield Sample("warm", (), float(is_over and report.is_warm))
    yield Sample("started_timestamp_seconds", (), round(started, 3))
    yield Sample("finished_timestamp_seconds", (), round(report.at, 3))
    yield Sample("ranks", (), report.world_size)
    for name in OUTCOMES:
        yield Sample("tasks", (name,), report.tasks.get(name, 0))
    yield Sample("tactics_timed", (), report.tactics_of_tasks)
    yield Sample("passed_through_tactics_timed", (), report.passed_through_tactics)
    for name in STEPS:
        yield Sample("step_seconds", (name,), report.seconds.get(name, 0.0))
    yield Sample("bytes", ("sent",), report.bytes_sent)
    yield Sample("bytes", ("received",), report.bytes_received)
    waits = sum(row.seconds for row in report.waited)
    yield Sample("waited_seconds", (), round(waits, 4))
    given = report.fleet.state or "off"
    for name in FLEET:
        yield Sample("fleet", (name,), float(name == given))
    yield Sample("fleet_seconds", (), report.fleet.seconds)
    lease = report.fleet.lease or "none"
    for name in LEASES:
        yield Sample("fleet_lease", (name,), float(name == lease))
    yield Sample("fleet_lease_seconds", (), report.fleet.waited)
    checks = report.fleet.checks
    slower = sum(row.is_slower for row in checks)
    failed = sum(bool(row.reason) for row in checks)
    results = {"holds": len(checks) - slower - failed, "slower": slower, "failed": failed}
    for result, number in results.items():
        yield Sample("fleet_checks", (result,), number)
    if gain := over_default(report.winners):  # nothing was raced: there is no such figure
        yield Sample("speed_over_default", (), round(gain, 4))


def label_names(name: str) -> tuple[str, ...]:
    """Return the names of all labels of a family, those of every family first."""
    return (*COMMON, *FAMILIES[name].labels)


def _info(report: WarmupReport) -> tuple[str, ...]:
    return (
        report.engine_version, report.plugin_version, report.flashinfer_version, report.mode,
        report.strategy, report.identity[:12],
    )  # fmt: skip
