# SPDX-License-Identifier: Apache-2.0
"""One engine over several starts, each in new processes, and what its ranks came to.

Owns the fixtures of this folder: `deploy` makes a `Deployment`, whose `start` returns a `Start`.
What runs inside the ranks is in `on_ranks.py`. Every wait is bounded: `launch` sees to it. All
ranks of a test run come from one fork server, at 0.05 s each.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded import EngineConfig, RankResult, launch

ON_RANKS = Path(__file__).with_name("on_ranks.py")
TABLE = "rank_tp0_pp0_dp0.json"
FLASHINFER = importlib.metadata.version("flashinfer-python")


@dataclass(frozen=True)
class Start:
    """What all ranks of one start came to; ``seen``: what a script of `on_ranks.py` saw besides."""

    ranks: Sequence[RankResult]
    seen: Sequence[Any]

    @property
    def reports(self) -> list[Any]:
        return [result.report for result in self.ranks]

    @property
    def timed(self) -> list[int]:
        """Tactics timed by each rank, counted inside FlashInfer; its report says the same."""
        counted = [result.counts["profile_single_kernel"] for result in self.ranks]
        assert counted == [report.tactics_timed for report in self.reports]
        return counted

    @property
    def timed_in_all(self) -> int:
        """Tactics timed in the job, whoever has taken which task."""
        return sum(self.timed)

    @property
    def synthesised(self) -> list[int]:
        """Profiling inputs synthesised by each rank, counted and compared alike."""
        counted = [result.counts["prepare_input_tensors"] for result in self.ranks]
        assert counted == [report.inputs_synthesised for report in self.reports]
        return counted

    @property
    def certificate(self) -> str:
        """The one certificate of all ranks."""
        (certificate,) = {report.certificate for report in self.reports}
        assert re.fullmatch("[0-9a-f]{64}", certificate)
        assert {report.agreement for report in self.reports} == {"certified"}
        return str(certificate)

    @property
    def served(self) -> list[dict[str, tuple[str, Any]]]:
        """What the tuner serves on each rank, ops left out that were passed through."""
        return [
            {
                call: answer
                for call, answer in result.served.items()
                if call.split()[0] not in result.report.passed_through
            }
            for result in self.ranks
        ]

    @property
    def disputed(self) -> set[str]:
        """Calls that two ranks have in common and serve differently."""
        pairs = itertools.combinations(self.served, 2)
        return {
            call for one, other in pairs for call in one.keys() & other if one[call] != other[call]
        }

    @property
    def warnings(self) -> list[str]:
        """The warnings that stand in every rank's report."""
        first, *others = self.reports
        return [w for w in first.warnings if all(w in report.warnings for report in others)]

    def count(self, word: str) -> list[int]:
        """How many of its tasks each rank reports as ``word``."""
        return [report.tasks.get(word, 0) for report in self.reports]

    def assert_warm(self) -> None:
        """No rank timed a tactic or made an input; the table answered every task of every rank."""
        assert self.timed == self.synthesised == [0] * len(self.ranks)
        assert self.count("from_cache") == self.count("seen")
        assert all(self.count("seen"))


@dataclass
class Deployment:
    """One engine with one cache root for each node; the nodes are simulated."""

    config: EngineConfig
    roots: Sequence[Path]
    options: Mapping[str, Any] = field(default_factory=dict)

    def start(
        self, script: str = "plain", env: Mapping[str, str] | None = None, **arguments: Any
    ) -> Start:
        """Start all ranks anew; ``script`` is a function of `on_ranks.py`."""
        results = self.run(script, env, **arguments)
        return Start([ranks for ranks, _ in results], [seen for _, seen in results])

    def run(self, script: str, env: Mapping[str, str] | None = None, **arguments: Any) -> list[Any]:
        """As `start`, for scripts that return something else."""
        options = {"timeout_s": 60.0, **self.options}
        if len(self.roots) == 1:
            options["root"] = self.roots[0]
        else:
            options["nodes"] = list(self.roots)
        return launch(
            self.config, env=env, script=f"{ON_RANKS}:{script}", arguments=arguments, **options
        )

    def directory(self, node: int = 0) -> Path:
        """Where a node's tables lie: the mission's form, to the letter."""
        (found,) = (self.roots[node] / "flashinfer_autotune" / FLASHINFER).glob("*/*")
        assert re.fullmatch(r"(cpu|sm\d+)/[0-9a-f]{64}", "/".join(found.parts[-2:]))
        return found

    @property
    def table(self) -> Path:
        return self.directory() / TABLE

    @property
    def manifest(self) -> Path:
        return self.table.with_suffix(".manifest.json")

    def tables(self, node: int = 0) -> list[str]:
        """Names of a node's tables; none where it has no directory."""
        found = self.roots[node].glob("flashinfer_autotune/*/*/*/rank_*.json")
        return sorted(path.name for path in found if not path.name.endswith(".manifest.json"))

    def files(self) -> list[str]:
        """Every file below the roots, except what the engine's collective op keeps for itself."""
        found = [
            path.relative_to(root)
            for root in self.roots
            for path in root.rglob("*")
            if not path.is_dir()
        ]
        return sorted(str(path) for path in found if path.parts[0] != "all_reduce")

    def marks(self) -> dict[str, tuple[int, int, int]]:
        """Inode, time and size of every file but the reports: equal if none was written."""
        marks = {}
        for root in self.roots:
            for path in root.rglob("*"):
                status = path.lstat()
                if not path.is_dir() and path.parent.name != "reports":
                    mark = (status.st_ino, status.st_mtime_ns, status.st_size)
                    marks[str(path)] = mark
        return marks


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Deployment]:
    """Make a deployment with empty roots: ``deploy(tp=2)``, ``deploy(nodes=2, tp=2, pp=2)``.

    Sizes and `EngineConfig`'s other fields as keywords; ``roots`` instead of ``nodes`` names them;
    ``options`` are `launch`'s.
    """

    def make(
        *,
        nodes: int = 1,
        roots: Sequence[Path] | None = None,
        options: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Deployment:
        folder = tmp_path_factory.mktemp("deployment")
        places = roots or [folder / f"root{node}" for node in range(nodes)]
        return Deployment(EngineConfig(**config), places, options or {})

    return make


@pytest.fixture(scope="session")
def starts_under() -> Callable[..., tuple[list[Any], list[str]]]:
    """Start two ranks under another FlashInfer: ``starts_under(folder, "noise", ...)``.

    Returns what each start came to, by rank, and the files they left. in_release.py knows the
    starts; the same ones are made once in a test run.
    """

    @functools.cache
    def start(release: Path, *names: str) -> tuple[list[Any], list[str]]:
        path = os.pathsep.join([str(release), os.environ.get("PYTHONPATH", "")])
        with tempfile.TemporaryDirectory() as root:
            done = subprocess.run(
                [sys.executable, ON_RANKS.with_name("in_release.py"), root, *names],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                timeout=100,
                check=True,
            )
            found = sorted(str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_file())
        return json.loads(done.stdout), found

    return start
