# SPDX-License-Identifier: Apache-2.0
"""Ranks that meet over a real store: one record for all, and no wait without an end.

Most ranks here are threads, each with its own connection to one `TCPStore`; those that die, or
count what a process holds, are processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination import connecting, opening, sockets
from warmup_plugin.coordination import coordinator as meeting_module
from warmup_plugin.coordination.base import Alone
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.offers import Offer, place, read_offer
from warmup_plugin.coordination.opening import ADDRESS, LOOPBACK, NONE, Opening
from warmup_plugin.coordination.reconnecting import RenewedLink
from warmup_plugin.coordination.rounds import Decision, Round, Vote, VoteError
from warmup_plugin.coordination.session_end import turn_away
from warmup_plugin.engines.embedded import LaunchError
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime import needs
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.settings import Settings
from warmup_plugin.steps import open_session
from warmup_plugin.steps.options import Options
from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner import environment_stamp

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess


class Said(Vote, frozen=True):
    """A vote with a number, and as much text as a test wants."""

    number: int = 0
    text: str = ""


class Sum(Decision, frozen=True):
    """A decision with a number."""

    sum: int = 0


def of(name: str) -> Round[Said, Sum]:
    """Return a round of that name."""
    return Round(name, Said, Sum)


STEP, PLAN = of("step"), of("plan")

#: No test waits for longer; what takes this long hangs.
BOUND_S = 10.0


def open_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(port: int) -> TCPStore:
    return TCPStore(
        "127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
    )


class Call:
    """A function under way on one rank, in a thread that the test run does not wait for."""

    def __init__(self, function: Callable[[Coordinator], Any], coordinator: Coordinator) -> None:
        self._outcome: Future[Any] = Future()
        threading.Thread(target=self._run, args=(function, coordinator), daemon=True).start()

    def _run(self, function: Callable[[Coordinator], Any], coordinator: Coordinator) -> None:
        try:
            self._outcome.set_result(function(coordinator))
        except BaseException as error:  # noqa: BLE001  # raised again where the test asks
            self._outcome.set_exception(error)

    def result(self) -> Any:
        return self._outcome.result(BOUND_S)


class Ranks:
    """The meetings of one session, all over one store; ``late`` ranks have not come yet."""

    def __init__(self, size: int, settings: Settings, late: Collection[int] = ()) -> None:
        self._size, self._settings = size, settings
        self.store = open_store()
        self.meetings: dict[int, Coordinator] = {}
        for rank in sorted(set(range(size)) - set(late)):
            self.arrive(rank)

    def arrive(self, rank: int) -> None:
        """Let a rank join."""
        self.meetings[rank] = Coordinator(self.link(rank), self._settings)

    def link(self, rank: int) -> StoreLink:
        """Return a rank's connection to the store."""
        store = self.store if rank == 0 else join(self.store.port)
        return StoreLink(store, rank, self._size)

    def start(self, function: Callable[[Coordinator], Any], *ranks: int) -> list[Call]:
        """Call a function on some ranks, on all that have come if none is named."""
        return [Call(function, self.meetings[rank]) for rank in ranks or self.meetings]

    def run(self, function: Callable[[Coordinator], Any], *ranks: int) -> list[Any]:
        """Return what the function returns on each of the ranks."""
        return [call.result() for call in self.start(function, *ranks)]


@contextlib.contextmanager
def ranks_of(size: int, **settings: Any) -> Iterator[Ranks]:
    ranks = Ranks(size, Settings.from_env({}, **settings))
    yield ranks
    ranks.run(lambda coordinator: coordinator.close())


def lost(function: Callable[[], Any]) -> tuple[int, str]:
    """Return the rank that a call gives up, and why."""
    with pytest.raises(RankLostError) as caught:
        function()
    return caught.value.rank, caught.value.reason


def unable(function: Callable[[], Any]) -> str:
    """Return what a call says of a rank that lives and cannot go on."""
    with pytest.raises(SessionError) as caught:
        function()
    return str(caught.value)


def on(_votes: Mapping[int, Said]) -> Sum:
    return Sum(go="on")


# -- meeting ---------------------------------------------------------------------------------------


def test_every_rank_gets_the_one_record() -> None:
    """Rank 0 alone decides, once, from every rank's word; steps follow each other."""
    decided = []

    def decide(votes: Mapping[int, Said]) -> Sum:
        decided.append({rank: vote.number for rank, vote in votes.items()})
        return Sum(go="on", sum=sum(vote.number for vote in votes.values()))

    def meet_at(step: Round[Said, Sum], coordinator: Coordinator) -> Sum:
        return coordinator.meet(step, Said(number=10**coordinator.rank), decide)

    with ranks_of(3) as ranks:
        for step in map(of, ("first", "second")):
            found = ranks.run(partial(meet_at, step))
            assert found == [Sum(go="on", sum=111, step=step.name)] * 3
    assert decided == [{rank: 10**rank for rank in range(3)}] * 2


def test_a_single_process_meets_itself() -> None:
    """The same calls without a store: it decides alone and gets the bodies it put."""
    alone = Alone()
    found = alone.meet(STEP, Said(number=7), lambda votes: Sum(go="on", sum=votes[0].number))
    assert (found.go, found.sum) == ("on", 7)
    assert alone.get(alone.put(b"body")) == b"body"
    alone.close()


def test_a_decision_that_fails_reaches_every_rank() -> None:
    """Nobody waits for a record that will never come: all raise, with step and error."""

    def decide(_votes: Mapping[int, Said]) -> Sum:
        raise KeyError("planted")

    with ranks_of(2) as ranks:
        seen = ranks.run(lambda m: unable(lambda: m.meet(PLAN, Said(), decide)))
    assert seen == ["rank 0 cannot go on: cannot decide step plan: KeyError('planted')"] * 2


def test_a_word_that_is_refused_names_its_rank_on_every_rank() -> None:
    """It lives: nobody takes it for lost."""

    def decide(_votes: Mapping[int, Said]) -> Sum:
        raise VoteError(1, "its vote at step plan has no 'inventory'")

    with ranks_of(2) as ranks:
        seen = ranks.run(lambda m: unable(lambda: m.meet(PLAN, Said(), decide)))
    assert seen == ["rank 1 cannot go on: its vote at step plan has no 'inventory'"] * 2


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_word_or_record_of_another_step_is_told_on_every_rank(wrong: int) -> None:
    """A rank of another build may take its steps in another order."""
    own = vars(meeting_module)["said"]

    def said(step: str, message: Any) -> str:
        is_wrong = message == (Said(number=1) if wrong else Sum(go="on"))
        return str(own("share" if is_wrong else step, message))

    with ranks_of(2) as ranks, mock.patch.object(meeting_module, "said", said):
        seen = ranks.run(lambda m: unable(lambda: m.meet(PLAN, Said(number=m.rank), on)))
    what = "vote at" if wrong else "record of"
    assert all(f"rank {wrong} cannot go on: its {what} step plan" in text for text in seen)
    assert all("'share'" in text for text in seen)


def test_a_rank_that_lives_and_leaves_is_not_lost() -> None:
    """The others hear why, at once, and that they may go on without this package."""
    ranks = Ranks(3, Settings.from_env({}, silence_s=300.0))

    def leave(coordinator: Coordinator) -> None:
        coordinator.abandon("OSError: no space", lives=True)
        coordinator.close()

    (left,) = ranks.start(leave, 1)
    seen = ranks.run(lambda m: unable(lambda: m.meet(STEP, Said(), on)), 0, 2)
    assert seen == ["rank 1 cannot go on: OSError: no space"] * 2
    ranks.run(lambda m: m.close(), 0, 2)
    left.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_turned_away_before_it_has_a_meeting_says_so(rank: int) -> None:
    """No thread for its heartbeat, for one: the others hear it and no silence is waited out."""
    ranks = Ranks(2, Settings.from_env({}, silence_s=300.0), late=[rank])
    link = ranks.link(rank)
    gone = threading.Thread(
        target=turn_away, args=(link, "RuntimeError: can't start new thread", BOUND_S)
    )
    gone.start()
    (seen,) = ranks.run(lambda m: unable(lambda: m.meet(STEP, Said(), on)), 1 - rank)
    assert seen == f"rank {rank} cannot go on: RuntimeError: can't start new thread"
    ranks.run(lambda m: m.close(), 1 - rank)
    gone.join(BOUND_S)
    assert not gone.is_alive()


def test_a_rank_lost_while_deciding_is_named_itself() -> None:
    """Rank 0 waits for a body in its decision; it is not rank 0 that is lost then."""

    def decide(_votes: Mapping[int, Said]) -> Sum:
        raise RankLostError(1, "planted")

    with ranks_of(2) as ranks:
        seen = ranks.run(lambda m: lost(lambda: m.meet(PLAN, Said(), decide)))
    assert seen == [(1, "planted")] * 2


# -- ranks that do not come ------------------------------------------------------------------------


def test_a_rank_that_never_arrives_is_named_on_all_others() -> None:
    """Within a few silences, by its number; it obeys the record itself when it comes too late."""
    ranks = Ranks(3, Settings.from_env({}, silence_s=0.2), late=[1])
    began = time.monotonic()
    seen = ranks.run(lambda m: lost(lambda: m.meet(STEP, Said(), on)))
    assert [rank for rank, _ in seen] == [1, 1]
    assert all("has not joined" in reason for _, reason in seen)
    assert time.monotonic() - began < BOUND_S
    ranks.arrive(1)
    assert ranks.run(lambda m: lost(lambda: m.meet(STEP, Said(), on))[0], 1) == [1]
    ranks.run(lambda m: m.close())


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_rank_that_leaves_is_named_at_once(leaver: int) -> None:
    """One that fails by itself and closes: nobody waits out its silence, nor it theirs."""
    ranks = Ranks(3, Settings.from_env({}, silence_s=300.0))
    staying = [rank for rank in range(3) if rank != leaver]
    began = time.monotonic()
    (left,) = ranks.start(lambda m: m.close(), leaver)
    seen = ranks.run(lambda m: lost(lambda: m.meet(STEP, Said(), on)), *staying)
    assert [rank for rank, _ in seen] == [leaver] * 2
    assert all("left" in reason for _, reason in seen)
    ranks.run(lambda m: m.close(), *staying)
    left.result()
    assert time.monotonic() - began < BOUND_S


def test_after_a_loss_rank_0_waits_for_no_goodbye_longer_than_the_grace_period() -> None:
    """Rank 1 is stuck in a forward with the lost one: its process ends without a word."""
    ranks = Ranks(3, Settings.from_env({}, silence_s=600.0, grace_s=1.0))
    ranks.run(lambda m: m.abandon("process gone", of=2), 1)
    ((rank, _),) = ranks.run(lambda m: lost(lambda: m.meet(STEP, Said(), on)), 0)
    assert rank == 2
    ranks.run(lambda m: m.close(), 0)
    ranks.run(lambda m: m.close(), 1, 2)


def test_a_rank_that_is_done_is_not_one_that_left() -> None:
    """Ranks close as soon as they have the last record, however late the others read it."""
    ranks = Ranks(3, Settings.from_env({}))
    slow = ranks.meetings[2]._link
    read = slow.get_now

    def late(key: str) -> bytes | None:
        time.sleep(0.3)
        return read(key)

    def finish(coordinator: Coordinator) -> str:
        found = coordinator.meet(of("last"), Said(), on)
        coordinator.close()
        return found.go

    vars(slow).update(get_now=late)
    assert ranks.run(finish) == ["on"] * 3


# -- bodies ----------------------------------------------------------------------------------------


def test_a_body_crosses_once_whoever_offers_it() -> None:
    """Three ranks offer the same bytes: they are sent once, and read by who asks."""
    body = b"x" * 100_000
    with ranks_of(3) as ranks:
        names = ranks.run(lambda m: m.put(body))
        assert names == [digest(body)] * 3
        assert sum(m.bytes_sent for m in ranks.meetings.values()) == len(body)
        assert ranks.run(lambda m: m.get(names[0]), 1) == [body]
        assert [m.bytes_received for m in ranks.meetings.values()] == [0, len(body), 0]
        ranks.run(lambda m: m.put(body))
        assert sum(m.bytes_sent for m in ranks.meetings.values()) == len(body)


def test_an_empty_body_crosses_too() -> None:
    """A table without a manifest offers an empty one."""
    with ranks_of(2) as ranks:
        (name,) = ranks.run(lambda m: m.put(b""), 0)
        assert ranks.run(lambda m: m.get(name)) == [b"", b""]


def test_a_body_larger_than_a_value_of_the_store_crosses_in_parts() -> None:
    """Torch's store drops the connection at 8 MiB."""
    body = bytes(range(256)) * (9 * 2**12)
    assert len(body) > 8 * 2**20
    with ranks_of(2) as ranks:
        (name,) = ranks.run(lambda m: m.put(body), 0)
        assert ranks.run(lambda m: m.get(name)) == [body, body]
        ranks.store.set(f"body/{name}/1", "evil")
        with pytest.raises(SessionError, match=name):
            ranks.run(lambda m: m.get(name), 1)
        ranks.store.set(f"body/{name}", "parts: 999999999")
        with pytest.raises(SessionError, match="at most"):
            ranks.run(lambda m: m.get(name), 1)


def test_the_first_record_of_a_step_is_the_only_one() -> None:
    """Whoever proposes later gets that one, and all read it."""
    with ranks_of(3) as ranks:
        proposed = [
            json.loads(ranks.meetings[rank]._propose("step/record", json.dumps({"go": str(rank)})))
            for rank in (1, 0, 2)
        ]
        assert proposed == [{"go": "1"}] * 3
        assert json.loads(ranks.store.get("step/record")) == {"go": "1"}


@pytest.mark.parametrize("word", [b"", b"[]", b"null", b"\xff", b"[" * 10_000, b'{"a": }'])
def test_a_word_that_cannot_be_read_names_its_rank(word: bytes) -> None:
    """On every rank alike."""
    with ranks_of(2) as ranks:
        coordinator = ranks.meetings[1]
        write = coordinator._link.set
        coordinator._link.set = lambda key, value: write(  # type: ignore[method-assign]
            key, word if key == "step/1" else value
        )
        for call in ranks.start(lambda m: m.meet(STEP, Said(), on)):
            rank, reason = lost(call.result)
            assert rank == 1
            assert "vote at step step cannot be read" in reason


def test_a_word_that_is_too_large_is_not_sent() -> None:
    with ranks_of(2) as ranks, pytest.raises(SessionError, match="too large"):
        ranks.run(lambda m: m.meet(STEP, Said(text="y" * 2**22), on), 1)


def test_bytes_that_do_not_match_their_sha256_are_refused() -> None:
    """Changed on the way: an error that names both digests."""
    with ranks_of(2) as ranks:
        (name,) = ranks.run(lambda m: m.put(b"good"), 0)
        ranks.store.set(f"body/{name}", "evil")
        with pytest.raises(SessionError, match=f"(?s){name}.*{digest(b'evil')}"):
            ranks.run(lambda m: m.get(name), 1)


# -- the store -------------------------------------------------------------------------------------


def offer(port: int, way: str = LOOPBACK, **other: Any) -> Offer:
    """Return an offer of rank 0's by which there is a store at a port of this machine."""
    here = {"place": place(), "leader": "node-a", "greeting": "hello"}
    found = {"way": way, "choices": [["127.0.0.1", port]], "nonce": "ours", **here, **other}
    return read_offer(found)


def joining(rank: int = 1, **settings: Any) -> Opening:
    return Opening(rank, rank + 1, Settings.from_env({}, **settings))


def test_a_port_where_another_store_answers_is_refused() -> None:
    """Two containers may share a machine's id and not its loopback: the nonce tells."""
    other = open_store()
    other.set("nonce", "another")
    rank_1 = joining()
    assert rank_1.answer(offer(other.port)) == ([False], "")
    told = rank_1.answer(offer(0, NONE, choices=[])).failure
    assert f"127.0.0.1 port {other.port}: another store answers" in told
    assert "WARMUP_PLUGIN_ADDRESS" in told
    assert rank_1.link is None


def test_a_loopback_interface_that_is_not_rank_0s_is_not_tried() -> None:
    """Nobody there is asked anything: what answers is another's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert joining().answer(offer(port, place="elsewhere")) == ([False], "")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_rank_0_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names every address that was tried, and the setting that helps."""
    monkeypatch.setattr(connecting, "CONNECT_S", 0.5)
    gone = open_store()
    port = gone.port
    del gone
    rank_1 = joining()
    assert rank_1.answer(offer(port, ADDRESS)).usable == [False]
    told = rank_1.answer(offer(0, NONE, choices=[])).failure
    assert f"127.0.0.1 port {port}: Connection refused" in told
    assert "WARMUP_PLUGIN_ADDRESS" in told


@pytest.mark.parametrize("way", [LOOPBACK, ADDRESS])
def test_a_store_that_closes_while_a_rank_joins_is_no_long_wait(way: str) -> None:
    """Rank 0 has died: torch alone would ask for as long as it is given."""
    listener = socket.create_server(("127.0.0.1", 0))

    def close_on_the_first() -> None:
        connection, _ = listener.accept()
        listener.close()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    rank_0 = threading.Thread(target=close_on_the_first, daemon=True)
    rank_0.start()
    began = time.monotonic()
    assert joining().answer(offer(listener.getsockname()[1], way)).usable == [False]
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("others", [1, 3])
def test_a_store_that_is_stopped_while_ranks_join_is_lost_within_a_silence(others: int) -> None:
    """Its kernel takes their connections, and nobody answers: torch would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        card = offer(listener.getsockname()[1])

        def join(rank: int) -> Future[object]:
            return background(lambda: joining(rank, silence_s=1.5).answer(card))

        began = time.monotonic()
        for found in [join(rank) for rank in range(1, others + 1)]:
            with pytest.raises(RankLostError, match=r"accepts no connection for 1\.5 s") as caught:
                found.result(BOUND_S)
            assert caught.value.rank == 0
        assert time.monotonic() - began < BOUND_S


def test_a_store_that_is_stopped_during_the_second_try_is_lost_within_a_silence() -> None:
    """Torch connects once more when it is hung up on, unless the time it was given is over."""
    silence_s = 2.5
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, is_stopped = listener.getsockname()[1], threading.Event()

        def hang_up_until_it_is_stopped() -> None:
            while not is_stopped.is_set():
                connection, _ = listener.accept()
                connection.close()

        threading.Thread(target=hang_up_until_it_is_stopped, daemon=True).start()
        began = time.monotonic()
        found = background(lambda: joining(silence_s=silence_s).answer(offer(port)))
        time.sleep(connecting.TRY_S + 0.5)
        is_stopped.set()
        with pytest.raises(RankLostError, match=r"accepts no connection for 2\.5 s"):
            found.result(BOUND_S)
        # Torch pauses between two tries, for longer and longer.
        assert time.monotonic() - began < silence_s + 4.0


def background(call: Callable[[], object]) -> Future[object]:
    """Run a function on a thread that the test run does not wait for."""
    found: Future[object] = Future()

    def run() -> None:
        try:
            found.set_result(call())
        except Exception as error:  # noqa: BLE001  # raised again where it is asked for
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def test_a_store_behind_a_slow_name_server_is_joined_and_joined_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch has a name looked up for each connection: the second try is longer, a heartbeat's, too.

    The name server is stood in for by its effect: what torch raises when the look-up takes longer
    than a connection may.
    """
    tries: list[float] = []

    def behind_it(host: str, port: int, *, timeout: timedelta, **how: Any) -> TCPStore:
        tries.append(timeout.total_seconds())
        if timeout < timedelta(seconds=10):
            raise RuntimeError("The client socket has timed out while trying to connect")
        return TCPStore(host, port, timeout=timeout, **how)

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("nonce", "ours")
    rank_1 = joining()
    monkeypatch.setattr(connecting, "TCPStore", behind_it)
    assert rank_1.answer(offer(store.port)).usable == [True]
    assert rank_1.link is not None
    renewed = RenewedLink(rank_1.link)
    renewed.connect()
    wait_until(lambda: _is_up(renewed), within(30))
    assert tries == [connecting.TRY_S, connecting.CONNECT_S] * 2


def _is_up(link: RenewedLink) -> bool:
    try:
        return link.get_now("nonce") == b"ours"
    except RankLostError:
        return False


# -- processes -------------------------------------------------------------------------------------


def test_bounding_answers_keeps_nobodys_pipe_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket closed meanwhile, whose number is a pipe's by now: who waits for its end gets it.

    As a thread does that has started a process: it waits for the closing of a pipe.
    """
    store, other, fstat = open_store(), socket.socket(), os.fstat
    reader, writer = os.pipe()
    number = other.fileno()

    def and_then_another_is_there(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if descriptor == number:
            os.dup2(writer, number, inheritable=False)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", and_then_another_is_there)
        sockets.bound_answers(store.port, 5.0)
    other.close()
    os.close(writer)
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_rank_0_that_dies_is_named_on_the_others(deploy: Callable[..., Deployment]) -> None:
    """Its process is killed between two steps, and the store goes with it."""
    job = deploy(dp=3)
    with pytest.raises(LaunchError) as caught:
        job.run("meeting_until_one_dies", rank=0)
    assert caught.value.failures == {0: "ended without a word, exit code -9"}
    assert {rank: word[0] for rank, word in caught.value.results.items()} == {1: 0, 2: 0}


def test_another_rank_that_dies_is_named_on_the_others(deploy: Callable[..., Deployment]) -> None:
    """Rank 0 sees that its process is gone and tells the third."""
    job = deploy(dp=3)
    with pytest.raises(LaunchError) as caught:
        job.run("meeting_until_one_dies", rank=1)
    assert {rank: word[0] for rank, word in caught.value.results.items()} == {0: 1, 2: 1}


LACKS = [
    (rank, what)
    for what in ("an import", "descriptors", "an answer", "a thread")
    for rank in (0, 1)
] + [(0, "a store"), (1, "a way to it")]  # fmt: skip


@pytest.mark.parametrize(("rank", "what"), LACKS)
def test_what_one_rank_lacks_all_hear_of_at_once(
    rank: int, what: str, deploy: Callable[..., Deployment]
) -> None:
    """Whatever it is, and before anything of the engine's is touched: nobody waits for a rank."""
    told = deploy(tp=2, layers=2, hidden=32, ffn=32).run("lacking_something", rank=rank, what=what)
    assert all("injected" in text and f"rank {rank}" in text for text in told), told
    assert all(text.endswith("after 0 s") for text in told), told


def test_what_a_session_takes_is_asked_for_before_anything_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The look at the environment runs programs: near a limit they would be counted as lacking."""
    order: list[str] = []

    def note(what: str) -> Callable[..., str]:
        def noted(*_: object, **__: object) -> str:
            order.append(what)
            return ""

        return noted

    def far_enough(*_: object) -> None:
        raise SessionError("far enough")

    monkeypatch.setattr(needs, "lacking", note("asked"))
    monkeypatch.setattr(environment_stamp, "begin", note("begun"))
    monkeypatch.setattr(opening, "connect", far_enough)
    identity = Identity.of(model="any", dtype="float32")
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    options = Options(identity=identity, ranks=RankInfo(rank=0, world_size=2), group=group)
    with pytest.raises(SessionError, match="far enough"), open_session.open_job(options):
        pass
    assert order == ["asked", "begun"]


def test_a_look_that_cannot_begin_is_no_failure(deploy: Callable[..., Deployment]) -> None:
    """It is only begun early."""
    told = deploy(tp=2, layers=2, hidden=32, ffn=32).run("lacking_something", rank=0, what="a look")
    assert told == ["up", "up"]


def test_twenty_sessions_leave_nothing_behind(deploy: Callable[..., Deployment]) -> None:
    """No thread, open file or process group more in either process than after the first three."""
    job = deploy(dp=2, layers=2, hidden=32, ffn=32)
    for early, late in job.run("many_sessions", sessions=20):
        assert late == early
