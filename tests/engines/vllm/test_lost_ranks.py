# SPDX-License-Identifier: Apache-2.0
"""A rank of vLLM that is lost for good: all others end and name it, and the next start is sound.

`lost_ranks.py` has the cases. All ranks of vLLM's world are one session, pipeline stages included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lost_ranks import Case, check, grid

SAMPLE = [
    Case("kill", "ready", 1, 2),
    Case("stop", "ready_said", 3, 2, 2),
    Case("kill", "agree", 2, 4),
    Case("stop", "tune", 0, 2),
    Case("stop", "certify", 1, 2),
]


@pytest.mark.engine
@pytest.mark.multiprocess
@pytest.mark.parametrize("case", grid(SAMPLE))
def test_every_rank_that_lives_ends_and_names_it(job: Callable[..., Any], case: Case) -> None:
    check(case, job(tp=case.tp, pp=case.pp))
