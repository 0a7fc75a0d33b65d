# SPDX-License-Identifier: Apache-2.0
"""Errors say what is wrong, and reach another process whole."""

from __future__ import annotations

import pickle

import pytest

from warmup_plugin.errors import (
    ForwardError,
    IdentityError,
    InstallError,
    LateError,
    PlacementError,
    RankLostError,
    RuleError,
    SessionError,
    SettingError,
    WarmupError,
)

RULES = [SettingError, IdentityError, PlacementError]
ALL: list[Exception] = [
    WarmupError("no ranks"),
    SessionError("a context is open"),
    InstallError("refused"),
    ForwardError("rank 3: the forward failed"),
    LateError("no memory"),
    RankLostError(3, "silent for 60 s"),
    RankLostError(3, "silent for 60 s", "node-b"),
    SettingError("WARMUP_PLUGIN_REPORTS", "many", "a whole number, 0 or more"),
    IdentityError("extra.x", float("inf"), "a finite number"),
    PlacementError("arch", "gpu", "sm<digits> or cpu"),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_survives_pickling(error: Exception) -> None:
    """Class, message and attributes are the same on the other side."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", RULES)
def test_names_thing_value_and_rule(kind: type[RuleError]) -> None:
    """All three are in the message, and are attributes; users may catch `ValueError`."""
    error = kind("thing", "bad", "good")
    assert str(error) == "thing is 'bad': must be good"
    assert (error.name, error.value, error.rule) == ("thing", "bad", "good")
    assert isinstance(error, ValueError)


def test_setting_error_names_the_variable() -> None:
    """What a user sets is a variable."""
    assert SettingError("WARMUP_PLUGIN_MODE", "x", "y").variable == "WARMUP_PLUGIN_MODE"


def test_lost_rank_is_named() -> None:
    """An operator looks for the rank first."""
    error = RankLostError(3, "silent for 60 s")
    assert (error.rank, error.reason) == (3, "silent for 60 s")
    assert str(error) == "rank 3 is lost: silent for 60 s"
    error.name_host("node-b")
    error.name_host("node-c")
    assert str(error) == "rank 3 is lost (host node-b): silent for 60 s"


@pytest.mark.parametrize("kind", [SessionError, InstallError, RankLostError])
def test_run_time_errors_have_one_base(kind: type[Exception]) -> None:
    """One `except WarmupError` catches what this package raises at run time."""
    assert issubclass(kind, WarmupError)
    assert issubclass(kind, RuntimeError)
