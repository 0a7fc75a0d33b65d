# SPDX-License-Identifier: Apache-2.0
"""A cold and a warm start of the embedded engine, run and judged.

Owns what the demo claims: five checks over what every rank reported and what Python counted inside
FlashInfer's own functions. `judge` is pure. Prints nothing; ranks run in child processes, so that
nothing here imports torch. A rank that fails is a `CommandError` naming it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.paths import resolve
from warmup_plugin.cli.load import TableFile, read_table
from warmup_plugin.cli.output import SHORT, CommandError, plural
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, RankResult, launch
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

#: The first launch loads torch and FlashInfer, from a cold disk perhaps.
_PATIENCE_S = 600.0
_ROUTINE = "warmup_plugin.engines.embedded.worker:warm_up_quietly"
#: What is counted of FlashInfer's functions -> the receipt's share of ops left to themselves.
_LEFT_ALONE = {
    "profile_single_kernel": "passed_through_tactics",
    "prepare_input_tensors": "passed_through_inputs",
}

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
    """Both starts, rank by rank, and the verdict. ``is_kept``: the files outlive the command.

    ``clauses``: those of the design, where they were asked for (`clauses.prove`).
    """

    config: EngineConfig
    root: Path
    is_kept: bool
    cold: Ranks
    warm: Ranks
    table: TableFile
    checks: tuple[Check, ...]
    clauses: tuple[Check, ...] = ()

    @property
    def holds(self) -> bool:
        """Return whether every check holds."""
        return all(check.holds for check in (*self.checks, *self.clauses))

    def document(self) -> dict[str, Any]:
        """Return it all as JSON values."""
        config = asdict(self.config)
        return {
            "schema": 1,
            "holds": self.holds,
            "checks": [asdict(check) for check in self.checks],
            "clauses": [asdict(check) for check in self.clauses],
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
        cold = start("cold", config, [folder], env, watch)
        warm = start("warm", config, [folder], env, watch)
        settings = Settings.from_env()
        table = read_table(_path(folder, cold, settings.layers), settings.table_bytes)
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


def start(
    name: str, config: EngineConfig, roots: Sequence[Path], env: Mapping[str, str], watch: Watch,
    *, script: str = _ROUTINE,
) -> Ranks:  # fmt: skip
    """Start the engine once, on a simulated node for each cache root.

    Raises:
        CommandError: a rank failed.
    """
    try:
        with watch(name) as progress:
            return launch(
                config, nodes=roots, env=env, script=script, timeout_s=_PATIENCE_S,
                progress=progress,
            )  # fmt: skip
    except LaunchError as error:
        lines = error.failures[error.rank].strip().splitlines()
        why = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        message = f"the {name} start failed on rank {error.rank}: {why}"
        raise CommandError(message, detail=str(error)) from None


def _path(root: Path, ranks: Ranks, layers: Iterable[Path] = ()) -> Path:
    """Return where the mission has the table of this job: written by rank 0, on a CPU.

    Or in the first layer that has it, where the root does not.
    """
    report = ranks[0].report
    digest = report.identity or "0" * 64
    version = report.flashinfer_version or "0"
    found = [
        resolve(Settings(), digest, version=version, arch="cpu", argument=each, environ={})
        .table(0, 0, 0)
        for each in (root, *layers)
    ]  # fmt: skip
    return next((path for path in found if path.exists()), found[0])


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
    elsewhere = {path for rank in (*cold, *warm) for path in rank.report.published}
    elsewhere -= {str(table.path)}
    if isinstance(table.table, Miss):
        return Check("one table", False, f"{table.table.reason} at this job's path")
    found = f"{len(table.table.entries)} entries at this job's path"
    others = f", but others at {', '.join(sorted(elsewhere))}" if elsewhere else ""
    return Check("one table", not elsewhere, found + others)


def _tuned_once(cold: Ranks, warm: Ranks, table: TableFile) -> Check:
    first, again = (_tuners(ranks) for ranks in (cold, warm))
    known = table.manifest.tasks.values() if isinstance(table.manifest, Manifest) else ()
    outcomes = Counter(task.outcome for task in known)
    once, adopted = outcomes["tuned"], outcomes["adopted"]
    had_table = any(rank.report.tasks.get("from_cache") for rank in cold)
    tuned = sum(first.values())
    is_whole = tuned == once or (had_table and tuned < once)
    holds = once + adopted > 0 and not again and is_whole
    done = f"{plural(tuned, 'task')}{': ' if first else ''}{_by(first)}"
    if had_table and not first:
        done = f"{plural(once + adopted, 'task')}, before: the table was there"
    elif adopted:
        done += f", {adopted} taken over from another table"
    return Check("tuned once", holds, f"{done}; {sum(again.values()) or 'none'} again")


def _tuners(ranks: Ranks) -> dict[int, int]:
    tuned = {rank.rank: int(rank.report.tasks.get("tuned", 0)) for rank in ranks}
    return {rank: count for rank, count in tuned.items() if count}


def _by(tuners: Mapping[int, int]) -> str:
    return ", ".join(f"{count} by rank {rank}" for rank, count in tuners.items())


def calls_left_alone(rank: RankResult, function: str) -> int:
    """Return how many of a rank's calls of one of FlashInfer's functions were no task's.

    They were of ops that are left to themselves, by the rank's receipt.
    """
    return int(getattr(rank.report, _LEFT_ALONE[function]))


def _warm_times_nothing(warm: Ranks) -> Check:
    apart = {name: sum(calls_left_alone(rank, name) for rank in warm) for name in _LEFT_ALONE}
    timed, made = (sum(rank.counts[name] for rank in warm) - apart[name] for name in _LEFT_ALONE)
    ranks = "its only rank" if len(warm) == 1 else f"all {len(warm)} ranks"
    words = f"{timed} tactics timed, {made} inputs synthesised on {ranks}"
    if others := apart["profile_single_kernel"]:
        words += f"; {others} tactics more by ops left to themselves"
    return Check("warm start", not timed and not made, words)


def _one_certificate(cold: Ranks, warm: Ranks) -> Check:
    name = "same certificate"
    reports = [rank.report for rank in (*cold, *warm)]
    agreements = {report.agreement for report in reports}
    if agreements != {"certified"}:
        return Check(name, False, f"agreement: {', '.join(sorted(agreements))}")
    first, second = ({rank.report.certificate[:SHORT] for rank in ranks} for ranks in (cold, warm))
    if len(first) == len(second) == 1 and not all("survey" in report.seconds for report in reports):
        # Without a forward there are no tasks to ask for: it certifies the table alone.
        return Check(name, True, f"{first.pop()} cold, {second.pop()} warm, without a forward")
    if len(first | second) != 1:
        return Check(name, False, f"{len(first | second)}: {', '.join(sorted(first | second))}")
    return Check(name, True, f"{first.pop()} on every rank, cold and warm")


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
        return Check("same tactics", bool(answers), f"{calls}, each served one tactic everywhere")
    return Check("same tactics", False, f"{calls}, {differ} served different tactics")
