# SPDX-License-Identifier: Apache-2.0
"""Ranks that cannot share: each tunes its own by replay, or all serve defaults, and say why.

FlashInfer 0.6.12 runs from a folder of its own (``WARMUP_TEST_RELEASES``), in a process that sees
no other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess

Ranks = list[dict[str, Any]]
StartsUnder = Callable[..., tuple[list[Ranks], list[str]]]

#: What is started under a release that cannot share, in this order, in one root.
STARTS = ("noise", "slow rank 0", "agreement")


def reasons(ranks: Ranks) -> set[str]:
    return {rank["report"]["reason"] for rank in ranks}


def test_each_rank_tunes_its_own_where_keys_cannot_tell_options_apart(
    fallback_release: Path, starts_under: StartsUnder
) -> None:
    """per_rank by replay: own winners, nothing stored, the reason in log and report."""
    (ranks, _, _), files = starts_under(fallback_release, *STARTS)
    version = fallback_release.name
    assert {rank["report"]["flashinfer_version"] for rank in ranks} == {version}
    assert {rank["report"]["agreement"] for rank in ranks} == {"none"}
    (reason,) = reasons(ranks)
    assert reason.startswith("rank 0: the file keys of FlashInfer")
    assert version in reason
    assert [reason in " ".join(rank["seen"]) for rank in ranks] == [True, False], "rank 0 logs it"
    for rank in ranks:
        assert rank["counts"]["profile_single_kernel"] == rank["report"]["tactics_timed"] > 100
        assert rank["report"]["path"] == ""
        assert rank["report"]["certificate"] == ""
    assert ranks[0]["served"] != ranks[1]["served"]
    assert files == []


def test_ranks_meet_after_tuning_alone(fallback_release: Path, starts_under: StartsUnder) -> None:
    """A barrier: the quick rank leaves when the slow one has tuned; no collective meanwhile."""
    (_, (slow, quick), _), _ = starts_under(fallback_release, *STARTS)
    began, seconds = slow["report"]["timeline"][-1][1:]
    own_began, own_seconds = quick["report"]["timeline"][-1][1:]
    assert own_began + own_seconds < began
    assert quick["seen"]["finished"] > began + seconds
    timed = [tactic for rank in (slow, quick) for tactic in rank["seen"]["tactics"]]
    assert len(timed) > 200
    waits = [wait for rank in (slow, quick) for wait in rank["seen"]["collectives"]]
    assert waits
    assert not [
        (name, tactic)
        for name, began, ended in waits
        for tactic in timed
        if began < tactic["ended"] and tactic["began"] < ended
    ]


def test_ranks_that_must_agree_serve_defaults(
    fallback_release: Path, starts_under: StartsUnder
) -> None:
    """With require_agreement nobody tunes: FlashInfer's default everywhere, with the reason."""
    (others, _, ranks), files = starts_under(fallback_release, *STARTS)
    assert reasons(ranks) == reasons(others)
    for rank in ranks:
        assert rank["report"]["agreement"] == "defaults"
        assert rank["counts"]["profile_single_kernel"] == 0
        assert {tactic for _, tactic in rank["served"].values()} == {-1}
    assert ranks[0]["served"] == ranks[1]["served"]
    assert files == []


# -- ranks in different environments ---------------------------------------------------------------


def test_a_rank_on_another_gpu_is_named(deploy: Callable[..., Deployment]) -> None:
    """Its tactics are of no use to the others: per_rank, with rank, factor and both values."""
    job = deploy(tp=2, layers=2, timing="rank_noise")
    start = job.start("on_gpus", names=["GPU A", "GPU B"])
    assert {report.agreement for report in start.reports} == {"none"}
    (reason,) = {report.reason for report in start.reports}
    assert "rank 1" in reason
    assert "stamp.gpu" in reason
    assert "'GPU B', not 'GPU A'" in reason
    assert reason in start.seen[0][0]
    assert min(start.timed) > 100
    assert start.disputed
    assert job.files() == []


def test_a_rank_that_does_not_know_its_gpu_is_no_other(deploy: Callable[..., Deployment]) -> None:
    """A field that is unknown on one side is not a difference: one table for both."""
    job = deploy(tp=2, layers=2, timing="rank_noise")
    cold = job.start("on_gpus", names=["unknown", "GPU B"])
    assert cold.certificate
    warm = job.start("on_gpus", names=["GPU B", "unknown"])
    warm.assert_warm()
    assert warm.certificate == cold.certificate


def test_different_environments_that_must_agree(deploy: Callable[..., Deployment]) -> None:
    """The setting on one rank is enough: defaults on both."""
    job = deploy(tp=2, layers=2, timing="rank_noise")
    start = job.start("on_gpus", names=["GPU A", "GPU B"], require_agreement_on=1)
    assert {report.agreement for report in start.reports} == {"defaults"}
    assert not start.disputed
    # The engine's own all-reduce is passed through and tunes itself.
    assert {tactic for rank in start.served for _, tactic in rank.values()} == {-1}
    assert job.files() == []


def test_a_rank_with_another_skip_list_takes_the_op_out_for_all(
    deploy: Callable[..., Deployment],
) -> None:
    """Ranks still share: the op serves its default everywhere, and a warning names the rank."""
    job = deploy(tp=2, layers=2, timing="rank_noise")
    start = job.start("skipping", ops=["embedded::lm_head"], rank=1)
    assert start.certificate
    assert not start.disputed
    assert any("rank 1" in text and "skip_ops" in text for text in start.warnings)
    for served in start.served:
        defaults = {call.split()[0] for call, (_, tactic) in served.items() if tactic == -1}
        assert defaults == {"embedded::lm_head"}


# -- forwards that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]], ids=["rank 0", "rank 1", "both"])
def test_a_forward_that_fails(ranks: list[int], deploy: Callable[..., Deployment]) -> None:
    """Its own error where it failed, a ForwardError naming rank and error elsewhere; then again."""
    job = deploy(dp=2, layers=2, timing="deterministic")
    start = job.start("with_a_forward_that_fails", ranks=ranks)
    own = "ZeroDivisionError: planted"
    other = f"ForwardError: rank {ranks[0]}: the forward failed: {own}"
    assert start.seen == [own if rank in ranks else other for rank in range(2)]
    assert start.certificate
