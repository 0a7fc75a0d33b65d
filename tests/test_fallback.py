# SPDX-License-Identifier: Apache-2.0
"""The two laws: what a live rank lacks ends no job, and from a lost rank nobody falls back."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from warmup_plugin import errors
from warmup_plugin.errors import (
    ForwardError,
    InstallError,
    LateError,
    RankLostError,
    RefusedError,
    SessionError,
    WarmupError,
)
from warmup_plugin.settings import Mode
from warmup_plugin.steps.fallback import Failure, Way, failure_of, way_of

MODES = [mode for mode in get_args(Mode) if mode != "off"]
AS_WITHOUT, RAISE, END = Way.AS_WITHOUT, Way.RAISE, Way.END


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


#: What an adapter may be left with, the failure that it stands for, and the way in the modes that
#: may tune and in the one that serves what is stored or does not start.
CASES: dict[str, tuple[BaseException | str, Failure, Way, Way]] = {
    "a rank without this package": (
        "rank 1 did not come within 300 s", Failure.NOT_READY, AS_WITHOUT, RAISE,
    ),
    "a rank of another version": (
        "rank 1: warmup-plugin is 0.0.9 there", Failure.NOT_READY, AS_WITHOUT, RAISE,
    ),
    "no thread to be had on a rank": (
        SessionError("rank 1 cannot go on: RuntimeError: can't start new thread"),
        Failure.CANNOT_GO_ON, AS_WITHOUT, RAISE,
    ),
    "a vote of another step": (
        SessionError("rank 1 cannot go on: its vote at step plan is one of step 'share'"),
        Failure.CANNOT_GO_ON, AS_WITHOUT, RAISE,
    ),
    "ranks that do not fit together": (
        RefusedError("rank 1: a FlashInfer tuning context is open already; close it first"),
        Failure.CANNOT_GO_ON, AS_WITHOUT, RAISE,
    ),
    "an agreed table that one rank cannot read": (
        InstallError("the shared table cannot be read"), Failure.CANNOT_GO_ON, AS_WITHOUT, RAISE,
    ),
    "the forward of another rank": (
        ForwardError("rank 1: the forward failed: OutOfMemoryError"), Failure.FORWARD, RAISE, RAISE,
    ),
    "the forward of this rank": (ZeroDivisionError(), Failure.NOT_OURS, RAISE, RAISE),
    "interrupted": (KeyboardInterrupt(), Failure.NOT_OURS, RAISE, RAISE),
    "a dead rank": (RankLostError(1, "process gone"), Failure.RANK_LOST, END, END),
    "the forward of this rank, as another one is lost": (
        _caused(RuntimeError("Connection closed by peer"), RankLostError(1, "process gone")),
        Failure.RANK_LOST, END, END,
    ),
    "a rank that has been told to end": (RankLostError(1, "SIGTERM"), Failure.RANK_LOST, END, END),
    "after the last record": (LateError("no memory"), Failure.TOO_LATE, RAISE, RAISE),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_failure_has_one_way(name: str) -> None:
    error, failure, way, when_complete = CASES[name]
    assert failure_of(error) is failure
    for mode in MODES:
        assert way_of(failure, mode) is (when_complete if mode == "require-complete" else way)


def test_the_table_has_every_failure_and_every_error() -> None:
    """Who adds one says here where it leads."""
    assert {failure for _, failure, _, _ in CASES.values()} == {*Failure}
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    ours = {kind for kind in kinds if issubclass(kind, WarmupError)} - {WarmupError}
    assert ours == {type(error) for error, *_ in CASES.values() if isinstance(error, WarmupError)}


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_rank_is_never_fallen_back_from_and_nobody_else_ends_a_job(mode: str) -> None:
    """The laws themselves: over all failures, also such as are added to the table one day."""
    for failure in Failure:
        assert (way_of(failure, mode) is END) == (failure is Failure.RANK_LOST)


def test_an_error_that_is_none_of_these_is_one_of_a_rank_that_lives() -> None:
    class AnotherError(WarmupError):
        pass

    assert failure_of(AnotherError("new")) is Failure.CANNOT_GO_ON
