# SPDX-License-Identifier: Apache-2.0
"""Every op that FlashInfer tunes: FlashInfer alone, cold with the plugin, warm, and loaded again.

The rows are selected in `rows.py`, compared in `compare.py`; those of `SMALLEST` cover every runner
class that any row covers and run with the other tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real_ops.rows import Row

if TYPE_CHECKING:
    from tests.real_ops.conftest import Verdicts

# A bound for what hangs: a server starts with the first test that asks it.
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]


def test_as_flashinfer_alone(verdicts: Verdicts, row: Row) -> None:
    """Keys, winners, answers and what was profiled are FlashInfer's; a warm start does nothing."""
    verdict = verdicts.of(row)
    assert verdict["faults"] == []
    assert verdict["reached"]
