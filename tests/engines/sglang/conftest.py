# SPDX-License-Identifier: Apache-2.0
"""SGLang's own package over several starts, each in new processes.

Owns the fixture `job`: a hand-made model, a cache root, and `start`, which runs one process per
rank from a fork server that has SGLang loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Children find their functions by module name.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import engine_starts
from engine_starts import CONTEXT
from sglang_jobs import Job, make_job
from sglang_on_ranks import PRELOAD


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
        return make_job(tmp_path, config, **options)

    return make
