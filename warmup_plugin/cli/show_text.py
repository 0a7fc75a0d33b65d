# SPDX-License-Identifier: Apache-2.0
"""The words of `warmup-plugin show`: one function per kind of file.

Owns how a file is told about in a terminal: what it is and whether it can be used first, then what
is in it by op, then the few tasks that people look for. Takes what `reading` found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from warmup_plugin.cache.file_key import fields_of, shapes_of
from warmup_plugin.cache.manifest import Manifest, Outcome, TaskRecord
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.stamps import INDETERMINATE, by_content
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.cli import output
from warmup_plugin.cli.load import TableFile, factors_in_words
from warmup_plugin.cli.output import print_rows
from warmup_plugin.identity import Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss

if TYPE_CHECKING:
    from rich.console import Console

#: So many tasks are shown unless all are asked for.
FEW = 5


def print_miss(out: Console, kind: str, path: Path, miss: Miss) -> None:
    output.print_path(out, path)
    print_rows(out, [(kind, output.words("cannot be used", "bold red"), miss.reason)])


def print_table(out: Console, file: TableFile, *, all_tasks: bool) -> None:
    output.print_path(out, file.path)
    print_rows(out, _about(file))
    manifest, table = file.manifest, file.table
    tasks = manifest.tasks if isinstance(manifest, Manifest) else {}
    if isinstance(table, Table):
        out.print()
        _print_ops(out, table, tasks)
        _print_tasks(out, table, tasks, most=len(tasks) if all_tasks else FEW)


def _about(file: TableFile) -> list[tuple[str, output.Cell]]:
    table = file.table
    return [
        ("table", _about_table(file)),
        *([("stamp", _stamp(table.stamp))] if isinstance(table, Table) else []),
        ("manifest", _about_manifest(file)),
        ("identity", _about_identity(file)),
    ]


def _bad(reason: str) -> output.Cell:
    return output.words(f"cannot be used: {reason}", "red")


def _about_table(file: TableFile) -> output.Cell:
    if isinstance(file.table, Miss):
        return _bad(file.table.reason)
    entries = output.plural(len(file.table.entries), "entry", "entries")
    ops = output.plural(len(ops_of(file.table)), "op")
    return f"{entries} of {ops}, {output.size(file.bytes)}, sha256 {file.sha256[: output.SHORT]}"


def _stamp(stamp: Mapping[str, str]) -> str:
    stamp = by_content(stamp)
    names = {name: name.removesuffix("_version").replace("_", "-") for name in stamp}
    known = [f"{names[n]} {value}" for n, value in stamp.items() if value not in INDETERMINATE]
    unknown = [names[n] for n, value in stamp.items() if value in INDETERMINATE]
    return "; ".join(
        [", ".join(known) or "nothing", *([f"unknown: {', '.join(unknown)}"] if unknown else [])]
    )


def _about_manifest(file: TableFile) -> output.Cell:
    manifest = file.manifest
    if isinstance(manifest, Miss):
        if manifest.kind == "absent":
            return "none: entries answer exactly matching tasks only"
        return _bad(manifest.reason)
    if not file.vouched:
        return _bad(f"it vouches for a table of sha256 {manifest.table_sha256[: output.SHORT]}")
    complete = "complete" if manifest.complete else "incomplete"
    engine = f"{manifest.engine} {manifest.engine_version}".strip()
    if manifest.tasks_miss:
        return _bad(f"its tasks: {manifest.tasks_miss.reason}")
    loose = f", {len(manifest.loose)} entries not its own" if manifest.loose else ""
    return f"sha256 valid, {complete}, generation {manifest.generation}, by {engine}{loose}"


def _about_identity(file: TableFile) -> output.Cell:
    identity = file.identity
    if isinstance(identity, Miss):
        return f"? ({IDENTITY_NAME}: {identity.reason})"
    if isinstance(file.manifest, Manifest) and file.manifest.identity != identity.digest:
        vouched = file.manifest.identity[: output.SHORT]
        return _bad(f"{IDENTITY_NAME} is {identity.digest[: output.SHORT]}, the manifest {vouched}")
    return f"{identity.digest[: output.SHORT]}: {factors_in_words(identity.factors)}"


def _print_ops(out: Console, table: Table, tasks: Mapping[str, TaskRecord]) -> None:
    outcomes: tuple[Outcome, ...] = ("tuned", "adopted", "default", "unstable")
    counts = Counter((task.op, task.outcome) for task in tasks.values())
    shown = [outcome for outcome in outcomes if any(counts[op, outcome] for op, _ in counts)]
    entries = ops_of(table)
    rows = [
        (
            op,
            str(entries.get(op, 0)),
            *(str(counts[op, outcome]) for outcome in shown),
            _ms(op, tasks),
        )
        for op in sorted({*entries, *(op for op, _ in counts)})
    ]
    header = ("op", "entries", *shown, "ms")
    print_rows(out, rows, header=header, right=("entries", *shown))


def _ms(op: str, tasks: Mapping[str, TaskRecord]) -> str:
    """Return the times of an op's winners, from the fastest to the slowest."""
    found = sorted(task.ms for task in tasks.values() if task.op == op and task.ms is not None)
    if not found:
        return "-"
    return f"{found[0]:.3g}" if len(found) == 1 else f"{found[0]:.3g} to {found[-1]:.3g}"


def _print_tasks(out: Console, table: Table, tasks: Mapping[str, TaskRecord], *, most: int) -> None:
    if not tasks:
        return
    # What has no winner comes first, then the slowest: that is what people look for.
    ordered = sorted(tasks.values(), key=lambda t: (t.outcome == "tuned", -(t.ms or 0.0), t.op))
    rows = [_task_row(table, task) for task in ordered[:most]]
    out.print()
    header = ("ms", "default", "rank", "winner", "task")
    print_rows(out, rows, header=header, right=("ms", "default", "rank"))
    if len(ordered) > most:
        rest = f"  {most} of {len(ordered)} tasks, the slowest; --tasks shows all"
        out.print(rest, style="dim")


def _task_row(table: Table, task: TaskRecord) -> tuple[str, ...]:
    keys = [key for each in task.keys for key in each]
    winner = next((table.entries[key] for key in keys if key in table.entries), None)
    shapes = shapes_of(keys[0]) if keys else "?"
    ms, default_ms = ("-" if t is None else f"{t:.3g}" for t in (task.ms, task.default_ms))
    rank = "-" if task.rank is None else str(task.rank)
    return ms, default_ms, rank, _winner(task, winner), f"{task.op} {shapes}"


def _winner(task: TaskRecord, winner: Entry | None) -> str:
    tactic = "default" if winner and winner.tactic == -1 else winner and winner.tactic
    what = f"{winner.runner} {tactic}" if winner else "none"
    how = "" if task.outcome == "tuned" else f" ({task.outcome})"
    if task.tied is not None and task.tied > 1:
        how += f" (tied with {output.plural(task.tied - 1, 'other')})"
    # Of a default that nothing beats the two times say why.
    why = f": {task.reason}" if task.reason and tactic != "default" else ""
    return f"{what}{how}{why}"


def print_report(out: Console, path: Path, report: WarmupReport) -> None:
    output.print_path(out, path)
    seconds = ", ".join(f"{step} {taken:.2f}" for step, taken in report.seconds.items())
    tasks = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in report.tasks.items() if n)
    why = f" ({report.reason})" if report.reason else ""
    timed = f"{report.tactics_of_tasks} tactics timed, {report.inputs_of_tasks} inputs synthesised"
    if report.passed_through_tactics:
        timed += f"; {report.passed_through_tactics} tactics more by ops left to themselves"
    engine = f"{report.engine} {report.engine_version}, FlashInfer {report.flashinfer_version}"
    job = f"rank {report.rank} of {report.world_size}, {engine}"
    rows = [
        ("job", job),
        ("mode", f"{report.mode}, strategy {report.strategy}"),
        ("tasks", tasks or "none"),
        ("measured", timed),
        *([("raced", _raced(report.race))] if report.race else []),
        ("agreement", f"{report.agreement}{why} {report.certificate[: output.SHORT]}".rstrip()),
        ("seconds", f"{report.total_seconds:.2f}: {seconds}"),
        ("identity", report.identity[: output.SHORT] or "none"),
        ("written", ", ".join(report.published) or "nothing"),
        *(("left alone", f"{op}: {reason}") for op, reason in report.passed_through.items()),
        *(("not shared", f"{task}: {reason}") for task, reason in report.unshared.items()),
        *(("warning", warning) for warning in report.warnings),
    ]  # fmt: skip
    print_rows(out, rows)


def _raced(race: Mapping[str, float]) -> str:
    """Return what races took, beside FlashInfer's sweep."""
    share = race["device_s"] / race["sweep_s"]
    tasks = output.plural(int(race["tasks"]), "task")
    return (
        f"{tasks} in {race['launches']:.0f} launches, {race['device_s']:.3g} s on the device: "
        f"{share:.0%} of a sweep's"
    )


def print_identity(out: Console, path: Path, identity: Identity) -> None:
    output.print_path(out, path)
    print_rows(out, [("identity", identity.digest)])
    out.print()
    print_rows(out, [(name, _value(value)) for name, value in identity.factors.items()])


def _value(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def ops_of(table: Table) -> dict[str, int]:
    counts = Counter(str(fields_of(key)[0]) for key in table.entries)
    return dict(sorted(counts.items()))
