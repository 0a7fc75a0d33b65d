# SPDX-License-Identifier: Apache-2.0
"""The fixture `job`: one engine with an empty cache root, to be started again and again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Children find their functions by module name.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from vllm_jobs import Job, inspect, make_job


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test time for importing vLLM and inspecting a model: minutes when busy."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What vLLM finds out about a model's class, once; no tables."""
    found: Path = inspect(tmp_path_factory.mktemp("vllm"))
    return found


@pytest.fixture
def job(tmp_path: Path, inspected: Path) -> Callable[..., Job]:
    """Make a job with an empty cache root: ``job(tp=2)``; ``config`` changes the model's."""
    return lambda **options: make_job(tmp_path, inspected, **options)
