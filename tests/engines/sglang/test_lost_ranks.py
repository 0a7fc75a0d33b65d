# SPDX-License-Identifier: Apache-2.0
"""A rank of SGLang that is lost for good: its stage ends and names it; the next start is sound.

`lost_ranks.py` has the cases. Each pipeline stage is a session of its own, so another stage hears
of it from SGLang.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lost_ranks import Case, check, grid

SAMPLE = [
    Case("stop", "ready", 1, 2),
    Case("kill", "ready_said", 0, 2),
    Case("kill", "read", 2, 4),
    Case("stop", "share", 3, 2, 2),
    Case("kill", "certify", 1, 2),
]


@pytest.mark.engine
@pytest.mark.multiprocess
@pytest.mark.parametrize("case", grid(SAMPLE))
def test_every_rank_that_lives_ends_and_names_it(job: Callable[..., Any], case: Case) -> None:
    stage = range(case.rank // case.tp * case.tp, (case.rank // case.tp + 1) * case.tp)
    named = f"SGLang, stage {case.rank // case.tp}: rank {case.rank % case.tp} " * (case.pp > 1)
    check(case, job(tp=case.tp, pp=case.pp), concerned=stage, named=named)
