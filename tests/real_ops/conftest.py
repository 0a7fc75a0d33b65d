# SPDX-License-Identifier: Apache-2.0
"""Servers with FlashInfer's op code on a GPU that is not there, and what they are asked.

Owns the fixtures of this folder: `ask` runs a function of a file of this folder in a process of its
own, on a GPU and a FlashInfer release. A server is started when it is first asked, and imports once
what each of its children then has. Every answer comes within a bound, or is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
VENV = CHECKOUT / ".venv"
sys.path.append(str(CHECKOUT))  # after all else: the package stays the wheel's

from tests.real_ops.cases.catalogue import CASES  # noqa: E402  # found since
from tests.real_ops.rows import (  # noqa: E402  # found since
    MAIN,
    RELEASES,
    Row,
    for_a_change,
    raced_rows,
    rows_of,
    smallest,
)
from tests.real_ops.summary import HEAD, slowest, summary  # noqa: E402  # found since

START_S = 90
#: A row takes 2 to 10 s where its core is its own; what takes this long hangs.
ROW_S = 300
#: Rows compared at a time; a row works in one process at a time.
WORKERS = 2


VERDICTS = pytest.StashKey["Verdicts"]()


class Servers:
    """One server for each release and GPU that was asked for."""

    def __init__(self, folder: Path, dependencies: Path) -> None:
        self._folder, self._dependencies = folder, dependencies
        self._running: dict[tuple[str, str], subprocess.Popen[str]] = {}
        self._starting = threading.Lock()

    def ask(
        self, file: str, function: str, *, on: str, release: str = MAIN, limit_s: int = 300,
        **arguments: Any,
    ) -> Any:  # fmt: skip
        """Return what the function returned; fail the test with what it raised."""
        request = {
            "file": file, "function": function, "arguments": arguments, "limit_s": limit_s,
        }  # fmt: skip
        path = self._server(release, on)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(limit_s + 10)
            connection.connect(path)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                line = stream.readline()
        answer = json.loads(line or '{"error": "the process died or took too long"}')
        if "error" in answer:
            pytest.fail(f"{file}.{function}({arguments}) on {on}, {release}:\n{answer['error']}")
        return answer["result"]

    def _server(self, release: str, on: str) -> str:
        """Return the socket of a server, started if it is not there."""
        path = str(self._folder / f"{release}-{on}")
        with self._starting:
            if (release, on) in self._running:
                return path
            folders = [] if release == MAIN else [str(release_folder(release))]
            known = os.environ.get("PYTHONPATH", "")
            process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), path, on, str(self._dependencies)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*folders, known])},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._running[release, on] = process
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"no server for {release} on {on}"
        return path

    def close(self) -> None:
        for process in self._running.values():
            process.communicate(timeout=START_S)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.fail(f"{path} is not there: run `make test-real-ops`, which installs it")
    return path


def release_folder(release: str) -> Path:
    """Return the folder of another FlashInfer release."""
    return _folder(Path(os.environ.get("WARMUP_TEST_RELEASES") or VENV / "releases") / release)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of this test run, in a folder whose name is short enough for a socket."""
    dependencies = _folder(Path(os.environ.get("WARMUP_TEST_REAL_OPS") or VENV / "real-ops"))
    folder = Path(tempfile.mkdtemp(prefix="ops-"))
    started = Servers(folder, dependencies)
    yield started
    started.close()
    shutil.rmtree(folder, ignore_errors=True)


class Verdicts:
    """The verdicts on all rows of this run, two at a time, in the order of the tests.

    Races and all other rows are two files of tests, which two processes may run side by side: each
    begins with its own.
    """

    def __init__(self, servers: Servers, rows: list[Row]) -> None:
        self._pool = ThreadPoolExecutor(WORKERS)
        self._servers, self._rows = servers, rows
        self._found: dict[Row, Future[Any]] = {}

    @staticmethod
    def _compare(servers: Servers, row: Row) -> Any:
        return servers.ask(
            "compare", "compare", on=row.on, release=row.release, limit_s=ROW_S,
            name=row.case, context=row.context, margin=row.margin, race=row.race,
        )  # fmt: skip

    def of(self, row: Row) -> dict[str, Any]:
        """Return a verdict, waiting for it; all before it are of tests before this one."""
        if row not in self._found:
            for each in self._rows:
                if each.race == row.race:
                    self._found[each] = self._pool.submit(self._compare, self._servers, each)
        verdict: dict[str, Any] = self._found[row].result(timeout=2 * ROW_S)
        return verdict

    def done(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield what has been found so far."""
        for row, future in self._found.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                yield row, future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def verdicts(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Verdicts]:
    """Start with the first test that asks; know what all others of this run will ask."""
    params = [
        item.callspec.params
        for item in request.session.items  # mypy: only a Function has it
        if hasattr(item, "callspec")
    ]
    asked = [p[name] for p in params for name in ("row", "raced_row") if name in p]
    found = Verdicts(servers, asked)
    request.config.stash[VERDICTS] = found
    yield found
    found.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each row; those of a release and GPU follow each other, for its server."""
    if "raced_row" in metafunc.fixturenames:
        _races(metafunc)
    if "row" not in metafunc.fixturenames:
        return
    params: list[tuple[Row, Any]] = []
    for number, case in enumerate(CASES.values()):
        rows = rows_of(case.name, case.on, case.releases, number)
        small, gate = smallest(rows, number), for_a_change(rows, number)
        for row in rows:
            marks: tuple[pytest.MarkDecorator, ...] = ()
            if row not in small:
                marks = (pytest.mark.real_ops, *(() if row in gate else (pytest.mark.all_rows,)))
            params.append((row, pytest.param(row, id=str(row), marks=marks)))
    params.sort(key=lambda pair: (RELEASES.index(pair[0].release), pair[0].on))
    metafunc.parametrize("row", [param for _, param in params])


#: The races that run with the other tests: a large MoE, GEMMs of two ways of timing, few tactics.
#: All others take an hour: `make test-races`.
RACED = ("prims_ts_bf16_moe", "mm_bf16 auto", "mm_fp4 cute-dsl", "trtllm_fp4_block_scale_moe")


def _races(metafunc: pytest.Metafunc) -> None:
    rows = []
    for number, case in enumerate(CASES.values()):
        if not case.left:
            rows += raced_rows(case.name, case.on, case.releases, number)
    rows.sort(key=lambda row: (RELEASES.index(row.release), row.on))
    small = {name: next(row for row in rows if row.case == name) for name in RACED}
    params = [
        pytest.param(
            row, id=str(row), marks=() if small.get(row.case) == row else (pytest.mark.soak,)
        )
        for row in rows
    ]
    metafunc.parametrize("raced_row", params)


@pytest.fixture
def ask(servers: Servers) -> Callable[..., Any]:
    """``ask("faults", "starts", on="10.0", ops=[...])``: run it in a process of its own."""
    return servers.ask


def pytest_closing_words(config: pytest.Config) -> list[str]:
    """Say for each case what its rows came to; write the page where that is asked for."""
    verdicts = config.stash.get(VERDICTS, None)
    if verdicts is None:
        return []
    done = list(verdicts.done())
    found = [(row, verdict) for row, verdict in done if not row.race]
    lines = summary(found)
    if os.environ.get("WARMUP_WRITE_DOCS"):
        page = CHECKOUT / "docs" / "real-ops.md"
        page.write_text(HEAD + "\n".join(lines) + "\n")
    races = [verdict["race"] for row, verdict in done if row.race and verdict.get("race")]
    raced = sum(race["tasks"] for race in races)
    share = sum(r["device_s"] for r in races) / max(sum(r["sweep_s"] for r in races), 1e-9)
    told = f"{raced} tasks raced in {len(races)} rows, in {share:.2f} of a sweep's device time"
    return ["FlashInfer's own op code", *lines, *slowest(done), told]
