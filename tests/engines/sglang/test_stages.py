# SPDX-License-Identifier: Apache-2.0
"""Two pipeline stages of two ranks: one session while they open the same ones, else apart.

What one stage has to itself concerns nobody else: the other has its own session within seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from warmup_plugin.engines import readiness

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

EXTEND = {"SGLANG_FLASHINFER_AUTOTUNE_EXTEND": "1"}
#: What starts take beside the wait for a stage that does not come, on a busy machine too.
SLACK_S = 25.0


def certificates(start: Any, *ranks: int) -> set[str]:
    """Return the certificates of these ranks' warm-ups."""
    reports = [report for rank in ranks for report in start.ranks[rank]["reports"]]
    assert {report["agreement"] for report in reports} == {"certified"}
    return {report["certificate"] for report in reports}


def sizes(start: Any) -> list[list[int]]:
    """Return over how many ranks each rank's sessions were; 0 for a warm-up of SGLang's own."""
    return [
        [report["world_size"] if report else 0 for report in rank["reports"]]
        for rank in start.ranks
    ]


def test_stages_tune_what_they_have_in_common_once(job: Callable[..., Any]) -> None:
    """Two stages of two ranks time no more than one stage does, and keep one table."""
    engine = job(tp=2)
    one = engine.start()
    (engine.root / "flashinfer_autotune").rename(engine.root / "elsewhere")

    both = engine.start(pp=2)

    assert sum(both.timed) == sum(one.timed) > 0
    assert [report["world_size"] for rank in both.ranks for report in rank["reports"]] == [4] * 4
    assert len({str(rank["served"]) for rank in both.ranks}) == 1
    assert [path.name for path in engine.tables()] == ["rank_tp0_pp0_dp0.json"]
    assert len(both.lines) == 1, both.lines
    assert engine.start(pp=2).timed == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({"extra": {"disable_flashinfer_autotune": True}}, id="does not warm up"),
        pytest.param({"plugin": False}, id="has no plugin"),
    ],
)
def test_a_stage_that_does_not_come(job: Callable[..., Any], own: dict[str, Any]) -> None:
    """The other one waits for it once, for seconds, and has a session of its own."""
    engine = job(tp=2, pp=2)

    def options(rank: int) -> dict[str, Any]:
        return own if rank < 2 else {}

    cold, warm = engine.start(per_rank=options), engine.start(per_rank=options)

    assert sizes(cold) == sizes(warm) == [[], [], [2], [2]]
    assert certificates(cold, 2, 3) == certificates(warm, 2, 3)
    assert warm.timed[2:] == [0, 0]
    for start in (cold, warm):
        assert readiness.GATHER_S < start.seconds < readiness.GATHER_S + SLACK_S
        (said,) = [line for line in start.ranks[2]["lines"] if "no session over all" in line]
        assert said.endswith("over all 4 ranks: rank 0 has not come within 5 s")


def test_a_second_warm_up_of_one_stage_only(job: Callable[..., Any]) -> None:
    """The first one is over both stages; nobody waits for long for the other's second one."""
    engine = job(tp=2, pp=2)

    def options(rank: int) -> dict[str, Any]:
        return {"env": EXTEND} if rank >= 2 else {}

    cold, warm = engine.start(per_rank=options), engine.start(per_rank=options)

    assert sizes(cold) == sizes(warm) == [[4], [4], [4, 2], [4, 2]]
    assert warm.timed == [0, 0, 0, 0]
    assert cold.seconds < readiness.GATHER_S + SLACK_S
    assert certificates(cold, 2, 3) == certificates(warm, 2, 3)
    assert certificates(cold, 0, 1) < certificates(cold, 2, 3)


def test_stages_that_have_parted_stay_apart(job: Callable[..., Any]) -> None:
    """Their graphs may hold different tactics by then, and who has waited once waits no more."""
    engine = job(tp=2, pp=2)

    start = engine.start(env=EXTEND, fault="late+linger@2,3")

    assert sizes(start) == [[2, 2]] * 4
    certificates(start, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("own", "stage_1"),
    [
        pytest.param({"env": {"WARMUP_PLUGIN_STRATEGY": "leader"}}, [2], id="a setting"),
        pytest.param({"extra": {"chunked_prefill_size": 64}}, [2], id="an identity"),
        pytest.param("own_cublas", [0], id="cuBLAS, on each rank of it another"),
        pytest.param("cannot_prepare", [0], id="a lack"),
    ],
)
def test_what_one_stage_has_of_its_own(
    job: Callable[..., Any], own: dict[str, Any] | str, stage_1: list[int]
) -> None:
    """The other one has its session, at once; 0: this stage warms up as without this package."""
    began = time.monotonic()
    if isinstance(own, str):
        start = job(tp=2, pp=2).start(fault=f"{own}+linger@2,3")
    else:
        start = job(tp=2, pp=2).start(per_rank=lambda rank: own if rank >= 2 else {})

    assert time.monotonic() - began < SLACK_S
    assert sizes(start) == [[2], [2], stage_1, stage_1]
    certificates(start, 0, 1)
    assert all(timed > 0 for timed in start.timed) or stage_1 == [2]
    assert not start.disputed


def test_an_op_of_one_stage_that_cannot_run_on_a_default(job: Callable[..., Any]) -> None:
    """The other stage's forward has succeeded: both run once more, with that op passed through."""
    faults = {0: "no_default_of_lm_head+linger", 1: "one_op_less+linger"}
    start = job(tp=2, pp=2).start(per_rank=lambda rank: {"fault": faults[rank // 2]})

    assert sizes(start) == [[4]] * 4
    assert len(certificates(start, 0, 1, 2, 3)) == 1
    assert [[*rank["report"]["passed_through"]] for rank in start.ranks[:2]] == [
        ["embedded::lm_head"]
    ] * 2
    assert [rank["passes"] for rank in start.ranks] == [["decode 32"] * 2] * 4
