# SPDX-License-Identifier: Apache-2.0
"""vLLM's own warm-up in a hardened pod: no temporary directory, a random user, few processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hardened_pod import Limits, check_certified, check_never_worse

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.timeout(600)]

LIMITS = Limits(alone=92, ours=104)


def known(inspected: Path) -> dict[str, str]:
    """Return what vLLM has found out about the model's class, by file."""
    return {path.name: path.read_text() for path in inspected.rglob("*.json")}


def test_it_comes_up_cold_and_warm(inspected: Path) -> None:
    """Certified, where vLLM alone never comes up."""
    check_certified("vllm", known(inspected), LIMITS)


def test_it_comes_up_with_as_few_processes_as_alone(inspected: Path) -> None:
    """Cold and warm, by itself."""
    check_never_worse("vllm", known(inspected), LIMITS)
