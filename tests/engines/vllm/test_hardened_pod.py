# SPDX-License-Identifier: Apache-2.0
"""vLLM's own warm-up in a hardened pod: no temporary directory, a random user, little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hardened_pod import check_cold_and_warm

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.timeout(600)]


def test_it_comes_up_cold_and_warm(inspected: Path) -> None:
    """As alone, once its ranks have met."""
    check_cold_and_warm("vllm", {path.name: path.read_text() for path in inspected.rglob("*.json")})
