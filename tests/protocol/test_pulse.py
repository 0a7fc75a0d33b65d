# SPDX-License-Identifier: Apache-2.0
"""When a rank is given up, and when not: by rule with a clock that is set, and real processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.forward_guard import ForwardGuard
from warmup_plugin.coordination.heartbeat import Heartbeat
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.messages import BYE
from warmup_plugin.coordination.reconnecting import RenewedLink
from warmup_plugin.coordination.seals import KEY_BYTES, Seal
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.exit_status import EXIT_ABANDONED
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from tests.protocol.conftest import Child, Clock, MemoryLink, QuietHeartbeat

SETTINGS = Settings(silence_s=10.0, task_limit_s=300.0)


def given_up_after(
    detector: FailureDetector,
    clock: Clock,
    limit_s: float = 1000.0,
    meanwhile: Callable[[], None] = lambda: None,
) -> float:
    """Return the seconds of looking on after which rank 1 is given up; infinity if it is not."""
    began = clock.now_s
    while clock.now_s - began < limit_s:
        meanwhile()
        try:
            detector.look({1})
        except RankLostError:
            return clock.now_s - began
        clock.now_s += 0.25
    return float("inf")


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "after_s"),
    [("stopped", 10.0), ("gone", 10.0), ("unseen", 50.0), ("runs", 300.0)],
)
def test_a_silent_rank_is_given_up_by_what_its_machine_sees(
    link: MemoryLink, clock: Clock, seen: dict[int, str], process: str, after_s: float
) -> None:
    """One silence if it does not run, five if nobody sees it, the limit of a task if it runs."""
    link.beats(1, 7, step="survey", idle=True)
    seen[1] = process
    detector = FailureDetector(link, SETTINGS)
    assert given_up_after(detector, clock) == pytest.approx(after_s, abs=0.5)
    with pytest.raises(RankLostError, match="in step survey") as caught:
        detector.look({1})
    assert (process in caught.value.reason) == (process != "runs")


def test_a_rank_that_beats_is_not_silent(
    link: MemoryLink, clock: Clock, seen: dict[int, str]
) -> None:
    """However late its beats come within a silence, and whatever is seen of its process."""
    seen[1] = "stopped"
    detector = FailureDetector(link, SETTINGS)
    for count in range(20):
        link.beats(1, count, idle=True)
        assert given_up_after(detector, clock, limit_s=9.75) == float("inf")


@pytest.mark.parametrize(
    ("case", "after_s"),
    [
        pytest.param(("survey", True, "end"), 300.0, id="alone in its forward"),
        pytest.param(("survey", False, "end"), float("inf"), id="as all are"),
        pytest.param(("survey0", True, "end"), float("inf"), id="back, and waits"),
        pytest.param(("survey", True, "wait"), float("inf"), id="the engine's to end"),
    ],
)
def test_a_forward_from_which_one_does_not_come_back(
    link: MemoryLink, clock: Clock, case: tuple[str, bool, Any], after_s: float
) -> None:
    """Counted from when the watcher was back, for as long as a task may take."""
    step, is_back, failure = case
    settings = replace(SETTINGS, forward_failure=failure)
    detector = FailureDetector(link, settings)

    def beat() -> None:
        link.beats(1, int(clock.now_s), step=step, idle=True)

    assert given_up_after(detector, clock, meanwhile=beat) == float("inf")
    detector.is_back = is_back
    detector._tasks.clear()
    assert given_up_after(detector, clock, meanwhile=beat) == pytest.approx(after_s, abs=0.5)
    assert detector.describe(1).startswith("in its forward") == (after_s == 300.0)


def test_a_rank_that_has_not_joined(link: MemoryLink, clock: Clock) -> None:
    """Nobody sees a process that has not said which it is: five silences."""
    link.held.clear()
    detector = FailureDetector(link, SETTINGS)
    assert given_up_after(detector, clock) == pytest.approx(50.0, abs=0.5)
    with pytest.raises(RankLostError, match="has not joined"):
        detector.look({1})


@pytest.mark.parametrize(
    ("mate", "after_s"),
    [("stopped", 10.0), ("gone", 10.0), ("runs", 300.0), ("unseen", 50.0)],
)
def test_a_rank_of_another_machine_is_seen_by_its_mate(
    link: MemoryLink, clock: Clock, mate: str, after_s: float
) -> None:
    """What a rank beside it sees counts as long as that one beats itself."""
    for rank in (1, 2):
        link.arrives(rank, place="there")
    link.beats(1, 1, idle=True)
    detector = FailureDetector(link, SETTINGS)

    def look_on() -> None:
        link.beats(2, int(clock.now_s), mates={"1": mate} if mate != "unseen" else {})

    assert given_up_after(detector, clock, meanwhile=look_on) == pytest.approx(after_s, abs=1.0)


def test_a_mate_that_is_silent_itself_has_seen_nothing(link: MemoryLink, clock: Clock) -> None:
    """Both machines' ranks are cut off: five silences, though the mate said that it runs."""
    for rank in (1, 2):
        link.arrives(rank, place="there")
        link.beats(rank, 1, idle=True, mates={"1": "runs"})
    assert given_up_after(FailureDetector(link, SETTINGS), clock) == pytest.approx(50.0, abs=0.5)


# -- work that does not get on ---------------------------------------------------------------------


@pytest.mark.parametrize("task", ["gemm @ 128", ""], ids=["at a task", "at none"])
def test_a_rank_that_beats_and_does_not_get_on(
    link: MemoryLink, clock: Clock, seen: dict[int, str], task: str
) -> None:
    """It is taken for stuck after the limit of a task; a new task counts anew."""
    seen[1] = "runs"
    detector, notes = FailureDetector(link, SETTINGS), 0

    def work() -> None:
        link.beats(1, int(clock.now_s), task=task, notes=notes)

    for notes in range(3):  # noqa: B007  # `work` says it
        assert given_up_after(detector, clock, limit_s=299.0, meanwhile=work) == float("inf")
    assert given_up_after(detector, clock, meanwhile=work) == pytest.approx(1.0, abs=1.0)
    with pytest.raises(RankLostError, match=r"in step tune.* for 30\d s: task_limit_s"):
        detector.look({1})


def test_a_rank_that_waits_itself_need_not_get_on(
    link: MemoryLink, clock: Clock, seen: dict[int, str]
) -> None:
    """Or is in the engine's forward: its own waits are bounded by what it waits for."""
    seen[1] = "runs"
    detector = FailureDetector(link, SETTINGS)

    def wait() -> None:
        link.beats(1, int(clock.now_s), idle=True)

    assert given_up_after(detector, clock, limit_s=10_000.0, meanwhile=wait) == float("inf")


def test_a_rank_that_has_left_is_given_up_at_once(link: MemoryLink, clock: Clock) -> None:
    """Its process may live on, with nothing more to say. So also for the thread of a heartbeat."""
    link.seal = Seal(b"k" * KEY_BYTES)
    link.beats(1, 1, step="share")
    detector = FailureDetector(link, SETTINGS)
    detector.look({1})
    link.set(f"{BYE}/1", b"1")
    assert given_up_after(detector, clock) == 0.0
    with pytest.raises(RankLostError, match="in step share, has left"):
        detector.look({1})


@pytest.mark.parametrize(("key", "from_s", "to_s"), [(b"k" * KEY_BYTES, 3.0, 4.0), (b"", 0.0, 0.5)])
def test_a_last_word_that_a_stranger_has_taken_away_is_waited_for(
    link: MemoryLink, clock: Clock, key: bytes, from_s: float, to_s: float
) -> None:
    """By who reads such words, in a store in which they come back."""
    link.seal = Seal(key)
    link.beats(1, 1, step="share")
    link.set(f"{BYE}/1", b"1")
    assert from_s <= given_up_after(FailureDetector(link, SETTINGS, hears=True), clock) < to_s


def test_an_older_heartbeat_that_is_put_back_is_none(link: MemoryLink, clock: Clock) -> None:
    """A stranger who has read one cannot make a dead rank beat again."""
    detector = FailureDetector(link, SETTINGS)
    counts = itertools.cycle([1, 2])
    found = given_up_after(detector, clock, meanwhile=lambda: link.beats(1, next(counts)))
    assert SETTINGS.silence_s < found < SETTINGS.task_limit_s, "not by its task alone"


def test_where_a_rank_is_said_to_be(link: MemoryLink) -> None:
    """For the log and for errors."""
    detector = FailureDetector(link, SETTINGS)
    assert detector.describe(1) == "has not joined"
    link.beats(1, 1, step="tune", task="gemm @ 128")
    assert detector.describe(1) == "in step tune, at gemm @ 128"


def test_rank_0_says_whom_it_waits_for(
    link: MemoryLink,
    quiet: QuietHeartbeat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every so often, with the time and what that rank is at; not for a short wait.

    Whoever shows progress is told at once, and told again when the wait is over.
    """
    monkeypatch.setattr("warmup_plugin.coordination.coordinator._TELL_S", 0.5)
    caplog.set_level(logging.INFO, "warmup_plugin")
    link.beats(1, 1, task="gemm @ 128")
    coordinator = Coordinator(
        link, SETTINGS, detector=FailureDetector(link, SETTINGS), heartbeat=quiet
    )
    end = time.monotonic() + 1.5

    def get_now(key: str) -> bytes | None:
        return (b"1" if time.monotonic() > end else None) if key == "a key" else link.held.get(key)

    told = list[list[int]]()
    coordinator.on_wait = lambda ranks: told.append([*ranks])
    monkeypatch.setattr(link, "get_now", get_now)
    assert coordinator._wait("a key", waits_for={1}) == b"1"
    assert (told[0], told[-1]) == ([1], [])
    said = [record.getMessage() for record in caplog.records]
    assert 1 <= len(said) <= 3
    assert re.fullmatch(r"waiting for rank 1 for \d+ s: in step tune, at gemm @ 128", said[0])


# -- real processes --------------------------------------------------------------------------------

#: Joins the store at a port as rank 1 and beats; does what it is told, one line at a time.
BEATS = """
    import ctypes, sys, time
    from torch.distributed import TCPStore
    from warmup_plugin.coordination.heartbeat import Heartbeat
    from warmup_plugin.settings import Settings
    from warmup_plugin.coordination.kv_client import StoreLink
    port, silence_s = int(sys.argv[1]), float(sys.argv[2])
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    heartbeat = Heartbeat(StoreLink(store, 1, 2, silence_s), Settings(silence_s=silence_s))
    print("beats", flush=True)
    for line in sys.stdin:
        if line.startswith("hold"):  # the interpreter lock, in a call that does not give it back
            print("holds", flush=True)
            ctypes.PyDLL(None).usleep(int(float(line.split()[1]) * 1e6))
        if line.startswith("note"):
            heartbeat.note("tune", "gemm @ 128")
        print(heartbeat.overslept(), flush=True)
"""
SILENCE_S = 0.5


@pytest.fixture
def beating(store: StoreLink, child: Callable[..., Child]) -> Child:
    """Rank 1, beating."""
    assert store.store is not None
    process = child(BEATS, store.store.port, SILENCE_S)
    assert process.line() == "beats"
    return process


def look_for(detector: FailureDetector, seconds: float) -> None:
    """Watch rank 1 for a while; raises when it is given up."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, lambda _waited_s: detector.look({1}))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("number", "process"), [(signal.SIGSTOP, "stopped"), (signal.SIGKILL, "gone")]
)
def test_a_stopped_or_killed_process_is_named_within_two_silences(
    store: StoreLink, beating: Child, number: signal.Signals, process: str
) -> None:
    """With what it was at."""
    beating.ask("note")
    detector = FailureDetector(store, Settings(silence_s=SILENCE_S))
    look_for(detector, 2 * SILENCE_S)
    beating.send(number)
    began = time.monotonic()
    with pytest.raises(RankLostError, match=f"at gemm @ 128, process {process}, silent for"):
        look_for(detector, 10.0)
    assert SILENCE_S * 0.5 < time.monotonic() - began < 2 * SILENCE_S + 0.5


@pytest.mark.multiprocess
def test_a_process_that_holds_the_interpreter_is_not_given_up(
    store: StoreLink, beating: Child
) -> None:
    """A long compile or C call keeps the heartbeat from beating; the process runs."""
    detector = FailureDetector(store, Settings(silence_s=SILENCE_S))
    look_for(detector, 0.1)
    assert beating.ask(f"hold {8 * SILENCE_S}") == "holds"
    look_for(detector, 0.2)
    before = beats_of(store)
    look_for(detector, 3 * SILENCE_S)
    assert beats_of(store) == before, "it was silent all the time"
    assert beating.line() == "True"  # as far as it knows it might have been stopped
    look_for(detector, 0.3)
    assert beats_of(store) > before


def beats_of(store: StoreLink) -> int:
    count: int = json.loads(store.get_now("beat/1") or b"")["beats"]
    return count


@pytest.mark.multiprocess
def test_a_process_knows_that_it_was_stopped(beating: Child) -> None:
    """Once, and not after a stop that nobody could have noticed."""
    assert beating.ask("was I?") == "False"
    for seconds, overslept in [(0.1, "False"), (2 * SILENCE_S, "True")]:
        beating.send(signal.SIGSTOP)
        time.sleep(seconds)
        beating.send(signal.SIGCONT)
        assert beating.ask("was I?") == overslept
        time.sleep(SILENCE_S / 2)
        beating.ask("was I?")  # the beat after the stop tells it once more, at most
        assert beating.ask("was I?") == "False"


STORE = """
    import sys
    from torch.distributed import TCPStore
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    print(store.port, flush=True)
    for line in sys.stdin:
        print(store.check([line.strip()]), flush=True)
"""


def joined(server: Child, silence_s: float = SILENCE_S) -> StoreLink:
    """Return rank 1's connection to a store of another process."""
    at = ("127.0.0.1", int(server.line()))
    return StoreLink(TCPStore(*at, is_master=False, wait_for_workers=False), 1, 2, silence_s)


@pytest.mark.multiprocess
def test_a_stopped_store_is_rank_0_lost(child: Callable[..., Child]) -> None:
    """A question to a stopped process has no answer and no error: it is bounded all the same."""
    server = child(STORE)
    link = joined(server)
    other = link.clone()
    link.set("key", b"1")
    assert link.has(["key"])
    server.stop()
    for asked in (link, other):
        began = time.monotonic()
        with pytest.raises(RankLostError, match=r"has not answered for 0\.5 s") as caught:
            asked.has(["key"])
        assert caught.value.rank == 0
        assert time.monotonic() - began < 4 * SILENCE_S
    began = time.monotonic()
    with pytest.raises(RankLostError, match="has not answered"):
        link.get_now("key")
    assert time.monotonic() - began < 0.1, "what comes late would be taken for this answer"
    link.set("last words", b"1")
    server.send(signal.SIGCONT)
    assert server.ask("last words") == "True"
    link.close()
    other.close()


@pytest.mark.multiprocess
def test_a_store_that_is_slow_to_hand_a_value_out_is_waited_for(
    child: Callable[..., Child],
) -> None:
    """Not as long as a store that is stopped for good; torch's own wait for a key is not used."""
    server = child(STORE)
    link = joined(server, silence_s=4.0)
    link.set("key", b"1")
    assert link.has(["key"])
    server.stop()
    began, waking = time.monotonic(), threading.Timer(3.0, server.send, [signal.SIGCONT])
    waking.start()
    assert link.get_now("key") == b"1"
    assert 2.0 < time.monotonic() - began < 6.0
    assert link.has(["key"]), "the answers are still those of their questions"
    waking.join(10.0)
    link.close()


class Cell:
    """Where a guard ends this process: it is noted instead."""

    status = 0

    def leave(self, status: int) -> None:
        self.status = status


@contextlib.contextmanager
def in_forward(link: StoreLink, guard: ForwardGuard) -> Iterator[Heartbeat]:
    """Let a rank be in its forward in the body, with a heartbeat that is connected."""
    heartbeat = Heartbeat(link, Settings(silence_s=SILENCE_S, task_limit_s=300.0))
    with heartbeat.idle(guard):
        wait_until(lambda: not heartbeat._link.is_cut_off, within(10.0))
        yield heartbeat


@pytest.mark.multiprocess
def test_a_heartbeat_outlives_a_store_that_was_slow_to_answer(
    child: Callable[..., Child], caplog: pytest.LogCaptureFixture
) -> None:
    """It beats again on another connection, and the forward it looks after is not given up."""
    server, cell = child(STORE), Cell()
    link = joined(server)
    guard = ForwardGuard(1, 2, 60.0, leave=cell.leave)
    with in_forward(link, guard) as heartbeat:
        server.stop()
        wait_until(lambda: heartbeat._link.is_cut_off, within(10.0))
        wait_until(lambda: "cannot complete" in caplog.text, within(10.0))
        server.send(signal.SIGCONT)
        wait_until(lambda: not heartbeat._link.is_cut_off, within(10.0))
        wait_until(lambda: "answers again" in caplog.text, within(10.0))
    again = link.clone()
    before = beats_of(again)
    wait_until(lambda: beats_of(again) > before, within(10.0))
    assert not guard.is_over
    assert cell.status == 0
    for each in (again, link):
        each.close()
    heartbeat.stop()


@pytest.mark.multiprocess
def test_a_store_that_is_gone_is_told_from_one_that_is_slow(child: Callable[..., Child]) -> None:
    """Nobody listens there: said at once, and the rank in its forward ends after the grace."""
    server, cell = child(STORE), Cell()
    link = joined(server)
    guard = ForwardGuard(1, 2, 0.3, leave=cell.leave)
    with in_forward(link, guard) as heartbeat:
        server.send(signal.SIGKILL)
        wait_until(lambda: cell.status == EXIT_ABANDONED, within(10.0))
    began = time.monotonic()
    with pytest.raises(RankLostError, match="its store is gone"):
        link.clone()
    assert time.monotonic() - began < 5.0, "torch would go on asking for ten"
    heartbeat.stop()
    link.close()


@pytest.mark.multiprocess
def test_a_store_that_is_stopped_as_the_forward_begins_is_waited_for_once(
    child: Callable[..., Child],
) -> None:
    """While its heartbeat has no connection yet: for one silence, and not once more for its end."""
    server, silence_s, grace_s = child(STORE), 6.0, 0.5
    stuck = child(
        """
        import ctypes, sys
        from warmup_plugin.coordination.connecting import client
        from warmup_plugin.coordination.coordinator import Coordinator
        from warmup_plugin.coordination.kv_client import StoreLink
        from warmup_plugin.settings import Settings
        port, silence_s, grace_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
        settings = Settings(silence_s=silence_s, grace_s=grace_s)
        link = StoreLink(client("127.0.0.1", port, 10.0), 1, 2, silence_s)
        coordinator = Coordinator(link, settings)
        coordinator.name_hosts([[0, 1]], ["node-a"])  # as the first round has
        print("ready", flush=True)
        input()
        with coordinator.in_forward():
            print("in it", flush=True)
            ctypes.CDLL(None).sleep(60)
        """,
        int(server.line()), silence_s, grace_s,
    )  # fmt: skip
    assert stuck.line() == "ready"
    server.stop()
    began = time.monotonic()
    assert stuck.ask("") == "in it"
    status, said = stuck.end()
    assert status == EXIT_ABANDONED, said
    assert time.monotonic() - began < silence_s + grace_s + 4.0, said
    assert "this process ends (status 79): rank 0" in said


def test_no_connection_is_made_for_a_heartbeat_that_has_ended(store: StoreLink) -> None:
    """Nothing of it stays behind."""
    link, before = RenewedLink(store), {*threading.enumerate()}
    link.close()
    for _ in range(2):
        with pytest.raises(RankLostError, match="accepts no connection"):
            link.has(["key"])
    assert {*threading.enumerate()} <= before


def test_a_heartbeat_that_has_no_store_is_not_waited_for(store: StoreLink) -> None:
    """Rank 0 finds that it may have been stopped; to wait for another beat would be for ever."""
    coordinator = Coordinator(store, Settings(silence_s=0.4))
    heartbeat = coordinator._heartbeat
    wait_until(lambda: not heartbeat._link.is_cut_off, within(10.0))
    heartbeat._link.close()
    wait_until(lambda: heartbeat._link.is_cut_off, within(10.0))
    time.sleep(0.5)
    began = time.monotonic()
    coordinator.confirm()
    assert time.monotonic() - began < 2.0
    coordinator.close()
