# SPDX-License-Identifier: Apache-2.0
"""What ten thousand replicas that start within seconds ask of one store.

    python benchmarks/fleet_scale.py [--replicas 10000] [--within 10] [--tunes 600]

The client's own functions, run on a simulated clock against a store in memory: no network, no
latency, and no two requests at the same instant. ``kept``: each host has the bundle already;
``fetched``: none has it; ``tuned``: nor has the store, all may write, and one of them tunes.
Status 1 where a start makes more requests than the documents say, more than one host tunes, or one
object is asked for more often than S3 allows for a prefix.
"""

from __future__ import annotations

import argparse
import heapq
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from obstore.store import MemoryStore

sys.path.append(str(Path(__file__).parents[1]))

from tests.fleet.tables import LIMIT, WHOSE, write
from warmup_plugin.fleet.lease import Watch
from warmup_plugin.fleet.location import parse
from warmup_plugin.fleet.objects import Objects, Seen
from warmup_plugin.fleet.pull import Pulled, pull
from warmup_plugin.fleet.push import push
from warmup_plugin.fleet.single_flight import Asked, Turn, looks

#: What S3 is documented to serve in a second for one prefix.
MOST: Final = {"GET": 5_500, "PUT": 3_500}
BEAT_S: Final = 5.0


class Asking(NamedTuple):
    """What a simulation has asked of the store."""

    requests: Counter[tuple[str, str, int]]
    bytes: list[int]

    def most(self, verb: str) -> int:
        """Return how often one object was asked for in one second, at most."""
        return max((n for (kind, _, _), n in self.requests.items() if kind == verb), default=0)

    def of(self, verb: str) -> int:
        """Return how many requests there were of a kind."""
        return sum(n for (kind, _, _), n in self.requests.items() if kind == verb)


class Clock:
    """A clock that the simulation moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted(Objects):
    """The client, on a store in memory that all replicas share; what it asks is counted."""

    def __init__(self, shared: MemoryStore, clock: Clock, asking: Asking) -> None:
        self._place, self._store = parse("s3://fleet/tables"), shared
        self._clock, self._asking = clock, asking

    def _get(self, key: str, limit: int) -> Seen | None:
        found = super()._get(key, limit)
        self._count("GET", key, len(found.data) if found else 0)
        return found

    def _put(self, key: str, data: bytes, mode: Any) -> Seen | None:
        self._count("PUT", key, len(data))
        return super()._put(key, data, mode)

    def _count(self, verb: str, key: str, size: int) -> None:
        self._asking.requests[verb, key, int(self._clock.now)] += 1
        self._asking.bytes.append(size)


class Replica:
    """One host that starts. ``ended``: how its start came to its table."""

    def __init__(self, number: int, objects: Objects, clock: Clock, place: Path) -> None:
        self._number, self._objects, self._clock, self._place = number, objects, clock, place
        self.ended = ""

    def start(self, folder: Path, tunes_s: float) -> Generator[float, None, None]:
        """Start; yield how long until the next thing that it does. ``folder``: what it tunes."""
        found = self._pull()
        if found.state != "absent":
            self.ended = found.state
            return
        turn = Turn(self._objects, WHOSE, f"host {self._number}", BEAT_S, self._clock)
        asked = Asked(self._objects, WHOSE, turn, "", frozenset(), self._pull, lambda _said: None)
        told = yield from looks(asked, Watch(self._clock))
        if told["state"] == "held":
            yield from self._tune(turn, folder, tunes_s)
        self.ended = str(told["state"])

    def _tune(self, turn: Turn, folder: Path, tunes_s: float) -> Iterator[float]:
        until = self._clock.now + tunes_s
        while self._clock.now < until:
            yield 1.0
            turn.beat()
        done = push(self._objects, WHOSE, folder, LIMIT)
        assert done.state == "published", done
        turn.free()

    def _pull(self) -> Pulled:
        found = pull(self._objects, WHOSE, self._place, LIMIT)
        if found.state == "fetched":
            shutil.rmtree(self._place)  # ten thousand disks
        return found


def simulate(replicas: Sequence[Replica], clock: Clock, within_s: float, *told: Any) -> float:
    """Start all within so many seconds; return when the last one was up, on the clock."""
    at = random.Random(0).uniform  # noqa: S311  # no secret
    due = [(at(0, within_s), number, r.start(*told)) for number, r in enumerate(replicas)]
    heapq.heapify(due)
    while due:
        clock.now, number, start = heapq.heappop(due)
        if (pause := next(start, None)) is not None:
            heapq.heappush(due, (clock.now + pause, number, start))
    return clock.now


def measure(way: str, count: int, within_s: float, tunes_s: float, folder: Path) -> bool:
    """Simulate one way, print its row; return whether it is as the documents say."""
    shared, clock, asking = MemoryStore(), Clock(), Asking(Counter(), [])
    objects = Counted(shared, clock, asking)
    table = folder / "table"
    write(table, [f"task {i}" for i in range(62)])
    if way != "tuned":
        push(objects, WHOSE, table, LIMIT)
    if way == "kept":
        pull(objects, WHOSE, folder / "kept", LIMIT)
    asking.requests.clear()
    asking.bytes.clear()
    places = (folder / ("kept" if way == "kept" else str(number)) for number in range(count))
    replicas = [Replica(n, objects, clock, place) for n, place in enumerate(places)]
    took = simulate(replicas, clock, within_s, table, tunes_s)
    gets, puts = asking.of("GET"), asking.of("PUT")
    ended = Counter(replica.ended for replica in replicas)
    print(
        f"| {way} | {(gets + puts) / count:.2f} | {sum(asking.bytes) / count / 1e3:.1f} | "
        f"{asking.most('GET')} | {asking.most('PUT')} | {took:.0f} | "
        f"{', '.join(f'{n} {state}' for state, n in sorted(ended.items()))} |"
    )
    expected = {"kept": Counter(kept=count), "fetched": Counter(fetched=count)}
    is_as_said = ended == expected.get(way, Counter(fetched=count - 1, held=1))
    is_bounded = way == "tuned" or gets + puts == count * (1 if way == "kept" else 2)
    return is_as_said and is_bounded and all(asking.most(verb) <= n for verb, n in MOST.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate the three ways; return 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description="What many replicas ask of a store.")
    parser.add_argument("--replicas", type=int, default=10_000)
    parser.add_argument("--within", type=float, default=10.0, help="seconds in which all start")
    parser.add_argument("--tunes", type=float, default=600.0, help="seconds that one tunes")
    told = parser.parse_args(argv)
    print("| way | requests a start | kB a start | GETs of one object in a second, at most | PUTs "
          "| last one up after s | starts |\n|---|---|---|---|---|---|---|")  # fmt: skip
    good = []
    for way in ("kept", "fetched", "tuned"):
        with tempfile.TemporaryDirectory(prefix="fleet-scale-") as folder:
            good.append(measure(way, told.replicas, told.within, told.tunes, Path(folder)))
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
