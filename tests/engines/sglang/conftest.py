# SPDX-License-Identifier: Apache-2.0
"""SGLang's own package over several starts, each in new processes.

Owns the fixture `job`: a hand-made model, a cache root, and `start`, which runs one process per
rank from a fork server that has SGLang loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Children find their functions by module name.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import engine_starts
from engine_starts import CONTEXT, Start, free_port
from sglang_on_ranks import LLAMA, PRELOAD, Spec, serve


@dataclass
class Job:
    """One engine with one cache root."""

    root: Path
    model: Path
    options: dict[str, Any] = field(default_factory=dict)

    def start(
        self,
        *,
        env: dict[str, str] | None = None,
        limit_s: float = 120.0,
        per_rank: Callable[[int], dict[str, Any]] = lambda _rank: {},
        may_fail: bool = False,
        **options: Any,
    ) -> Start:
        """Start all ranks anew; ``per_rank`` gives a rank fields of its own."""
        options = {"model": str(self.model), **self.options, **options}
        size = options.get("tp", 1) * options.get("pp", 1)
        port = free_port()
        env = {"SGLANG_CACHE_DIR": str(self.root), **(env or {})}
        specs = []
        for rank in range(size):
            own = per_rank(rank)
            own_env = {**env, **own.get("env", {})}
            specs.append(Spec(**{**options, **own, "env": own_env, "rank": rank, "port": port}))
        began = time.monotonic()
        ranks, errors, hung = engine_starts.run(specs, serve, limit_s)
        if not may_fail:
            assert not errors, "\n".join(errors.values())
            assert not hung, f"ranks {hung} did not end within {limit_s} s"
        return Start(ranks, errors, hung, time.monotonic() - began)

    def tables(self) -> list[Path]:
        """Our tables."""
        found = self.root.glob("flashinfer_autotune/*/*/*/rank_*.json")
        return sorted(p for p in found if not p.name.endswith(".manifest.json"))

    def own_files(self) -> dict[str, bytes]:
        """Return SGLang's own tables, by path."""
        kept = self.root.glob("flashinfer/autotune/**/*")
        return {str(path): path.read_bytes() for path in kept if path.is_file()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test time for importing SGLang: half a minute when busy."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set what the fork server inherits; it starts with the first rank."""
    root = str(tmp_path_factory.mktemp("sglang"))
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    if rest := os.environ.get("PYTHONPATH"):
        here.append(rest)
    os.environ.update(
        engine_starts.ENVIRONMENT, SGLANG_CACHE_DIR=root, PYTHONPATH=os.pathsep.join(here)
    )
    CONTEXT.set_forkserver_preload(PRELOAD)


@pytest.fixture
def job(tmp_path: Path, _environment: None) -> Callable[..., Job]:
    """Make a job with an empty cache root: ``job(tp=2)``; ``config`` changes the model's."""

    def make(config: dict[str, Any] | None = None, **options: Any) -> Job:
        root, model = tmp_path / "root", tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config or LLAMA))
        return Job(root, model, options)

    return make
