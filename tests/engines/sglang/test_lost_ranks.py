# SPDX-License-Identifier: Apache-2.0
"""A rank of SGLang that is lost for good: all others end and name it, and the next start is sound.

`lost_ranks.py` has the cases. All ranks of a pipeline are one session as long as all its stages
open the same ones; one that a stage has to itself is that stage's alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lost_ranks import Case, check, check_that_all_do_without, grid

SAMPLE = [
    Case("stop", "ready", 1, 2),
    Case("kill", "ready_said", 0, 2),
    Case("kill", "read", 2, 4),
    Case("stop", "ready_said", 0, 2, 2),
    Case("stop", "share", 3, 2, 2),
    Case("kill", "certify", 1, 2),
]


@pytest.mark.engine
@pytest.mark.multiprocess
@pytest.mark.parametrize("case", grid(SAMPLE))
def test_every_rank_that_lives_ends_and_names_it(job: Callable[..., Any], case: Case) -> None:
    check(case, job(tp=case.tp, pp=case.pp))


@pytest.mark.engine
@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.soak)])
def test_a_warm_up_of_one_stage_ends_on_that_stage(job: Callable[..., Any], how: str) -> None:
    """The other stage does not warm up at all; whoever is named is counted within the stage."""
    case = Case(how, "tune", 3, 2, 2)
    check(
        case, job(tp=2, pp=2), concerned=[2, 3], named="SGLang, stage 1: rank 1 ",
        per_rank=lambda rank: {"extra": {"disable_flashinfer_autotune": rank < 2}},
    )  # fmt: skip


@pytest.mark.engine
@pytest.mark.multiprocess
@pytest.mark.parametrize("point", ["read", "share"])
def test_one_that_lives_and_lacks_something_is_nobodys_end(
    job: Callable[..., Any], point: str
) -> None:
    """Before the forward, and after it: the engine's own warm-up runs then, with its forward."""
    check_that_all_do_without(job(tp=2), point)
