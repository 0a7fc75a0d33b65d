# SPDX-License-Identifier: Apache-2.0
"""Jobs with faults in them: several jobs in one launch, and what each of their ranks came to.

Owns the fixture `start`, which runs jobs once, and how their directories look before and after.
Several jobs share a launch because most of a fault's time is waiting: for a silence, for a grace
period. What runs inside the ranks is in `in_rank.py`. Every wait is bounded, and nothing outlives a
launch. Tests marked `soak` are left out unless asked for: ``-m soak``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.table import Table, parse_table, render_table
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, launch
from warmup_plugin.runtime.safe_json import digest

IN_RANK = Path(__file__).with_name("in_rank.py")

#: The smallest engine that has every op.
SMALL = {"layers": 2, "hidden": 32, "ffn": 32, "vocab": 32, "timing": "rank_noise"}
#: A silence is longer than the longest pause that this engine makes on a busy machine.
SILENCE_S = 1.5
GRACE_S = 0.5
#: How long a rank that is stopped stays so if the others do not end.
LONGEST_HOLD_S = 20.0
#: The status of a process that ended since another rank's forward cannot complete.
ABANDONED = 79
#: Processes of one launch: more than that and they wait for the machine instead of for each other.
RANKS_AT_ONCE = 20
#: How long a launch may take: what takes longer hangs.
LAUNCH_S = 60.0
ENVIRONMENT = {
    "WARMUP_PLUGIN_SILENCE_S": str(SILENCE_S),
    "WARMUP_PLUGIN_GRACE_S": str(GRACE_S),
    # torch asks for the name behind every address that it connects; where no name server answers,
    # each question takes the resolver's time-out, five seconds by default.
    "RES_OPTIONS": "timeout:1 attempts:1",
}
#: Of starts without a fault: a busy machine makes pauses that are nobody's end.
PATIENT = {"WARMUP_PLUGIN_SILENCE_S": "30"}


@dataclass
class Job:
    """One job of a launch. ``nodes``: on which node each rank is; a root for each node.

    ``env`` and ``faults`` hold for the next start only; `start` takes them away. ``one_disk``: the
    nodes have one directory in common.
    """

    root: Path
    nodes: Sequence[int] = (0, 0)
    env: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[Mapping[str, Any]] = ()
    local_ranks: Sequence[int] | None = None
    group_timeout_s: float = 60.0
    one_disk: bool = False

    @property
    def roots(self) -> list[Path]:
        if self.one_disk:
            return [self.root / "disk"] * (max(self.nodes) + 1)
        return [self.root / f"node{node}" for node in range(max(self.nodes) + 1)]

    def plan(self) -> dict[str, Any]:
        """Return what the ranks are told."""
        return {
            "roots": [str(root) for root in self.roots],
            "node_of_rank": list(self.nodes),
            "local_ranks": self.local_ranks,
            "env": dict(self.env),
            "faults": list(self.faults),
            "group_timeout_s": self.group_timeout_s,
        }

    def is_there(self) -> bool:
        """Return whether a start has left a table on any node."""
        return any(
            list(root.glob("flashinfer_autotune/*/*/*/rank_*.manifest.json")) for root in self.roots
        )

    def directory(self, node: int = 0) -> Path:
        """Return a node's directory of this engine's identity."""
        (found,) = self.roots[node].glob("flashinfer_autotune/*/*/*")
        return found

    def entries(self, node: int = 0) -> dict[str, Any]:
        """Return the entries of a node's tables, without their stamps."""
        found: dict[str, Any] = {}
        for path in self.directory(node).glob("rank_*.json"):
            if not path.name.endswith(".manifest.json"):
                document = json.loads(path.read_text())
                found |= {key: row for key, row in document.items() if not key.startswith("_")}
        return found

    def files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every file but the reports: what the ranks have written."""
        found = {}
        for root in self.roots:
            for path in root.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # a temporary file, gone again
                    status = path.lstat()
                    if path.is_file() and path.parent.name != "reports":
                        found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found

    def litter(self) -> list[str]:
        """Return files that no start should leave behind, however it ended."""
        ends = (".tmp", ".mark")
        return [path for path in self.files() if path.endswith(ends) or "/." in path]

    def tables(self, node: int = 0) -> list[Path]:
        """Return the tables in a node's directory."""
        found = self.directory(node).glob("rank_*.json")
        return sorted(path for path in found if not path.name.endswith(".manifest.json"))

    def edit(
        self, node: int, change: Callable[[dict[str, Any]], object], *, vouch: bool = False
    ) -> None:
        """Change a node's tables by hand; with ``vouch`` their manifests say that this is right."""
        for path in self.tables(node):
            document = json.loads(path.read_text())
            change(document)
            path.write_text(json.dumps(document))
            if vouch:
                other = path.with_suffix(".manifest.json")
                manifest = {**json.loads(other.read_text())}
                manifest["table_sha256"] = digest(path.read_bytes())
                other.write_text(json.dumps(manifest))

    def set_aside(self, node: int = 0) -> list[str]:
        """Return the names of the files set aside, without their suffix."""
        found = self.directory(node).glob("foreign/*")
        return sorted(path.name.rpartition(".")[0] for path in found)

    def tasks(self) -> set[str]:
        """Return the ids of the tasks that any node's manifests have."""
        paths = [path for root in self.roots for path in root.rglob("rank_*.manifest.json")]
        return {task for path in paths for task in _manifest(path).tasks}

    def lose(self, node: int) -> None:
        """Take away a node's directory."""
        shutil.rmtree(self.roots[node])

    def keep(
        self, node: int, wanted: Callable[[str, Any], bool], *, generation: int | None = None
    ) -> None:
        """Keep of a node's tables the tasks that are ``wanted(id, record)``."""
        for path in self.directory(node).glob("rank_*.manifest.json"):
            table_path = path.with_name(path.name.replace(".manifest", ""))
            table, manifest = parse_table(table_path.read_bytes(), limit=1 << 30), _manifest(path)
            assert isinstance(table, Table)
            tasks = {
                name: record for name, record in manifest.tasks.items() if wanted(name, record)
            }
            keys = {key for record in tasks.values() for row in record.keys for key in row}
            entries = {key: entry for key, entry in table.entries.items() if key in keys}
            body = render_table(msgspec.structs.replace(table, entries=entries))
            manifest = msgspec.structs.replace(
                manifest, tasks=tasks, table_sha256=digest(body), complete=False,
                generation=manifest.generation if generation is None else generation,
            )  # fmt: skip
            table_path.write_bytes(body)
            path.write_bytes(render_manifest(manifest))


def _manifest(path: Path) -> Manifest:
    found = parse_manifest(path.read_bytes(), limit=1 << 30)
    assert isinstance(found, Manifest), found
    return found


@dataclass
class Rank:
    """What one rank of one start came to.

    ``status`` is that of a process that ended without a word, "hung" of one that did not end.
    ``said``: when it told the launcher of what (`in_rank.Here.say`).
    """

    rank: int
    status: int | str | None = None
    report: Any = None
    error: tuple[str, str, int | None] | None = None
    cause: str = ""
    served: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    held: Sequence[str] = ()
    sent: Sequence[str] = ()
    logged: list[str] = field(default_factory=list)
    said: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def raised(self) -> str:
        """The type of the exception that it raised, empty if none."""
        return self.error[0] if self.error else ""

    @property
    def timed(self) -> int:
        """Tactics that this rank timed, counted inside FlashInfer."""
        return self.counts.get("profile_single_kernel", 0)

    def task_count(self, word: str) -> int:
        """Return how many of its tasks this rank reports as ``word``."""
        return int(self.report.tasks.get(word, 0))

    def assert_gave_up(self, lost: int) -> None:
        """It raised what names the lost rank, or ended where it could not come back, and why."""
        if self.status is not None:
            assert self.status == ABANDONED, self.outcome()
            lines = [line for line in self.logged if f"status {ABANDONED}" in line]
            assert any(f"rank {lost}" in line for line in lines), self.logged
        else:
            # In the forward it may have been the engine's own collective that ended first.
            assert self.error is not None, self.outcome()
            assert f"rank {lost} is lost" in f"{self.error[1]} {self.cause}", self.outcome()

    def outcome(self) -> str:
        """Return in a few words how this rank ended."""
        if self.error is not None:
            return f"{self.error[0]}: {self.error[1]}"
        if self.report:
            return str(self.report.agreement)
        said = "\n".join(self.logged[-20:])  # the last of it is where a rank that hangs stands
        return f"status {self.status}\n{said}\n"


@dataclass
class Start:
    """One start of one job. ``woken``: its files when a stopped rank was let go on."""

    ranks: list[Rank]
    woken: dict[str, tuple[int, int]] | None = None

    def __getitem__(self, rank: int) -> Rank:
        return self.ranks[rank]

    @property
    def reports(self) -> list[Any]:
        assert all(rank.report for rank in self.ranks), self.told()
        return [rank.report for rank in self.ranks]

    @property
    def seconds(self) -> float:
        """How long the slowest rank took."""
        return max(rank.seconds for rank in self.ranks)

    @property
    def warnings(self) -> str:
        """Everything any rank logged."""
        return "\n".join(line for rank in self.ranks for line in rank.logged)

    def told(self) -> str:
        """Return how every rank ended."""
        return "; ".join(f"rank {rank.rank}: {rank.outcome()}" for rank in self.ranks)

    def since(self, event: str, rank: int, of: int | None = None) -> float:
        """Return the seconds from a rank's event to the end of another (of all the others)."""
        began = self.ranks[rank].said[event]
        others = [of] if of is not None else [r.rank for r in self.ranks if r.rank != rank]
        return max(self.ranks[other].said["last"] for other in others) - began

    def assert_agreed(self) -> None:
        """All ranks certified one table, and those that share a call serve it alike."""
        reports = self.reports
        assert {report.agreement for report in reports} == {"certified"}, self.told()
        assert len({report.certificate for report in reports}) == 1
        assert not self.disputed(), self.told()

    def disputed(self) -> set[str]:
        """Return the calls that two ranks have in common and serve differently."""
        found: dict[str, set[str]] = {}
        for rank in self.ranks:
            for call, answer in rank.served.items():
                if call.split()[0] not in rank.report.passed_through:
                    found.setdefault(call, set()).add(repr(answer))
        return {call for call, answers in found.items() if len(answers) > 1}

    def assert_whole(self) -> None:
        """All agree, and each task of each rank has its winner or a reason for having none."""
        self.assert_agreed()
        for rank in self.ranks:
            words = ("tuned", "received", "from_cache", "adopted", "default")
            assert rank.task_count("seen") == sum(map(rank.task_count, words)) > 0

    def assert_warm(self) -> None:
        """All agree, nothing was timed, nothing synthesised."""
        self.assert_agreed()
        assert [rank.timed for rank in self.ranks] == [0] * len(self.ranks)
        assert all(rank.counts["prepare_input_tensors"] == 0 for rank in self.ranks)
        for report in self.reports:
            known = report.tasks["from_cache"] + report.tasks.get("default", 0)
            assert known == report.tasks["seen"], report.tasks

    def assert_nobody_waits(self) -> None:
        """Every process has ended or come home by itself."""
        assert [r.status for r in self.ranks if r.status == "hung"] == [], self.told()

    def tasks_tuned(self) -> int:
        """Return the tasks tuned in the job; none of them by two ranks."""
        return sum(rank.task_count("tuned") for rank in self.ranks if rank.report)


@dataclass
class _Listener:
    """Hears the ranks out while they run, and lets a stopped one go on when its time has come.

    That is when all others of its job have ended, but not before ``hold_s``.
    """

    jobs: Sequence[Job]
    size: int
    hold_s: float
    said: list[dict[str, Any]] = field(default_factory=list)
    woken: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    timers: list[threading.Timer] = field(default_factory=list)
    _over: set[tuple[int, int]] = field(default_factory=set)
    _stopped: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def hear(self, _rank: int, text: str) -> None:
        said = json.loads(text)
        self.said.append(said)
        job, rank = said["job"], said["rank"]
        if said["event"] == "stopped":
            self._stopped[job] = (rank, said["pid"], said["at"])
            self._wake_after(LONGEST_HOLD_S, job)
        elif said["event"] == "ended" or f"status {ABANDONED}" in said.get("text", ""):
            self._over.add((job, rank))
        if job in self._stopped:
            stopped, _, at = self._stopped[job]
            others = {(job, other) for other in range(self.size)} - {(job, stopped)}
            if others <= self._over:
                self._wake_after(max(0.2, at + self.hold_s - time.monotonic()), job)

    def _wake_after(self, seconds: float, job: int) -> None:
        timer = threading.Timer(seconds, self._wake, (job,))
        self.timers.append(timer)
        timer.start()

    def _wake(self, job: int) -> None:
        _, pid, _ = self._stopped[job]
        self.woken.setdefault(job, self.jobs[job].files())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        try:
            yield
        finally:
            for timer in self.timers:
                timer.cancel()
                timer.join()


def start_jobs(
    jobs: Sequence[Job], *, dp: int = 1, hold_s: float = 0.0, **config: Any
) -> list[Start]:
    """Start every job once, all in one launch; ``config`` is each job's, with ``dp`` replicas.

    ``hold_s``: how long a rank that stops itself stays stopped, at least.
    """
    shape = EngineConfig(**{**SMALL, **config, "dp": dp * len(jobs)})
    size = shape.world_size // len(jobs)
    listener = _Listener(jobs, size, hold_s)
    arguments = {"size": size, "plans": [job.plan() for job in jobs], "dp": dp}
    with listener.listening():
        try:
            results = dict(
                enumerate(
                    launch(
                        shape,
                        env=ENVIRONMENT,
                        script=f"{IN_RANK}:jobs",
                        arguments=arguments,
                        timeout_s=LAUNCH_S,
                        grace_s=LAUNCH_S,
                        progress=listener.hear,
                    )
                )
            )
            failures: dict[int, str] = {}
        except LaunchError as error:
            results, failures = error.results, error.failures
    for job in jobs:
        job.faults, job.env = (), {}
    return [
        Start(
            [
                _rank(number, results.get(place), failures.get(place), listener.said, index)
                for number, place in enumerate(range(index * size, (index + 1) * size))
            ],
            listener.woken.get(index),
        )
        for index in range(len(jobs))
    ]


def _rank(
    number: int,
    result: Mapping[str, Any] | None,
    failure: str | None,
    said: Iterable[Mapping[str, Any]],
    job: int,
) -> Rank:
    rank = Rank(number)
    for what in said:
        if (what["job"], what["rank"]) == (job, number):
            rank.said.setdefault(what["event"], what["at"])
            rank.said["last"] = what["at"]
            if what["event"] == "logged":
                rank.logged.append(what["text"])
    if result is not None:
        for name in ("report", "error", "cause", "served", "counts", "held", "sent"):
            if name in result:
                setattr(rank, name, result[name])
        rank.seconds = result["ended"] - result["began"]
        rank.said["last"] = result["ended"]
        return rank
    assert failure is not None
    if ended := re.fullmatch(r"ended without a word, exit code (-?\d+)", failure):
        rank.status = int(ended[1])
    else:
        assert "it stood at" in failure, failure  # else a mistake of the test's own
        rank.status = "hung"
        rank.logged.append(failure)
    return rank


@dataclass
class Ran:
    """What became of one case: the start with the fault in it, and the sound one after it.

    ``known``: the tasks that any node had before. ``after``: the job's files between both starts.
    """

    job: Job
    start: Start
    after: dict[str, tuple[int, int]]
    again: Start
    known: set[str]


Cases = Mapping[Any, Mapping[str, Any]]


def run_cases(root: Path, cases: Cases, **config: Any) -> dict[Any, Ran]:
    """Run one job for each case, all at once.

    A case has a job's fields and may have more. ``before``: called with the job, changes the tables
    of a sound start that goes before. ``lasting``: the faults are there at the start after, too.
    ``two_nodes``: the second half of the ranks is on a node of its own.
    """
    sizes = {"tp": 1, "pp": 1, "dp": 1, **config}
    size = sizes["tp"] * sizes["pp"] * sizes["dp"]
    jobs = {}
    for index, (key, case) in enumerate(cases.items()):
        names = ("local_ranks", "group_timeout_s", "one_disk")
        own = {name: case[name] for name in names if name in case}
        half = size // 2 if case.get("two_nodes") else size
        job = Job(root / str(index), [int(rank >= half) for rank in range(size)], **own)
        jobs[key] = job
    _tune([jobs[key] for key, case in cases.items() if "before" in case], **config)
    for key, job in jobs.items():
        cases[key].get("before", lambda _job: None)(job)
    known = {key: job.tasks() for key, job in jobs.items()}
    starts = []
    for lasts in (False, True):
        for key, job in jobs.items():
            job.env = PATIENT
            if not lasts or cases[key].get("lasting"):
                job.faults, job.env = cases[key].get("faults", ()), cases[key].get("env", {})
        starts.append(start_jobs(list(jobs.values()), **config))
        if not lasts:
            after = [job.files() for job in jobs.values()]
    return {
        key: Ran(job, start, files, again, known[key])
        for (key, job), start, files, again in zip(
            jobs.items(), starts[0], after, starts[1], strict=True
        )
    }


def start_patiently(jobs: Sequence[Job], **config: Any) -> list[Start]:
    """Start jobs without a fault, with more time than faults are given to be noticed."""
    for job in jobs:
        job.env = PATIENT
    return start_jobs(jobs, **config)


def _tune(jobs: Sequence[Job], **config: Any) -> None:
    """Start jobs without a fault, so that there is a table to do something to."""
    starts = start_patiently(jobs, **config) if jobs else []
    for job, first in zip(jobs, starts, strict=True):
        assert job.is_there(), first.told()


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """Return what became of one case of a table of cases: ``ran(table, key, tp=2)``.

    Cases run several at once; a test that is run alone runs those that go with its own.
    """
    done: dict[Any, tuple[Cases, dict[Any, Ran]]] = {}

    def one(cases: Cases, key: Any, **config: Any) -> Ran:
        keys = list(cases)
        sizes = [n for n in config.values() if isinstance(n, int)]  # beside them, limits in seconds
        jobs = RANKS_AT_ONCE // math.prod(sizes)
        first = keys.index(key) // jobs * jobs
        memo = (id(cases), first, *sorted(config.items()))
        if memo not in done:
            some = {each: cases[each] for each in keys[first : first + jobs]}
            root = tmp_path_factory.mktemp("faults")
            done[memo] = (cases, run_cases(root, some, **config))  # the table keeps its id so
        return done[memo][1][key]

    return one


@pytest.fixture
def start() -> Callable[..., list[Start]]:
    """Start several jobs in one launch: `start_jobs`."""
    return start_jobs


@pytest.fixture
def start_sound() -> Callable[..., list[Start]]:
    """Start several jobs in one launch, without a fault: `start_patiently`."""
    return start_patiently


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """Make a job; jobs of one name have one directory: ``make_job("one", nodes=(0, 1))``."""

    def make(name: str, **options: Any) -> Job:
        return Job(tmp_path / name, **options)

    return make
