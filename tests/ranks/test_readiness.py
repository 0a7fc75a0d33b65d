# SPDX-License-Identifier: Apache-2.0
"""The meeting before the first: all ranks go on, or none, or all that live name a lost one.

Ranks are threads over a store of torch's; the process of a rank that is lost is a real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination import opening
from warmup_plugin.coordination.opening import Opening
from warmup_plugin.coordination.versions import BUILD
from warmup_plugin.engines import readiness
from warmup_plugin.engines.readiness import Readiness
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import ProcessCard, _place, _stat
from warmup_plugin.settings import Settings

pytestmark = pytest.mark.multiprocess

BOUND_S, SILENCE_S = 20.0, 0.5
SETTINGS = Settings.from_env({}, silence_s=SILENCE_S)
READY = "ready"


class Job:
    """Ranks that meet; what each came to is a text, or ``ready`` with its link."""

    def __init__(self, store: Any, size: int) -> None:
        self.store, self.size = store, size
        self.links: dict[int, Any] = {}
        self.came_to: dict[int, str] = {}

    def meet(
        self,
        *reasons: str | None,
        session: str = "0",
        may_stay_away: bool = False,
        about: Sequence[str] = (),
    ) -> list[str]:
        """Have ranks meet, each with its reason; None: a rank that does not come."""
        self.may_stay_away, self.about = may_stay_away, about or [""] * len(reasons)
        threads = [
            threading.Thread(target=self._meet, args=(rank, reason, session), daemon=True)
            for rank, reason in enumerate(reasons)
            if reason is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
            assert not thread.is_alive(), "it waits"
        return [self.came_to[rank] for rank in sorted(self.came_to)]

    def _meet(self, rank: int, reason: str, session: str) -> None:
        try:
            coordinator = Readiness(
                self.store, session, rank, self.size, SETTINGS, may_stay_away=self.may_stay_away
            )
            link, found = coordinator.meet(reason, "", self.about[rank])
        except RankLostError as error:
            self.came_to[rank] = str(error)
            return
        if link is not None:
            self.links[rank] = link
        self.came_to[rank] = found or READY


@pytest.fixture
def make_job() -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(size: int, store: Any = None) -> Job:
        made.append(Job(store or vars(dist)["HashStore"](), size))
        return made[-1]

    yield make
    for job in made:
        for rank in sorted(job.links, reverse=True):
            job.links[rank].close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a rank's."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def leave_card(job: Job, rank: int, process: subprocess.Popen[bytes], **more: Any) -> None:
    """Say what a rank says as it comes: whose process it is."""
    card = ProcessCard(process.pid, _stat(process.pid)[1], _place()).to_json()
    body = json.dumps({**card, "host": "node-b", **more})
    job.store.set(f"warmup_plugin//0/card/{rank}", body)


def test_all_ranks_are_ready_and_share_a_store(make_job: Callable[..., Job]) -> None:
    job = make_job(3)
    assert job.meet("", "", "") == [READY] * 3
    job.links[2].set("key", b"from rank 2")
    assert job.links[1].get_now("key") == b"from rank 2"
    assert all(job.links[0].has([f"card/{rank}"]) for rank in range(3)), "their processes are known"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_cannot_is_the_reason_on_all(make_job: Callable[..., Job], rank: int) -> None:
    reasons = ["", "", ""]
    reasons[rank] = "elastic experts"
    assert make_job(3).meet(*reasons) == [f"rank {rank}: elastic experts"] * 3


@pytest.mark.parametrize("name", ["TCPStore", "patient_client"])
def test_one_without_a_descriptor_is_the_reason_on_all(
    make_job: Callable[..., Job], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot open the session's store, or join it: it lives, so all warm up as without us."""

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(opening, name, fail)
    seen = make_job(2).meet("", "")
    assert len(set(seen)) == 1
    assert seen[0].startswith(f"rank {0 if name == 'TCPStore' else 1}: cannot ")
    assert "[Errno 24] Too many open files" in seen[0]


def test_one_that_cannot_reach_the_store_is_the_reason_on_all(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(opening, "patient_client", fail)
    seen = make_job(2).meet("", "")
    assert len(set(seen)) == 1
    assert seen[0].startswith("rank 1: cannot reach rank 0's store: 127.0.0.1 port ")
    assert "injected" in seen[0]


def test_another_version_is_named_with_this_one(make_job: Callable[..., Job]) -> None:
    job = make_job(2)
    job.store.set("warmup_plugin//0/word/1", json.dumps({"reason": "", "version": "0.0.9"}))
    (seen,) = job.meet("", None)
    assert seen == (
        f"rank 1: its warmup-plugin is 0.0.9, another rank's {BUILD}: must be the same: install "
        "one version on all ranks"
    )


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_rank_that_is_lost_before_its_word_is_named(
    make_job: Callable[..., Job], sleeper: subprocess.Popen[bytes], how: str
) -> None:
    """Within a silence, on every rank, with its host; nobody waits out the five minutes."""
    job = make_job(3)
    leave_card(job, 1, sleeper)
    os.kill(sleeper.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    began = time.monotonic()
    seen = job.meet("", None, "")
    assert time.monotonic() - began < SILENCE_S + 5.0
    state = "gone" if how == "killed" else "stopped"
    expected = f"rank 1 is lost (host node-b): before the warm-up, process {state}, silent for "
    assert [text.startswith(expected) for text in seen] == [True, True], seen


def test_a_rank_that_only_takes_its_time_is_not_given_up(
    make_job: Callable[..., Job], sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process runs; when the time is over all warm up as without this package."""
    monkeypatch.setattr(readiness, "MEET_S", 3 * SILENCE_S)
    job = make_job(2)
    leave_card(job, 1, sleeper)
    (seen,) = job.meet("", None)
    assert seen == "rank 1 did not come within 2 s: is the plugin there?"


def test_a_rank_that_has_been_here_and_that_nobody_sees_is_lost(
    make_job: Callable[..., Job], sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine that has gone: it may be dead, and nobody falls back from that."""
    monkeypatch.setattr(readiness, "MEET_S", 1.0)
    job = make_job(2)
    leave_card(job, 1, sleeper, place="another machine/1")
    (seen,) = job.meet("", None)
    assert seen.startswith("rank 1 is lost (host node-b): before the warm-up, has not got ready")


def test_a_rank_without_this_package_is_no_lost_one(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "MEET_S", 1.0)
    job = make_job(3)
    assert job.meet("", None, "") == ["rank 1 did not come within 1 s: is the plugin there?"] * 2
    assert job.meet(None, "")[1] == job.came_to[0], "who comes late hears the same"


def test_a_store_that_is_gone_takes_its_rank_along(make_job: Callable[..., Job]) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
    del store
    (seen,) = make_job(2, other).meet(None, "")
    assert seen.startswith("rank 0 is lost (host 127.0.0.1): its store is gone")


STORE = """
import time; from torch.distributed import TCPStore
s = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
print(s.port, flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("then", ["link_beside", "Presence"])
def test_a_store_that_goes_as_a_rank_comes_is_named_with_its_host(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Once this rank is connected, and once it has left its card."""
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        other = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        own = getattr(readiness, then)

        def kill_after(*args: Any) -> Any:
            made = own(*args)
            process.kill()
            process.wait()
            return made

        monkeypatch.setattr(readiness, then, kill_after)
        (seen,) = make_job(2, other).meet(None, "")
    assert seen.startswith("rank 0 is lost (host 127.0.0.1): its store is gone")


def test_a_store_whose_process_is_stopped_is_not_waited_for(make_job: Callable[..., Job]) -> None:
    """A connection that is made to it is never answered, and torch would wait for ever."""
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        own = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        (seen,) = make_job(2, own).meet(None, "")
        assert time.monotonic() - began < SILENCE_S + 5.0
        process.kill()
    assert seen == "rank 0 is lost (host 127.0.0.1): its store accepts no connection for 0.5 s"


def test_a_process_that_left_its_other_store_unanswered_is_not_waited_for_again(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's store and that of the job are most often rank 0's both."""
    monkeypatch.setitem(globals(), "SETTINGS", Settings.from_env({}, silence_s=60.0))
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        own = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        own.set("warmup_plugin//0/offer/", '{"way": "probe"}')

        def unanswered(*_: object) -> NoReturn:
            os.kill(process.pid, signal.SIGSTOP)
            raise RankLostError(0, "its store has not answered")

        monkeypatch.setattr(Opening, "answer", unanswered)
        try:
            (seen,) = make_job(2, own).meet(None, "")
        finally:
            process.kill()
    assert seen == "rank 0 is lost (host 127.0.0.1): its store has not answered"


def test_meetings_of_one_process_are_apart(make_job: Callable[..., Job]) -> None:
    """A second one finds nothing of the first one's, whatever that came to."""
    job = make_job(2)
    assert job.meet("elastic experts", "") == ["rank 0: elastic experts"] * 2
    assert job.meet("", "", session="1") == [READY] * 2


# -- ranks that may have no such warm-up --------------------------------------------------------


@pytest.mark.parametrize("away", [0, 2])
def test_ranks_that_may_stay_away_are_waited_for_in_seconds(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    """All that come hear the same, and so does who comes after all."""
    monkeypatch.setattr(readiness, "GATHER_S", 1.0)
    job = make_job(3)
    reasons = [None if rank == away else "" for rank in range(3)]
    began = time.monotonic()
    said = job.meet(*reasons, may_stay_away=True)
    assert 1.0 < time.monotonic() - began < 1.0 + 5.0
    assert said == [f"rank {away} has not come within 1 s"] * 2
    late = ["" if rank == away else None for rank in range(3)]
    assert set(job.meet(*late, may_stay_away=True)) == {*said}


def test_one_that_has_come_and_takes_its_time_is_waited_for(
    make_job: Callable[..., Job], sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "GATHER_S", 0.3)
    monkeypatch.setattr(readiness, "MEET_S", 2.0)
    job = make_job(2)
    leave_card(job, 1, sleeper)
    (said,) = job.meet("", None, may_stay_away=True)
    assert said == "rank 1 did not come within 2 s: is the plugin there?"


def test_one_that_has_come_and_is_lost_is_named_although_it_might_have_stayed_away(
    make_job: Callable[..., Job], sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "GATHER_S", 2 * SILENCE_S)
    job = make_job(3)
    leave_card(job, 1, sleeper)
    sleeper.kill()
    sleeper.wait()
    seen = job.meet("", None, "", may_stay_away=True)
    expected = "rank 1 is lost (host node-b): before the warm-up, process gone"
    assert [text.startswith(expected) for text in seen] == [True, True], seen


def test_ranks_about_to_begin_other_warm_ups_begin_none_together(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(3)
    seen = job.meet("", "", "", may_stay_away=True, about=["draft", "draft", "target"])
    assert seen == ["rank 2 is about to begin another warm-up than rank 0"] * 3
    again = job.meet("", "", "", session="1", may_stay_away=True, about=["draft"] * 3)
    assert again == [READY] * 3
