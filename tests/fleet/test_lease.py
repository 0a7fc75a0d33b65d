# SPDX-License-Identifier: Apache-2.0
"""The lease by which one host tunes for the fleet: taken, renewed, freed, taken over.

No engine and no process here: the real client, real servers, and a clock that the test owns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.fleet.tables import LIMIT, WHOSE, lease_of, write
from warmup_plugin.fleet.lease import MISSED, Lease, Watch, parse_lease, render_lease
from warmup_plugin.fleet.objects import FleetError, Objects
from warmup_plugin.fleet.pull import Pulled, pull
from warmup_plugin.fleet.push import push
from warmup_plugin.fleet.single_flight import Asked, Turn, await_turn
from warmup_plugin.runtime.safe_json import Miss

Environment = Callable[..., dict[str, str]]
BEAT_S = 5.0


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.began = self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A host that waits for its turn; ``meanwhile`` is called in each of its pauses."""

    def __init__(
        self, place: Path, *, writes: bool = True, bundle: str = "", tasks: tuple[str, ...] = (),
        meanwhile: Callable[[int], object] = lambda _pause: None,
    ) -> None:  # fmt: skip
        self.objects = opened()
        self.turn = Turn(self.objects, WHOSE, f"host {place.name}", BEAT_S)
        self.said: list[dict[str, Any]] = []
        self.clock, self.pauses = Clock(), 0
        self._place, self._writes, self._bundle = place, writes, bundle
        self._tasks = frozenset(tasks)
        self._meanwhile = meanwhile

    def wait(self) -> dict[str, Any]:
        turn = self.turn if self._writes else None
        asked = Asked(
            self.objects, WHOSE, turn, self._bundle, self._tasks, self._pull, self.said.append
        )
        return await_turn(asked, pause=self._pause, watch=Watch(self.clock))

    def _pull(self) -> Pulled:
        return pull(self.objects, WHOSE, self._place, LIMIT)

    def _pause(self, seconds: float) -> None:
        waited = self.clock.now - self.clock.began
        assert 0.75 * BEAT_S <= seconds <= max(1.25 * BEAT_S, 0.125 * waited)
        self.clock.now += seconds
        self.pauses += 1
        assert self.pauses < 100, "it waits for ever"
        self._meanwhile(self.pauses)


def opened() -> Objects:
    return Objects(os.environ["WARMUP_PLUGIN_FLEET"], "given", timeout_s=20, writes=True)


def lease() -> Lease:
    """Return the lease as it stands in the store."""
    seen = opened().lease(WHOSE)
    assert seen is not None
    found = parse_lease(seen.data, WHOSE.identity)
    assert isinstance(found, Lease)
    return found


def held_by(objects: Objects, name: str = "another") -> Turn:
    """Have a host hold the lease."""
    turn = Turn(objects, WHOSE, name, BEAT_S)
    assert turn.take(objects.lease(WHOSE))
    return turn


def beat(turn: Turn) -> None:
    """Renew a lease, whether that is due or not."""
    turn._due = 0.0
    turn.beat()


def test_one_host_takes_it_renews_it_and_frees_it(fleet: Environment, tmp_path: Path) -> None:
    """Each is one write; a second host that has seen the same state is refused."""
    fleet()
    objects = opened()
    first, second = (Turn(objects, WHOSE, name, BEAT_S) for name in ("one", "two"))
    assert first.take(None)
    assert not second.take(None)
    assert (lease().holder, lease().generation, lease().beat_s) == ("one", 1, BEAT_S)
    seen = objects.lease(WHOSE)
    beat(first)
    assert (lease().holder, lease().generation) == ("one", 2)
    assert not second.take(seen), "of a state that has been renewed"
    second.free()
    assert lease().holder == "one", "it is not the second's to free"
    first.free()
    assert lease().holder == ""
    found = Host(tmp_path / "three").wait()
    assert (found["state"], found["is_takeover"]) == ("held", False)
    assert lease().holder == "host three"


def test_it_is_renewed_when_that_is_due(fleet: Environment) -> None:
    """Once in a beat, however often the holder has time for it."""
    fleet()
    turn = held_by(opened())
    for _ in range(5):
        turn.beat()
    assert lease().generation == 1
    turn._due = 0.0
    for _ in range(5):
        turn.beat()
    assert lease().generation == 2


def test_a_dead_holder_is_taken_over(fleet: Environment, tmp_path: Path) -> None:
    """After six beats and a look, on the clock of the one that waits; a dead one has lost it."""
    fleet()
    dead = held_by(opened(), "a host that died")
    host = Host(tmp_path)
    began = host.clock.now
    found = host.wait()
    assert (found["state"], found["is_takeover"]) == ("held", True)
    assert host.said == [{"state": "waits", "holder": "a host that died"}]
    assert MISSED * BEAT_S <= host.clock.now - began <= (MISSED + 1.25) * BEAT_S
    beat(dead)
    assert not dead.is_held
    dead.free()
    assert lease().holder.startswith("host ")


def test_a_holder_that_renews_it_is_waited_for(fleet: Environment, tmp_path: Path) -> None:
    """However slowly: one renewal in five beats is enough. Freed without a table, it is taken."""
    fleet()
    holder = held_by(opened())

    def meanwhile(pauses: int) -> None:
        if pauses == 30:
            holder.free()
        elif pauses % 4 == 0:
            beat(holder)

    host = Host(tmp_path, meanwhile=meanwhile)
    found = host.wait()
    assert (found["state"], found["is_takeover"], host.pauses) == ("held", False, 30)


def test_a_long_wait_is_looked_at_ever_more_rarely(fleet: Environment, tmp_path: Path) -> None:
    """Thousands of hosts wait; one that sees no renewal looks at each beat again."""
    fleet()
    holder = held_by(opened())
    dies: list[float] = []

    def meanwhile(pauses: int) -> None:
        if pauses < 60:
            beat(holder)
        elif not dies:
            dies.append(host.clock.now)

    host = Host(tmp_path, meanwhile=meanwhile)
    found = host.wait()
    assert (found["state"], found["is_takeover"]) == ("held", True)
    waited = dies[0] - host.clock.began
    assert waited > 150 * BEAT_S, "at each beat of the holder"
    # Once more as rarely, and then by the beat.
    assert host.clock.now - dies[0] < 0.125 * waited + 1.25 * (MISSED + 2) * BEAT_S


def test_a_table_that_is_published_is_adopted_when_the_lease_is_freed(
    fleet: Environment, tmp_path: Path
) -> None:
    """The holder publishes first: who finds the lease free has not missed the table."""
    fleet()
    holder = held_by(opened())

    def meanwhile(pauses: int) -> None:
        beat(holder)
        if pauses == 2:
            write(tmp_path / "a", ["x"])
            assert push(opened(), WHOSE, tmp_path / "a", LIMIT).state == "published"
            holder.free()

    host = Host(tmp_path / "b", meanwhile=meanwhile)
    found = host.wait()
    assert (found["state"], found["entries"], found["holder"]) == ("fetched", 1, "another")
    assert Path(found["directory"]).is_dir()
    assert host.pauses == 2
    assert lease().holder == "", "there is nothing to tune for"
    again = Host(tmp_path / "b", bundle=found["bundle"])
    assert again.wait()["state"] == "held", "what its engine knows is no news"


def test_a_table_that_a_host_without_the_lease_publishes_is_adopted(
    fleet: Environment, tmp_path: Path
) -> None:
    """Some looks later, while the holder lives."""
    fleet()
    holder = held_by(opened())
    write(tmp_path / "a", ["x"])
    assert push(opened(), WHOSE, tmp_path / "a", LIMIT).state == "published"
    host = Host(tmp_path / "b", meanwhile=lambda _pauses: beat(holder))
    assert host.wait()["state"] == "fetched"
    assert 1 <= host.pauses <= 6
    assert holder.is_held


def test_no_host_waits_in_line_for_what_fails(fleet: Environment, tmp_path: Path) -> None:
    """The last holder had no result for it: who lacks nothing else tries it at once, as ever."""
    fleet()
    first = held_by(opened())
    first.tell_failed(["x", "y"])
    first.free()
    assert Host(tmp_path / "a", tasks=("y",)).wait() == {"state": "tried", "holder": ""}
    assert lease().holder == ""
    other = Host(tmp_path / "b", tasks=("y", "z"))
    assert other.wait()["state"] == "held"
    assert Host(tmp_path / "c", tasks=("x", "y")).wait()["state"] == "tried", "while it is held"
    beat(other.turn)
    assert lease().failed == ("x", "y")
    other.turn.tell_failed(["z"])
    other.turn.free()
    assert lease().failed == ("z",)


def test_of_two_that_take_over_one_is_refused(fleet: Environment, tmp_path: Path) -> None:
    """Both have seen the same dead holder; the other waits for the one that was faster."""
    fleet()
    held_by(opened(), "a host that died")
    fast = Turn(opened(), WHOSE, "the faster one", BEAT_S)
    slow = Host(tmp_path)
    take = slow.turn.take

    def late(seen: Any) -> bool:
        if not fast.is_held:
            assert fast.take(seen)
        elif slow.pauses < 30:
            beat(fast)
        return take(seen)

    slow.turn.take = late  # type: ignore[method-assign]  # the instant in between
    found = slow.wait()
    assert [said["holder"] for said in slow.said] == ["a host that died", "the faster one"]
    assert found["state"] == "held", "that one has died, too"
    beat(fast)
    assert not fast.is_held


def test_a_host_that_may_not_write_waits_and_never_takes_it(
    fleet: Environment, tmp_path: Path
) -> None:
    """It waits for a holder that lives, and for none that has died; the store stays as it was."""
    fleet()
    assert Host(tmp_path / "a", writes=False).wait()["state"] == "free"
    assert opened().lease(WHOSE) is None
    holder = held_by(opened())
    host = Host(
        tmp_path / "b", writes=False, meanwhile=lambda pauses: beat(holder) if pauses < 9 else None
    )
    assert host.wait() == {"state": "free", "holder": "another"}
    assert host.pauses >= 8 + MISSED / 1.25
    assert lease().holder == "another"
    write(tmp_path / "tables", ["x"])
    push(opened(), WHOSE, tmp_path / "tables", LIMIT)
    holder.free()
    assert Host(tmp_path / "b", writes=False).wait()["state"] == "fetched"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"{", id="no document"),
        pytest.param(b"[]", id="a list"),
        pytest.param(render_lease(lease_of("later", schema=9)), id="a later version's"),
        pytest.param(render_lease(lease_of("odd", identity="0" * 64)), id="another identity's"),
        pytest.param(b" " * (1 << 16), id="blanks"),
    ],
)
def test_a_lease_that_cannot_be_read_expires(
    fleet: Environment, tmp_path: Path, data: bytes
) -> None:
    """It is waited for like a dead holder's, as long as one of the usual beat, and not longer."""
    fleet()
    objects = opened()
    assert isinstance(parse_lease(data, WHOSE.identity), Miss)
    assert objects.swap_lease(WHOSE, data, None)
    host = Host(tmp_path)
    assert host.wait()["state"] == "held"
    assert MISSED / 1.25 <= host.pauses <= MISSED / 0.75 + 1


def test_a_write_whose_answer_was_lost_is_known_again(
    fleet: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says that the lease has changed: it was this very write that has changed it."""
    fleet()
    host = Host(tmp_path)
    swap = host.objects.swap_lease

    def lost(*arguments: Any) -> None:
        swap(*arguments)

    monkeypatch.setattr(host.objects, "swap_lease", lost)
    assert host.wait()["state"] == "held"
    beat(host.turn)
    assert host.turn.is_held
    assert lease().generation == 2


def failing(*_arguments: Any) -> NoReturn:
    raise FleetError("the lease: 503")


def test_a_store_that_fails_for_a_while_is_asked_again(
    fleet: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who waits, who begins to count anew then, and by the holder."""
    fleet()
    objects = opened()
    holder = held_by(objects)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "swap_lease", failing)
        beat(holder)
        assert holder.is_held
    beat(holder)
    assert (holder.is_held, lease().generation) == (True, 3)

    def meanwhile(pauses: int) -> None:
        if pauses == 4:
            host.objects.lease = failing  # type: ignore[method-assign, assignment]  # a store that fails
        if pauses == 6:
            del host.objects.lease

    host = Host(tmp_path, meanwhile=meanwhile)
    assert host.wait()["state"] == "held"
    assert host.pauses >= 6 + MISSED / 1.25, "what it saw before the fault does not count"


def test_a_store_that_goes_on_to_fail_is_waited_for_no_longer(
    fleet: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits tunes by itself then; one that has heard of no holder does so at once."""
    fleet()
    host = Host(tmp_path)
    monkeypatch.setattr(host.objects, "lease", failing)
    assert host.wait() == {"state": "failed", "reason": "the lease: 503"}
    assert host.pauses == 0


def test_the_wait_for_a_store_that_fails_is_as_long_as_a_holder_may_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock: six beats after the first look that failed."""
    monkeypatch.setenv("WARMUP_PLUGIN_FLEET", f"file://{tmp_path}/shared")
    held_by(opened())

    def meanwhile(pauses: int) -> None:
        if pauses == 2:
            host.objects.lease = failing  # type: ignore[method-assign, assignment]  # a store that fails

    host = Host(tmp_path / "host", meanwhile=meanwhile)
    assert host.wait() == {"state": "failed", "reason": "the lease: 503"}
    assert 2 + MISSED / 1.25 <= host.pauses <= 2 + MISSED / 0.75 + 1


def test_a_clock_that_jumps_is_no_silence() -> None:
    """A host that was stopped itself looks as often as ever before it believes in one."""
    clock = Clock()
    watch = Watch(clock)
    assert not watch.is_still("a", 5.0)
    clock.now += 1000.0
    assert not watch.is_still("a", 5.0)
    assert not watch.is_still("a", 5.0)
    assert watch.is_still("a", 5.0)
    assert not watch.is_still("b", 5.0)
    watch.begin_anew()
    clock.now += 1000.0
    assert not watch.is_still("b", 5.0)
