# SPDX-License-Identifier: Apache-2.0
"""vLLM's own warm-up in a hardened pod: no temporary directory, a random user, little memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from warmup_plugin.engines.embedded.config import resolve

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.timeout(600)]

FAULTS = Path(__file__).parents[2] / "faults"
STARTS = Path(__file__).parents[1] / "pod_starts.py"
#: vLLM's own groups alone take more than the 32 of the embedded engine's test.
PROCESSES = 200


def test_it_comes_up_cold_and_warm(inspected: Path) -> None:
    """As alone, once its ranks have met: to load and to meet it needs a temporary directory."""
    if reason := resolve(f"{FAULTS / 'test_places.py'}:can_confine")():
        pytest.skip(reason)
    known = {path.name: path.read_text() for path in inspected.rglob("*.json")}
    out = resolve(f"{FAULTS / 'test_hardened_pod.py'}:in_the_pod")(
        [sys.executable, str(STARTS), "vllm", "/mnt/run"], {"known": known},
        processes=PROCESSES, limit_s=500.0,
    )  # fmt: skip
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    starts = {row["start"]: row for row in rows}
    assert not [row["errors"] for row in rows if row["errors"] or row["hung"]], rows
    cold, warm = starts["ours cold"], starts["ours warm"]
    assert sum(cold["timed"]) > 0
    assert warm["timed"] == [0, 0]
    assert len(cold["certificate"]) == 64
    assert cold["certificate"] == warm["certificate"]
