# SPDX-License-Identifier: Apache-2.0
"""Our figures on vLLM's own ``/metrics``: its app, its registry, its two spawned workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from metrics_page import LEFT_ALONE, check_left_alone, check_start, folder
from vllm_jobs import launch

from warmup_plugin.engines.vllm import compat

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

REGISTRY = """
import prometheus_client
from vllm.v1.metrics.prometheus import get_prometheus_registry
print(get_prometheus_registry() is prometheus_client.REGISTRY)
"""
SEVERAL = """
import os
from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus
setup_multiprocess_prometheus()
print(os.path.isdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
"""


def test_a_cold_and_a_warm_start_are_shown(job: Callable[..., Any]) -> None:
    """While the workers live; the second in the place of the first, in one folder."""
    engine = job()
    env = folder(engine.root)

    cold, warm = (launch(engine, METRICS_PAGE="1", **env) for _ in range(2))

    assert (cold.code, warm.code) == (0, 0), warm.log[-4000:]
    check_start(cold.page, "vllm", compat.TESTED[0], is_warm=False, ranks=2)
    check_start(warm.page, "vllm", compat.TESTED[0], is_warm=True, ranks=2)


def test_a_worker_that_is_forked_says_so(job: Callable[..., Any]) -> None:
    """Its parent had the library before the variable was set: no figure, one line, no failure."""
    engine = job(tp=2)

    start = engine.start(env=folder(engine.root))

    assert start.certificate
    said = [line for rank in start.ranks for line in rank["lines"] if "no figures" in line]
    assert len(said) == 1
    assert "prometheus_client was imported before PROMETHEUS_MULTIPROC_DIR was set" in said[0]


@pytest.mark.parametrize(
    ("lines", "has_variable", "answer"),
    [(REGISTRY, False, "True"), (REGISTRY, True, "False"), (SEVERAL, False, "True")],
    ids=["without the variable", "with it", "several API servers"],
)
def test_vllms_own_rule(
    job: Callable[..., Any], lines: str, has_variable: bool, answer: str  # noqa: FBT001  # a case
) -> None:  # fmt: skip
    """One API server shows its own process alone, unless the user has set the variable."""
    env = folder(job().root) if has_variable else {}
    done = subprocess.run(
        [sys.executable, "-c", lines], env={**os.environ, **env}, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == answer


@pytest.mark.parametrize("start", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_a_start_that_was_left_alone_is_told_of(
    job: Callable[..., Any], tmp_path: Path, start: dict[str, Any]
) -> None:
    """In the file: an alert has something to go by."""
    check_left_alone(job(), "vllm", tmp_path, **start)
