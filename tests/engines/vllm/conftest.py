# SPDX-License-Identifier: Apache-2.0
"""vLLM's own package over several starts, each in new processes.

Owns the fixture `job`: a hand-made model, a cache root, and `start`, which runs one process per
rank from a fork server that has vLLM loaded. Every wait is bounded and no process outlives a start.
"""

from __future__ import annotations

import json
import os
import shutil
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
from vllm_on_ranks import LLAMA, MIXTRAL, PRELOAD, Spec, serve

#: Makes the CUDA build of vLLM run on a machine without a GPU; all of them vLLM's own switches.
ENVIRONMENT = {
    **engine_starts.ENVIRONMENT,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HAS_FLASHINFER_CUBIN": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}


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
        size = options.get("tp", 1) * options.get("pp", 1) * options.get("dp", 1)
        port = free_port()
        env = {"VLLM_CACHE_ROOT": str(self.root), **(env or {})}
        env.setdefault("FLASHINFER_AUTOTUNE_CACHE_DIR", str(self.root / "managed"))
        specs = [
            Spec(rank=r, port=port, env=env, **{**options, **per_rank(r)}) for r in range(size)
        ]
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
        """Return vLLM's own tables, by path."""
        kept = [*self.root.glob("flashinfer_autotune_cache/**/*"), *self.root.glob("managed/**/*")]
        return {str(path): path.read_bytes() for path in kept if path.is_file()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test time for importing vLLM and inspecting a model: minutes when busy."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with what vLLM finds out about a model class in 15 s, once; no tables.

    The fork server starts with the first rank, so its environment and modules are set here.
    """
    root = tmp_path_factory.mktemp("vllm")
    os.environ.update(ENVIRONMENT, VLLM_CACHE_ROOT=str(root))
    CONTEXT.set_forkserver_preload(PRELOAD)
    for config in (LLAMA, MIXTRAL):
        (root / "config.json").write_text(json.dumps(config))
        _, errors, hung = engine_starts.run([Spec(0, 0, str(root), script="identity")], serve, 240)
        assert not errors, errors[0]
        assert not hung, "vLLM does not build a config"
    return root / "modelinfos"


@pytest.fixture
def job(tmp_path: Path, inspected: Path) -> Callable[..., Job]:
    """Make a job with an empty cache root: ``job(tp=2)``; ``config`` changes the model's."""

    def make(config: dict[str, Any] | None = None, **options: Any) -> Job:
        root, model = tmp_path / "root", tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config or LLAMA))
        shutil.copytree(inspected, root / "modelinfos")
        return Job(root, model, options)

    return make
