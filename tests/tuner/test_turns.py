# SPDX-License-Identifier: Apache-2.0
"""Sessions of one process take turns; forwards that ask nothing, or hang alone, are told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from warmup_plugin.engines.embedded import LaunchError

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

OPEN = "a session of toys on thread 'MainThread' is open, and this one is opened"
EMPTY = "the forward called nothing that FlashInfer tunes, on any rank"


def test_two_threads_at_once(children: Children) -> None:
    """The second waits for the first; both are certified, and both keep what they have tuned."""
    one, two, served, left = children.one("on_turns:at_once")
    for report in (one, two):
        assert report.agreement == "certified"
        assert report.tasks["tuned"] == report.tasks["seen"] == 1
        assert report.certificate
        assert report.warnings == ()
    assert all(tactic != -1 for _, tactic in served)
    assert left == []
    assert one.waited == ()
    (waited,) = two.waited
    assert waited.for_whom == "a session of toys on thread 'first'"
    assert waited.at == "open"
    assert waited.seconds > 0.4


def test_the_wait_is_bounded(children: Children) -> None:
    """The one that waits raises, naming the other and the limit; then it may try again."""
    one, two, again = children.one("on_turns:too_long")
    assert one.agreement == "certified"
    assert two == (
        "SessionError: a session of toys on thread 'MainThread' has not ended: must end within "
        "0.3 s (WARMUP_PLUGIN_REPLICA_WAIT_S)"
    )
    assert again.tasks["tuned"] == 1


def test_one_within_another(children: Children) -> None:
    """Refused at once, since it would wait for itself; the outer one is none the worse."""
    one, three, refused = children.one("on_turns:within_another")
    assert one.tasks["tuned"] == three.tasks["tuned"] == 1
    assert one.agreement == three.agreement == "certified"
    assert refused == [f"SessionError: {OPEN} within it: must be closed first"] * 2


def test_jobs_of_several_ranks(children: Children) -> None:
    """The second is refused on every rank, by the first rank that refuses; later it may run."""
    for one, two, again in children.ranks("on_turns:of_two_ranks", tp=2):
        assert one.agreement == "certified"
        assert one.warnings == ()
        assert two.startswith("SessionError: rank 0 cannot take part: a session of toys on thread")
        assert "is open in this process: must end before one of several ranks" in two
        assert again.agreement == "certified"


def test_a_child_of_a_process_in_a_session(children: Children) -> None:
    """It has no session open; the parent goes on."""
    report, status = children.one("on_turns:in_a_child")
    assert status == [0]
    assert report.tasks["tuned"] == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_forward_that_calls_nothing_tunable(children: Children, ranks: int) -> None:
    """A warning, cold and warm, and nothing that looks like a certificate."""
    for _ in ("cold", "warm"):
        for empty, one_sided, beside in children.ranks("on_turns:nothing", tp=ranks):
            for report in (empty, beside):
                assert report.tasks["seen"] == 0
                assert report.certificate == ""
                assert report.reason == EMPTY
                assert [text for text in report.warnings if text.startswith(EMPTY)]
                assert f"({EMPTY})" in report.line()
            assert one_sided.certificate
            assert one_sided.warnings == ()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_collective_on_one_rank_only(children: Children, rank: int) -> None:
    """The others name the rank that does not come back, long before the group's time-out."""
    with pytest.raises(LaunchError) as caught:
        children.ranks("on_turns:stuck", tp=2, rank=rank)
    failures = caught.value.failures
    other = failures[1 - rank]
    assert f"RankLostError: rank {rank} is lost" in other
    assert "after another rank is back from its own" in other
    assert "a collective that others do not enter?" in other
    assert set(failures) == {0, 1}
