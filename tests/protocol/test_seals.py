# SPDX-License-Identifier: Apache-2.0
"""What a stranger writes into a session's store is told from what its ranks write, by a digest."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from tests.protocol.conftest import Clock, MemoryLink, QuietHeartbeat
from tests.protocol.tree import Decided, Said
from warmup_plugin.coordination import kv_client, seals, session_end
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.messages import BYE, LOST
from warmup_plugin.coordination.rounds import Round
from warmup_plugin.coordination.seals import AGAIN, Seal
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.settings import Settings

KEY = b"k" * seals.KEY_BYTES
Join = Callable[..., StoreLink]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(seals, "time", found)
    return found


@pytest.fixture
def server() -> Any:  # its `set` takes bytes, and says otherwise
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def join(server: Any) -> Iterator[Join]:
    """Connect a rank, or a stranger: ``join(1)``, ``join(1, key=b"another")``."""
    links: list[StoreLink] = []

    def connect(rank: int, key: bytes = KEY) -> StoreLink:
        port = server.port
        client = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        links.append(StoreLink(client, rank, 2, 5.0, seal=Seal(key)))
        return links[-1]

    yield connect
    for link in links:
        link.close()


def forgeries(server: Any) -> dict[str, bytes]:
    """Return what a stranger could put in the place of the value under ``key``."""
    genuine = server.get("key")
    moved = server.get("other")
    return {
        "plain": b"value",
        "nothing": b"",
        "a digest of zeroes": bytes(16) + b"value",
        "another value under its digest": genuine[:16] + b"VALUE",
        "a value of another key": moved,
        "a part": genuine[:-1],
        "a digest alone": genuine[:16],
    }


@pytest.mark.parametrize(
    "how",
    ["plain", "nothing", "a digest of zeroes", "another value under its digest",
     "a value of another key", "a part", "a digest alone"],
)  # fmt: skip
def test_what_is_forged_counts_as_not_there(server: Any, join: Join, how: str) -> None:
    one, other = join(0), join(1)
    one.set("key", b"value")
    one.set("other", b"value")
    assert one.has(["key", "other"]), "they have arrived"
    assert other.get_now("key") == b"value"
    assert other.seal.told == ""
    server.set("key", forgeries(server)[how])
    assert other.get_now("key") is None
    assert "key 'key', 1 in all; none was used" in other.seal.told
    assert other.get_now("key") is None
    assert "1 in all" in other.seal.told, "the same one is counted once"
    assert other.get_now("other") == b"value"


def test_another_session_of_the_same_ranks_has_another_key(join: Join) -> None:
    theirs, link = join(0, key=b"another"), join(1)
    theirs.set("key", b"value")
    assert theirs.has(["key"]), "it has arrived"
    assert link.compare_set("key", "own") == b"own"
    assert link.seal.told


@pytest.mark.parametrize("ahead", [b"", b"forged", b'{"lost": 1, "reason": "forged"}'])
def test_a_record_takes_the_place_of_a_forged_one(server: Any, join: Join, ahead: bytes) -> None:
    """And the first of the ranks' is still the only one."""
    one, other = join(0), join(1)
    server.set("record", ahead)
    assert one.compare_set("record", "first") == b"first"
    assert other.compare_set("record", "second") == b"first"
    server.set("record", ahead or b"again")
    assert other.compare_set("record", "second") == b"second", "the stranger was counted"
    assert other.seal.told


def test_a_stranger_cannot_have_two_ranks_take_one_task_unseen(server: Any, join: Join) -> None:
    one, other = join(0), join(1)
    settings = Settings.from_env({})
    assert [one.claim("take/queue0/0"), other.claim("take/queue0/0")] == [True, False]
    server.set("take/queue0/1", b"1 1")
    assert other.claim("take/queue0/1"), "a forged claim is none"
    assert other.seal.told
    rank_0 = Coordinator(one, settings)
    assert [rank_0.take("queue0"), rank_0.take("queue0")] == [2, 3], "those are taken"
    server.set("take/queue0/3", b"forged")
    assert rank_0.take("queue0") == 4, "a rank does not go back"
    rank_0._heartbeat.stop()


def test_a_claim_that_is_taken_away_can_be_made_again(server: Any, join: Join) -> None:
    """Two ranks may tune one task then; no rank does twice."""
    one, other = join(0), join(1)
    settings = Settings.from_env({})
    rank_0, rank_1 = Coordinator(one, settings), Coordinator(other, settings)
    assert rank_0.take("queue0") == 0
    server.delete_key("take/queue0/0")
    assert [rank_1.take("queue0"), rank_0.take("queue0"), rank_1.take("queue0")] == [0, 1, 2]
    for rank in (rank_0, rank_1):
        rank._heartbeat.stop()


def test_a_rank_that_comes_late_does_not_try_what_others_have_taken() -> None:
    """Else sixty ranks would ask for each of ten thousand tasks."""
    held: dict[str, Any] = {}
    links = [MemoryLink(rank, 8, held) for rank in range(8)]
    ranks = [Coordinator(link, Settings.from_env({}), heartbeat=QuietHeartbeat()) for link in links]
    assert [ranks[1 + place % 7].take("queue0") for place in range(70)] == [*range(70)]
    tried = list[str]()

    def claim(key: str) -> bool:
        tried.append(key)
        return MemoryLink.claim(links[0], key)

    vars(links[0])["claim"] = claim
    assert ranks[0].take("queue0") == 70
    assert tried == ["take/queue0/0", "take/queue0/70"]
    assert ranks[1].take("queue0") == 71


def test_last_words_that_are_taken_away_are_heard(server: Any, join: Join) -> None:
    """Rank 1 lives and leaves. What it has said is away when rank 0 asks, and is there again."""
    stays, leaves = (Coordinator(join(rank), Settings.from_env({})) for rank in (0, 1))
    leaves.abandon("no space", lives=True)
    leaves._link.set(f"{BYE}/1", b"1")
    word = server.get(LOST)
    server.delete_key(LOST)
    back = threading.Timer(1.0, server.set, [LOST, word])
    back.start()
    with pytest.raises(SessionError, match="rank 1 cannot go on: no space"):
        stays.meet(Round("step", Said, Decided), Said(), lambda _votes: Decided(go="on"))
    back.join(10.0)
    for rank in (stays, leaves):
        rank._heartbeat.stop()


def test_what_is_taken_away_is_written_again(server: Any, join: Join, clock: Clock) -> None:
    """By the rank that has written it, once it is sure that it has been there."""
    link = join(1)
    link.set("open/1", b"vote")
    link.set("beat/1", b"{}")
    link.compare_set("step/record", "record")
    link.restore()
    clock.now_s += 2.0
    server.delete_key("open/1")
    server.delete_key("beat/1")
    link.restore()
    assert not server.check(["open/1"]), "it may be on its way"
    link.restore()
    assert server.check(["open/1", "step/record"])
    assert not server.check(["beat/1"]), "the next heartbeat is written anyway"
    assert link.get_now("open/1") == b"vote"
    assert "'open/1', 1 in all" in link.seal.told


def vote(link: StoreLink) -> None:
    """Leave a vote in the store."""
    link.set("open/0", b"vote")
    assert link.has(["open/0"]), "it has arrived"


def test_what_is_forged_is_written_again_once_a_reader_has_seen_it(
    server: Any, join: Join, clock: Clock
) -> None:
    one, other = join(0), join(1)
    vote(one)
    clock.now_s += 2.0
    server.set("open/0", b"forged")
    one.restore()
    assert other.get_now("open/0") is None
    one.restore()
    assert other.get_now("open/0") == b"vote"


def forge(server: Any, key: str, value: bytes) -> None:
    """Have a stranger write there; it has arrived."""
    server.set(key, value)
    assert server.check([key])


def written_again(link: StoreLink, looks: int) -> list[str]:
    """Let a rank look so often; return the keys that it has written again."""
    found, compare_set = list[str](), link._compare_set

    def noting(key: str, value: bytes) -> bytes:
        found.append(key)
        return compare_set(key, value)

    vars(link)["_compare_set"] = noting
    for _ in range(looks):
        link.restore()
    del vars(link)["_compare_set"]
    return found


def test_a_value_is_written_again_once_for_a_question(
    server: Any, join: Join, clock: Clock
) -> None:
    """And no other value; asked is as long as a stranger's stands there, four times a second."""
    one, other = join(0), join(1)
    one.set("open/0", b"vote")
    one.set("card/0", b"card")
    assert one.has(["open/0", "card/0"]), "they have arrived"
    clock.now_s += 2.0
    forge(server, "open/0", b"forged")
    assert [other.get_now("open/0") for _ in range(9)] == [None] * 9
    assert json.loads(one.get_now(AGAIN) or b"") == [1, 1, ["open/0"]], "its first question"
    assert written_again(one, looks=9) == ["open/0"]
    assert other.get_now("open/0") == b"vote"
    clock.now_s += 2.0
    assert written_again(one, looks=9) == []
    for _ in range(2):
        forge(server, "open/0", b"forged")
        assert other.get_now("open/0") is None
        assert other.has([AGAIN]), "it has arrived"
        assert written_again(one, looks=1) == ["open/0"]
        clock.now_s += 0.26


def test_what_strangers_ask_for_is_not_written_again(server: Any, join: Join, clock: Clock) -> None:
    """They are counted for it; what they put back of the ranks' own questions changes nothing."""
    one, other = join(0), join(1)
    vote(one)
    clock.now_s += 2.0
    forge(server, AGAIN, b'[1, 9, ["open/0"]]')
    assert written_again(one, looks=9) == []
    assert f"{AGAIN!r}, 1 in all" in one.seal.told
    assert other.get_now(AGAIN) is not None, "a rank's own stands there instead"
    forge(server, "open/0", b"forged")
    assert other.get_now("open/0") is None
    assert other.has([AGAIN]), "it has arrived"
    question = server.get(AGAIN)
    assert written_again(one, looks=2) == ["open/0"]
    for _ in range(3):
        forge(server, AGAIN, question)
        assert written_again(one, looks=2) == []


def test_nothing_is_written_again_once_the_session_is_over(
    server: Any, join: Join, clock: Clock
) -> None:
    """Its keys on the job's store are swept; but the word that it is over is."""
    one, other = join(0), join(1)
    vote(one)
    other.compare_set(LOST, json.dumps({"lost": 0, "reason": "has left"}))
    clock.now_s += 2.0
    server.delete_key("open/0")
    for _ in range(3):
        one.restore()
    assert not server.check(["open/0"])
    server.delete_key(LOST)
    for _ in range(3):
        other.restore()
    assert other.get_now(LOST)


def test_strangers_that_do_not_stop_end_the_session(server: Any, join: Join, clock: Clock) -> None:
    """After a silence of it; a pause of a minute begins the count anew."""
    link, settings = join(1), Settings.from_env({}, silence_s=10.0)
    coordinator = Coordinator(link, settings)

    def forge_for(seconds: int, every_s: int) -> None:
        for _ in range(0, seconds, every_s):
            clock.now_s += every_s
            server.set("key", b"forged at %d" % clock.now_s)
            link.get_now("key")
            coordinator._withstand()

    forge_for(183, every_s=61)
    with pytest.raises(SessionError, match=r"not written by its ranks.*for more than 10 s"):
        forge_for(12, every_s=3)
    coordinator._heartbeat.stop()


def test_a_rank_that_cannot_write_for_strangers_leaves_all_the_same(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does after that word, as to put its tuner back, does not fail with it."""
    monkeypatch.setattr(kv_client, "_MOST_TRIES", 0)
    coordinator = Coordinator(join(1), Settings.from_env({}))
    assert coordinator.abandon("no space", lives=True) is None
    assert coordinator._link.has([LOST]), "it has arrived"
    assert b"no space" in (join(0).get_now(LOST) or b"")
    coordinator._heartbeat.stop()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_has_seen_a_stranger_is_not_long_at_its_leave(
    server: Any, join: Join, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Its goodbye is guarded; only who holds the store waits for the others for a silence."""
    monkeypatch.setattr(session_end, "RESTORED_S", 0.5)
    link = join(rank)
    coordinator = Coordinator(link, Settings.from_env({}, silence_s=3.0))
    forge(server, "open/9", b"forged")
    assert link.get_now("open/9") is None
    began = time.monotonic()
    coordinator.close()
    took_s = time.monotonic() - began
    assert (0.5 if rank else 3.0) <= took_s < (2.5 if rank else 9.0)


def test_a_rank_that_is_lost_is_named_though_strangers_do_not_stop(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it no rank may go on, so that is found out first."""
    coordinator = Coordinator(join(0), Settings.from_env({}))
    monkeypatch.setattr(coordinator._link.seal, "lasted_s", lambda: 1e9)
    monkeypatch.setattr(coordinator._detector, "_look", lost)
    with pytest.raises(RankLostError, match="rank 1 is lost"):
        coordinator.meet(Round("step", Said, Decided), Said(), lambda _votes: Decided(go="on"))
    coordinator._heartbeat.stop()


def lost(rank: int, _now: float) -> None:
    raise RankLostError(rank, "planted")


def test_a_store_without_a_key_has_plain_values(server: Any, join: Join) -> None:
    """The ranks' first meeting is on the job's store, before there is a session."""
    link = join(1, key=b"")
    link.set("key", b"value")
    assert link.get_now("key") == b"value"
    assert server.get("key") == b"value"
    assert link.get_now("none") is None
    assert not server.check(["none"]), "a question sets nothing"
