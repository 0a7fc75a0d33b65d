# SPDX-License-Identifier: Apache-2.0
"""A race of FlashInfer's own candidates comes to the sweep's winners, where times are exact.

Each case of the catalogue on each GPU and release, by the rules of `compare.py` without a margin:
keys, winners, what was profiled at all, what serves, cold and warm, and what FlashInfer alone
serves with the table.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.real_ops.rows import Row

# A bound for what hangs, as in `test_matrix.py`: a row sweeps and races.
pytestmark = pytest.mark.timeout(600)


def test_a_race_has_the_sweeps_winners(raced_row: Row, verdicts: Any) -> None:
    verdict = verdicts.of(raced_row)
    assert verdict["reached"]
    assert verdict["faults"] == []
