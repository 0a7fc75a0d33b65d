# SPDX-License-Identifier: Apache-2.0
"""The command line in this process: what it prints and its exit code; one run of the demo for all.

Owns the fixtures `cli` and `two_starts`, and, to ask a registry, `whole` and `registry`. Real
processes are started where they are the point: test_exit_codes.py, test_surface.py. `shelves.py`
makes tables by hand, `pages.py` reads the docs; test folders are no packages, so they are loaded by
their paths.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import registries
from tests.cli.registries import Registry
from tests.cli.shelves import put
from warmup_plugin.cache import image_layout
from warmup_plugin.cache.image import Image
from warmup_plugin.cli import main
from warmup_plugin.cli.demo_run import TwoStarts, start_twice
from warmup_plugin.engines.embedded import EngineConfig

Watched = list[tuple[str, int, str]]


@dataclass(frozen=True)
class Ran:
    """One command: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a command line as on a terminal of that width; a variable of None is unset."""

    def run(*argv: object, width: int = 100, **environ: str | None) -> Ran:
        for name, value in {"COLUMNS": str(width), **environ}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in argv])
        return Ran(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def whole(cli: Callable[..., Ran], tmp_path: Path) -> Image:
    """The image of a small table."""
    put(tmp_path / "root")
    ran = cli("pack", "--oci", tmp_path / "image", "--root", tmp_path / "root")
    assert ran.code == 0, ran.err
    return image_layout.read(tmp_path / "image", 1 << 20)


@pytest.fixture
def registry(whole: Image) -> Iterator[Registry]:
    """One that has this image as tables:v1."""
    with registries.of_this_process() as registry:
        registry.holds(whole)
        yield registry


@pytest.fixture(scope="session")
def watched() -> Watched:
    """What was told while `two_starts` ran: (start, rank, line)."""
    return []


@pytest.fixture(scope="session")
def two_starts(tmp_path_factory: pytest.TempPathFactory, watched: Watched) -> TwoStarts:
    """A cold and a warm start of TP2 x PP2; its files stay for the tests of the readers."""

    @contextlib.contextmanager
    def watch(name: str) -> Iterator[Callable[[int, str], None]]:
        yield lambda rank, line: watched.append((name, rank, line))

    root = tmp_path_factory.mktemp("two-starts")
    return start_twice(EngineConfig(tp=2, pp=2), root=root, keep=False, env={}, watch=watch)


@pytest.fixture
def table_path(two_starts: TwoStarts, tmp_path: Path) -> Path:
    """A private copy of the table of `two_starts`, with its manifest and identity."""
    for file in two_starts.table.path.parent.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / two_starts.table.path.name
