# SPDX-License-Identifier: Apache-2.0
"""An engine's own warm-up in a hardened pod: no temporary directory, a random user, little memory.

It is taken away once the ranks have met, since to load and to meet an engine needs one. Alone an
engine does not come up then: FlashInfer has Python search for cuBLAS, which writes a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded.config import resolve

FAULTS = Path(__file__).parents[1] / "faults"
STARTS = Path(__file__).with_name("pod_starts.py")
#: An engine's own groups alone take more than the 32 of the embedded engine's test.
PROCESSES = 200


def check_cold_and_warm(engine: str, known: dict[str, Any]) -> None:
    """Start cold, then warm. ``known``: what the engine's ranks read of models, by file name."""
    if reason := resolve(f"{FAULTS / 'test_places.py'}:can_confine")():
        pytest.skip(reason)
    out = resolve(f"{FAULTS / 'test_hardened_pod.py'}:in_the_pod")(
        [sys.executable, str(STARTS), engine, "/mnt/run"], {"known": known},
        processes=PROCESSES, limit_s=500.0,
    )  # fmt: skip
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    starts = {row["start"]: row for row in rows}
    alone = [starts[f"alone {when}"]["errors"] for when in ("cold", "warm")]
    assert all("No usable temporary directory" in str(errors) for errors in alone), alone
    ours = [row for row in rows if row["start"].startswith("ours")]
    assert not [row for row in ours if row["errors"] or row["hung"]], ours
    cold, warm = starts["ours cold"], starts["ours warm"]
    assert sum(cold["timed"]) > 0
    assert warm["timed"] == [0, 0]
    assert len(cold["certificate"]) == 64
    assert cold["certificate"] == warm["certificate"]
