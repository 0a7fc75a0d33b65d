# SPDX-License-Identifier: Apache-2.0
"""A cold and a warm start of the embedded engine, run and judged.

Owns what the demo claims: five checks over what every rank reported and what Python counted inside
FlashInfer's own functions. `judge` is pure. Prints nothing; ranks run in child processes, so that
nothing here imports torch. A rank that fails is a `CommandError` naming it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from warmup_plugin.cli.output import CommandError, plural
from warmup_plugin.cli.reading import TableFile, read_table
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, RankResult, launch
from warmup_plugin.manifest import Manifest
from warmup_plugin.paths import resolve
from warmup_plugin.settings import Settings
from warmup_plugin.table import Table

#: The first launch loads torch and FlashInfer, from a cold disk perhaps.
_PATIENCE_S = 600.0

Ranks = Sequence[RankResult]


class Watch(Protocol):
    """Makes the progress callable of one start, by its name."""

    def __call__(
        self, name: str, /
    ) -> contextlib.AbstractContextManager[Callable[[int, str], None]]: ...


@dataclass(frozen=True)
class Check:
    """One claim: whether it holds and what it rests on."""

    name: str
    holds: bool
    words: str


@dataclass(frozen=True)
class TwoStarts:
    """Both starts, rank by rank, and the verdict. ``is_kept``: the files outlive the command."""

    config: EngineConfig
    root: Path
    is_kept: bool
    cold: Ranks
    warm: Ranks
    table: TableFile
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Return whether every check holds."""
        return all(check.holds for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return it all as JSON values."""
        config = asdict(self.config)
        return {
            "schema": 1,
            "holds": self.holds,
            "checks": [asdict(check) for check in self.checks],
            "layout": {axis: config[axis] for axis in ("tp", "pp", "dp", "ep")},
            "table": str(self.table.path),
            "kept": self.is_kept,
            "cold": [_of_rank(rank) for rank in self.cold],
            "warm": [_of_rank(rank) for rank in self.warm],
        }


def _of_rank(result: RankResult) -> dict[str, Any]:
    return {
        "rank": result.rank,
        "seconds": result.seconds,
        "counts": dict(result.counts),
        "served": dict(result.served),
        "report": result.report.to_json(),
    }


def start_twice(
    config: EngineConfig, *, root: Path | None, keep: bool, env: Mapping[str, str], watch: Watch
) -> TwoStarts:
    """Start the engine twice, in new processes each time, and judge what the ranks tell.

    Raises:
        CommandError: torch or FlashInfer is missing, or a rank failed.
    """
    missing = [name for name in ("torch", "flashinfer") if find_spec(name) is None]
    if missing:
        install = f"pip install 'warmup-plugin[{','.join(missing)}]'"
        raise CommandError(f"the demo needs {' and '.join(missing)}: {install}")
    with _folder(root, keep=keep) as (folder, is_kept):
        cold = _start("cold", config, folder, env, watch)
        warm = _start("warm", config, folder, env, watch)
        table = read_table(_path(folder, cold), Settings.from_env().table_bytes)
        checks = judge(cold, warm, table)
    return TwoStarts(config, folder, is_kept, cold, warm, table, checks)


@contextlib.contextmanager
def _folder(root: Path | None, *, keep: bool) -> Iterator[tuple[Path, bool]]:
    if root is not None:
        yield root.expanduser().absolute(), True
    elif keep:
        yield Path(tempfile.mkdtemp(prefix="warmup-demo-")), True
    else:
        with tempfile.TemporaryDirectory(prefix="warmup-demo-") as name:
            yield Path(name), False


def _start(
    name: str, config: EngineConfig, root: Path, env: Mapping[str, str], watch: Watch
) -> Ranks:
    try:
        with watch(name) as progress:
            return launch(config, root=root, env=env, timeout_s=_PATIENCE_S, progress=progress)
    except LaunchError as error:
        lines = error.failures[error.rank].strip().splitlines()
        why = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        message = f"the {name} start failed on rank {error.rank}: {why}"
        raise CommandError(message, detail=str(error)) from None


def _path(root: Path, ranks: Ranks) -> Path:
    """Return where the mission has the table of this job: written by rank 0, on a CPU."""
    report = ranks[0].report
    digest = report.identity or "0" * 64
    version = report.flashinfer_version or "0"
    place = resolve(Settings(), digest, version=version, arch="cpu", argument=root, environ={})
    return place.table(0, 0, 0)


def judge(cold: Ranks, warm: Ranks, table: TableFile) -> tuple[Check, ...]:
    """Return the demo's claims, each held against what was found."""
    return (
        _one_table(cold, warm, table),
        _tuned_once(cold, warm, table),
        _warm_times_nothing(warm),
        _one_certificate(cold, warm),
        _same_tactics(cold, warm),
    )


def _one_table(cold: Ranks, warm: Ranks, table: TableFile) -> Check:
    paths = {path for rank in (*cold, *warm) for path in rank.report.published}
    holds = isinstance(table.table, Table) and paths <= {str(table.path)}
    if not isinstance(table.table, Table):
        return Check("one table", holds, f"not at the path of this job: {table.table.reason}")
    where = "at the path of this job" if holds else f"and others: {', '.join(sorted(paths))}"
    return Check("one table", holds, f"{len(table.table.entries)} entries, {where}")


def _tuned_once(cold: Ranks, warm: Ranks, table: TableFile) -> Check:
    first, again = (_sum_tuned(ranks) for ranks in (cold, warm))
    known = table.manifest.tasks.values() if isinstance(table.manifest, Manifest) else ()
    once = sum(task.outcome == "tuned" for task in known)
    had_table = any(rank.report.tasks.get("from_cache") for rank in cold)
    holds = again == 0 and (first == once or (had_table and first < once))
    if had_table and first == 0:
        done = f"{plural(once, 'task')}, before: this root held the table already"
    else:
        by = ", ".join(f"{n} by rank {rank}" for rank, n in _tuners(cold))
        done = f"{plural(first, 'task')}, {by or 'by none'}"
    repeated = "" if holds else f"; but the table has {once} of them"
    return Check("tuned once", holds, f"{done}; {again or 'none'} in the warm start{repeated}")


def _tuners(ranks: Ranks) -> list[tuple[int, int]]:
    tuned = [(rank.rank, int(rank.report.tasks.get("tuned", 0))) for rank in ranks]
    return [(rank, count) for rank, count in tuned if count]


def _sum_tuned(ranks: Ranks) -> int:
    return sum(count for _, count in _tuners(ranks))


def _warm_times_nothing(warm: Ranks) -> Check:
    timed = [rank.counts["profile_single_kernel"] for rank in warm]
    made = [rank.counts["prepare_input_tensors"] for rank in warm]
    if not any(timed) and not any(made):
        where = "on its only rank" if len(warm) == 1 else f"on each of {len(warm)} ranks"
        return Check("warm start", True, f"0 tactics timed, 0 inputs synthesised, {where}")
    found = f"{sum(timed)} tactics timed, {sum(made)} inputs synthesised"
    return Check("warm start", False, f"{found}, on all ranks together")


def _one_certificate(cold: Ranks, warm: Ranks) -> Check:
    reports = [rank.report for rank in (*cold, *warm)]
    certificates = {report.certificate for report in reports}
    agreements = {report.agreement for report in reports}
    if agreements != {"certified"}:
        return Check("same certificate", False, f"agreement: {', '.join(sorted(agreements))}")
    if len(certificates) != 1:
        found = ", ".join(sorted(name[:12] or "none" for name in certificates))
        return Check("same certificate", False, f"{len(certificates)} of them: {found}")
    return Check("same certificate", True, f"{certificates.pop()[:12]}, on every rank, both times")


def _same_tactics(cold: Ranks, warm: Ranks) -> Check:
    """Compare what the tuner serves for each kind of call, wherever it is served.

    Not those that are passed through or left to each rank: their tactics are their own affair.
    """
    answers: dict[str, set[str]] = {}
    for rank in (*cold, *warm):
        own = {*rank.report.passed_through, *(t.split(" @ ")[0] for t in rank.report.unshared)}
        for call, answer in rank.served.items():
            if call.split(" ")[0] not in own:
                answers.setdefault(call, set()).add(repr(answer))
    differ = sum(len(found) > 1 for found in answers.values())
    calls = f"{len(answers)} kinds of call"
    if not differ:
        return Check("same tactics", True, f"{calls}, each with one tactic wherever it is served")
    return Check("same tactics", False, f"{calls}, {differ} of them with different tactics")
