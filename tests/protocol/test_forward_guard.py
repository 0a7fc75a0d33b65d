# SPDX-License-Identifier: Apache-2.0
"""What becomes of a process that is in the engine's forward when another rank's has failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.forward_guard import ForwardGuard
from warmup_plugin.coordination.heartbeat import Heartbeat
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.messages import FAILED
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.exit_status import EXIT_ABANDONED
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from tests.protocol.conftest import Child, Clock, MemoryLink, QuietHeartbeat

SETTINGS = Settings(silence_s=10.0, task_limit_s=300.0, grace_s=30.0)


class Left(Exception):  # noqa: N818  # stands for the end of the process
    """Where the guard ends the process."""


def leave(status: int) -> None:
    raise Left(status)


def guard_of(key: str = FAILED) -> ForwardGuard:
    return ForwardGuard(0, 3, SETTINGS.grace_s, key, leave=leave)


def fails(link: MemoryLink, rank: int, key: str = FAILED) -> None:
    link.set(key, json.dumps({"rank": rank, "reason": "RuntimeError: planted"}).encode())


def test_a_forward_that_fails_elsewhere_ends_this_process_after_the_grace(
    link: MemoryLink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With rank and error in the log, at once and at the end."""
    guard, detector = guard_of(), FailureDetector(link, SETTINGS)
    guard.look(detector)
    fails(link, 2)
    for _ in range(29):
        guard.look(detector)
        clock.now_s += 1.0
    assert not guard.is_over
    clock.now_s += 2.0
    with pytest.raises(Left) as left:
        guard.look(detector)
    assert left.value.args == (EXIT_ABANDONED,) == (79,)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("rank 2" in text and "RuntimeError: planted" in text for text in said)
    assert "waiting 30 s" in said[0]
    assert "status 79" in said[1]


def test_a_rank_that_dies_in_the_forward_ends_it_too(
    link: MemoryLink, clock: Clock, seen: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody says so but its heartbeat."""
    link.beats(1, 1, step="survey", idle=True)
    link.beats(2, 1, step="survey", idle=True)
    seen.update({1: "runs", 2: "gone"})
    guard, detector = guard_of(), FailureDetector(link, SETTINGS)

    def look_on() -> None:
        for _ in range(60):
            guard.look(detector)
            clock.now_s += 1.0

    with pytest.raises(Left):
        look_on()
    assert "rank 2's forward failed" in caplog.records[-1].getMessage()
    assert "process gone" in caplog.records[-1].getMessage()


def test_the_first_failure_counts(link: MemoryLink, clock: Clock) -> None:
    """Another one does not lengthen the grace."""
    guard, detector = guard_of(), FailureDetector(link, SETTINGS)
    fails(link, 2)
    guard.look(detector)
    clock.now_s += 20.0
    fails(link, 1)
    guard.fail(1, "its store is gone")
    clock.now_s += 11.0
    with pytest.raises(Left):
        guard.look(detector)


def test_a_guard_is_on_duty_in_the_forward_only(link: MemoryLink, quiet: QuietHeartbeat) -> None:
    """Back within the grace: nobody ends anything."""
    coordinator = Coordinator(
        link, SETTINGS, detector=FailureDetector(link, SETTINGS), heartbeat=quiet
    )
    with coordinator.in_forward():
        assert quiet.guard is not None
        assert quiet.is_idle
    assert quiet.guard is None
    assert not quiet.is_idle


def test_ranks_that_shall_wait_have_no_guard(link: MemoryLink, quiet: QuietHeartbeat) -> None:
    """The engine's own time-out ends them; a failure here is told all the same."""
    settings = Settings(forward_failure="wait")
    coordinator = Coordinator(
        link, settings, detector=FailureDetector(link, settings), heartbeat=quiet
    )
    with coordinator.in_forward():
        assert quiet.is_idle
        assert quiet.guard is None
    with pytest.raises(ValueError, match="planted"), coordinator.in_forward():
        raise ValueError("planted")
    assert json.loads(link.held[f"{FAILED}/2"]) == {"rank": 0, "reason": "ValueError: planted"}


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_ends_the_forward_is_told(
    link: MemoryLink, quiet: QuietHeartbeat, error: BaseException
) -> None:
    """The others are in a collective with it, whether it was an error or the user."""
    coordinator = Coordinator(
        link, SETTINGS, detector=FailureDetector(link, SETTINGS), heartbeat=quiet
    )
    with pytest.raises(type(error)), coordinator.in_forward():
        raise error
    assert type(error).__name__ in json.loads(link.held[f"{FAILED}/1"])["reason"]


def test_the_next_forward_has_not_failed(
    link: MemoryLink, clock: Clock, quiet: QuietHeartbeat
) -> None:
    """An op that fails on every rank is passed through in another run, which may take its time."""
    coordinator = Coordinator(
        link, SETTINGS, detector=FailureDetector(link, SETTINGS), heartbeat=quiet
    )
    with pytest.raises(ValueError, match="planted"), coordinator.in_forward():
        raise ValueError("planted")
    with coordinator.in_forward():
        guard = quiet.guard
        assert guard is not None
        for _ in range(5):
            guard.look(coordinator._detector)
            clock.now_s += 20.0
    assert not guard.is_over


def test_the_forward_s_own_error_is_raised_when_the_store_is_gone(
    link: MemoryLink, quiet: QuietHeartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that comes of telling it."""

    def gone(_key: str, _value: bytes) -> None:
        raise RankLostError(0, "its store is gone")

    coordinator = Coordinator(
        link, SETTINGS, detector=FailureDetector(link, SETTINGS), heartbeat=quiet
    )
    monkeypatch.setattr(link, "set", gone)
    with pytest.raises(ValueError, match="planted"), coordinator.in_forward():
        raise ValueError("planted")


@pytest.mark.multiprocess
def test_a_process_stuck_in_its_forward_ends_itself(
    store: StoreLink, child: Callable[..., Child]
) -> None:
    """A real one, in a call that knows nothing of us."""
    assert store.store is not None
    stuck = child(
        """
        import ctypes, sys
        from torch.distributed import TCPStore
        from warmup_plugin.coordination.coordinator import Coordinator
        from warmup_plugin.settings import Settings
        from warmup_plugin.coordination.kv_client import StoreLink
        store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False)
        settings = Settings(silence_s=2.0, grace_s=0.5)
        coordinator = Coordinator(StoreLink(store, 1, 2, settings.silence_s), settings)
        with coordinator.in_forward():
            print("in it", flush=True)
            ctypes.CDLL(None).sleep(60)
        """,
        store.store.port,
    )
    ours = Heartbeat(store, Settings(silence_s=2.0))
    assert stuck.line() == "in it"
    began = time.monotonic()
    word = {"rank": 0, "reason": "OutOfMemoryError: planted"}
    store.set(f"{FAILED}/1", json.dumps(word).encode())
    status, said = stuck.end()
    ours.stop()
    assert status == EXIT_ABANDONED
    assert 0.4 < time.monotonic() - began < 5.0
    assert "rank 0" in said
    assert "OutOfMemoryError: planted" in said
    body = store.get_now("lost") or b""
    assert json.loads(body)["lost"] == 0, "who waits elsewhere names the right rank"


def test_it_leaves_as_soon_as_the_grace_period_is_over() -> None:
    """And not at the next beat, which is seconds later."""
    guard = ForwardGuard(0, 3, 0.5, leave=lambda _status: None)
    assert guard.left_s() == float("inf")
    guard.fail(1, "process gone")
    assert 0.3 < guard.left_s() <= 0.5
