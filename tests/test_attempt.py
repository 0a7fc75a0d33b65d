# SPDX-License-Identifier: Apache-2.0
"""What an adapter does about a failure: it falls back, it raises, or its process ends by itself."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warmup_plugin.engines.attempt import Attempt, Scope, follow
from warmup_plugin.errors import ForwardError, RankLostError, SessionError, WarmupError
from warmup_plugin.settings import Settings
from warmup_plugin.steps import cold_steps
from warmup_plugin.tuner import environment_stamp

SETTINGS = Settings.from_env({})
COMPLETE = Settings.from_env({}, mode="require-complete")


@pytest.mark.parametrize(
    "failure",
    ["rank 1: elastic experts", SessionError("rank 1 cannot go on: MemoryError")],
    ids=str,
)
def test_one_line_says_why_an_engine_warms_up_as_without(
    failure: WarmupError | str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "warmup_plugin"):
        follow(failure, SETTINGS, "vLLM")
    (said,) = caplog.messages
    assert said == f"warmup-plugin: vLLM warms up as without this package: {failure}"


@pytest.mark.parametrize(
    ("failure", "settings", "match"),
    [
        ("rank 1 did not come", COMPLETE, "mode require-complete: rank 1 did not come"),
        (SessionError("no store"), COMPLETE, "no store"),
        (ForwardError("rank 1: the forward failed"), SETTINGS, "rank 1: the forward failed"),
    ],
)
def test_what_is_not_fallen_back_from_is_raised(
    failure: WarmupError | str, settings: Settings, match: str
) -> None:
    with pytest.raises(SessionError, match=match):
        follow(failure, settings, "vLLM")


SWALLOWED = """
import time
from warmup_plugin.engines.attempt import follow
from warmup_plugin.errors import RankLostError
from warmup_plugin.settings import Settings

try:
    settings = Settings.from_env({{}}, grace_s=0.5, forward_failure={failure!r})
    follow(RankLostError(1, "process gone", "node-b"), settings, "SGLang", of="stage 1")
except RankLostError:
    time.sleep(2.0 if {failure!r} == "wait" else 60.0)
"""


@pytest.mark.parametrize(("failure", "status"), [("end", 79), ("wait", 0)])
def test_a_process_that_has_lost_a_rank_ends_whatever_becomes_of_the_exception(
    failure: str, status: int
) -> None:
    """Within the grace period, with the documented status, unless the operator will wait."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", SWALLOWED.format(failure=failure)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (
        "the job ends: SGLang, stage 1: rank 1 is lost (host node-b): process gone" in done.stderr
    )
    assert ("(status 79)" in done.stderr) == (status == 79)
    assert time.monotonic() - began < 50


KNOWN_BEFORE = """
import time
from warmup_plugin.engines.attempt import follow
from warmup_plugin.errors import RankLostError
from warmup_plugin.settings import Settings

lost = RankLostError(1, "process gone")
now = time.monotonic
time.monotonic = lambda: now() + 599.0
try:
    follow(lost, Settings.from_env({}, grace_s=600.0), "vLLM")
except RankLostError:
    time.sleep(600.0)
"""


def test_the_grace_period_begins_when_the_loss_is_known() -> None:
    """Rank 0 sees the others off in it, before its exception gets here."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", KNOWN_BEFORE],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 79, done.stderr
    assert "it ends itself in 1 s (status 79)" in done.stderr


def test_the_exception_is_raised_as_it_is() -> None:
    """The engine hears which rank it was; its own handling comes first."""
    wait = Settings.from_env({}, forward_failure="wait")
    with pytest.raises(RankLostError) as caught:
        follow(RankLostError(1, "process gone"), wait, "vLLM")
    assert caught.value.rank == 1


def test_rank_0_begins_the_look_that_all_wait_for_before_all_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def begin(**_options: object) -> str:
        done.append("look")
        return ""

    monkeypatch.setattr(environment_stamp, "begin", begin)

    def make() -> dict[str, object]:
        done.append("identity")
        raise OSError("no identity")

    given, reason = Attempt(Scope(0, 1)).prepared(
        make, SETTINGS, "0", lambda: {"engine_cache_root": tmp_path}
    )
    assert done == ["look", "identity"]
    assert (given, reason) == ({}, "OSError: no identity")


def test_the_other_ranks_get_ready_meanwhile_for_what_follows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only where programs are run for the look: a warm start does without."""
    done: list[str] = []

    def make() -> dict[str, object]:
        raise OSError("no identity")

    monkeypatch.setattr(cold_steps, "prepare_cold_steps", lambda **_: done.append("ready"))
    for is_slow in (False, True):
        monkeypatch.setattr(environment_stamp, "look_round", lambda is_slow=is_slow: is_slow)
        Attempt(Scope(1, 1)).prepared(make, SETTINGS, "0", lambda: {"engine_cache_root": tmp_path})
        assert done == ["ready"] * is_slow


def test_the_look_is_recalled_where_the_warm_up_keeps_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An engine that keeps none names a root of its own, which comes before the user's."""
    recalled: list[Path | None] = []
    monkeypatch.setattr(environment_stamp, "recall", recalled.append)

    def make() -> dict[str, object]:
        raise OSError("no identity")

    settings = Settings.from_env({"WARMUP_PLUGIN_CACHE_ROOT": str(tmp_path / "user")})
    own = tmp_path / "own"
    roots: dict[str, Path | None] = {"engine_cache_root": tmp_path / "engine", "cache_root": own}
    Attempt(Scope(1, 1)).prepared(make, settings, "0", lambda: roots)
    (found,) = recalled
    assert found is not None
    assert found.is_relative_to(own)
