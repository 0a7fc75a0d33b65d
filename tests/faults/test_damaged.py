# SPDX-License-Identifier: Apache-2.0
"""Damaged files and messages by the thousand, from a seed that reproduces.

A few hundred in every test run, ten thousand by ``make soak``: bit flips, truncation at every
offset of a small table, other JSON. Files go through the real store, merge and FlashInfer's own
`load_configs`; messages through real meetings of three ranks over a store in this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_decide import certified, ready, surveyed
from warmup_plugin.cache.cached_table import Published
from warmup_plugin.cache.lease import hold
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.coordination.coordinator import Coordinator
from warmup_plugin.coordination.decisions import CERTIFY, READY, SURVEY
from warmup_plugin.coordination.failure_detector import FailureDetector
from warmup_plugin.coordination.heartbeat import Heartbeat
from warmup_plugin.coordination.seals import Seal
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.settings import Settings
from warmup_plugin.steps.decisions import decide_certify, decide_ready, decide_survey
from warmup_plugin.steps.read import Held
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.tuner_state import Installed

pytestmark = pytest.mark.timeout(600)

SEED = int(os.environ.get("WARMUP_SOAK_SEED", "20261120"))
IDENTITY = Identity.of(model="soak", dtype="float32")
RANK = (0, 0, 0)
#: What any of them may take, of which most is waiting for the machine.
BOUND_S = 5.0
JUNK = (b"", b"[]", b"null", b"{}", b'{"_metadata": {}}', b"[" * 5000, b'"' * 99, b"\x00" * 64,
        b'{"a": NaN}', b'{"tasks": {"x": 1}}', b'{"_records": []}', b"\xff\xfe{}")  # fmt: skip


def damaged(body: bytes, chance: random.Random) -> bytes:
    """Return the bytes with something wrong with them; never what they were."""
    found = bytearray(body)
    kind = chance.randrange(6)
    at = chance.randrange(max(len(found), 1))
    if kind in (0, 1):
        for _ in range(chance.randrange(1, 4)):
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        del found[at:]
    elif kind == 3:
        del found[at : at + chance.randrange(1, 64)]
    elif kind == 4:
        found[at:at] = found[: chance.randrange(1, 64)]
    else:
        found = bytearray(chance.choice(JUNK))
    return bytes(found) if bytes(found) != body else body[:-1]


def tell(what: str, longest_s: float) -> None:
    """Note the longest of a thousand, where WARMUP_SOAK_OUT names a file."""
    if out := os.environ.get("WARMUP_SOAK_OUT"):
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "longest_s": round(longest_s, 3)}) + "\n")


# -- files -----------------------------------------------------------------------------------------


def a_table() -> Table:
    runners = {"gemm": "Blocked", "moe": "Grouped"}
    entries = {
        f"('soak::{op}', '{runner}', (({bucket}, 32), (32, 32)), ('float32',))": Entry(
            runner, (1, bucket) if op == "moe" else bucket
        )
        for op, runner in runners.items()
        for bucket in (1, 8, 64)
    }
    return Table(compat.stamp(), entries)


TABLE = a_table()
TASKS = {
    f"{index:032x}": TaskRecord(key.split("'")[1], ((key,),), "tuned")
    for index, key in enumerate(TABLE.entries)
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a sound start leaves it."""
    directory = tmp_path_factory.mktemp("healthy") / "tables"
    manifest = Manifest(identity=IDENTITY.digest, tasks=TASKS, complete=True)
    done = Store(directory, Settings()).publish(RANK, TABLE, manifest, IDENTITY)
    assert isinstance(done, Published)
    return directory


@pytest.fixture(autouse=True)
def _clear_tuner() -> Iterator[None]:
    yield
    compat.clear(compat.tuner())


def use(directory: Path) -> None:
    """Start on these files: read, agree with oneself, install, publish; hold it to the oracle."""
    store = Store(directory, Settings())
    reading = store.read(compat.stamp(), identity=IDENTITY.digest)
    for part in reading.parts:
        if part.manifest is not None:  # vouched for: then it is what was written
            assert part.table == TABLE, "damaged entries are vouched for"
    parts = reading.parts
    cached = Held().union(parts, is_whole=not reading.misses).cached if parts else None
    if cached is not None:
        Installed().load(cached.table_bytes, compat.stamp(), ())
        list((cached.manifest.tasks if cached.manifest else {}).values())
    key = "('soak::new', 'R', ((1, 1),), ())"
    manifest = Manifest(
        identity=IDENTITY.digest, tasks={"new": TaskRecord("n", ((key,),), "tuned")}
    )
    done = store.publish(RANK, Table(compat.stamp(), {key: Entry("R", 7)}), manifest, IDENTITY)
    assert isinstance(done, Published), done
    (last,) = Store(directory, Settings()).read(compat.stamp(), identity=IDENTITY.digest).parts
    assert last.manifest is not None
    assert "new" in last.manifest.tasks
    kept = set(cached.table.entries if cached else ())
    assert kept <= last.table.entries.keys(), "entries were lost"


def try_files(directory: Path, spoilt: Callable[[int], tuple[str, bytes]], number: int,
              healthy: Path) -> float:  # fmt: skip
    """Use so many damaged directories; return the longest that one took, seconds."""
    longest = 0.0
    for index in range(number):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(healthy, directory)
        name, body = spoilt(index)
        (directory / name).write_bytes(body)
        began = time.monotonic()
        use(directory)
        longest = max(longest, time.monotonic() - began)
        there = {path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        is_json_table = name.endswith("dp0.json") and body not in there
        if is_json_table:  # then it was good enough to be merged: nothing is thrown away
            json.loads(body)
    assert longest < BOUND_S
    return longest


NAMES = ("rank_tp0_pp0_dp0.json", "rank_tp0_pp0_dp0.manifest.json")


def seeded(number: int, healthy: Path) -> Callable[[int], tuple[str, bytes]]:
    def spoil(index: int) -> tuple[str, bytes]:
        chance = random.Random(f"{SEED}/{number}/{index}")  # noqa: S311  # damage, no secret
        name = chance.choice(NAMES)
        return name, damaged((healthy / name).read_bytes(), chance)

    return spoil


def test_damaged_files(tmp_path: Path, healthy: Path) -> None:
    """The short form."""
    try_files(tmp_path / "tables", seeded(0, healthy), 150, healthy)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.soak), 16])
def test_a_table_cut_at_each_offset(tmp_path: Path, healthy: Path, step: int) -> None:
    """At every sixteenth in every test run."""
    body = (healthy / NAMES[0]).read_bytes()
    number = len(range(0, len(body), step))
    try_files(tmp_path / "tables", lambda i: (NAMES[0], body[: i * step]), number, healthy)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, 9))
def test_thousands_of_damaged_files(number: int, tmp_path: Path, healthy: Path) -> None:
    longest = try_files(tmp_path / "tables", seeded(number, healthy), 1000, healthy)
    tell("files", longest)


def test_damaged_leases(tmp_path: Path) -> None:
    """Whatever stands in the file that says who tunes: it blocks nobody."""
    lease = tmp_path / "journal" / "tuning.json"
    with hold(tmp_path) as holder:
        assert holder == ""
        body = lease.read_bytes()
    for index in range(100):
        chance = random.Random(f"{SEED}/lease/{index}")  # noqa: S311  # damage, no secret
        lease.write_bytes(damaged(body, chance))
        os.utime(lease, (0, 0))  # nobody has touched it for long
        with hold(tmp_path) as holder:
            assert holder == "" or holder.startswith("process "), holder


# -- messages --------------------------------------------------------------------------------------


class Wire:
    """A store in this process that damages one message on its way in."""

    leader, way, end, port, sweeps = "", "", "", 0, False

    def __init__(self, rank: int, held: dict[str, Any], spoilt: Callable[[bytes], bytes]) -> None:
        self.rank, self.size, self.held, self.seal = rank, 3, held, Seal()
        self.spoilt = spoilt

    def clone(self, **_: bool) -> Wire:
        return self

    def set(self, key: str, value: bytes) -> None:
        self.held[key] = self.spoilt(value)

    def get_now(self, key: str) -> bytes | None:
        return self.held.get(key)

    def has(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)

    def restore(self) -> None:
        pass

    def claim(self, key: str) -> bool:
        return bool(self.held.setdefault(key, self.rank) == self.rank)

    def compare_set(self, key: str, value: str) -> bytes:
        return bytes(self.held.setdefault(key, self.spoilt(value.encode())))

    def close(self) -> None:
        pass


class Quiet(Heartbeat):
    """No heartbeat: what is tested are words, records and bodies."""

    def __init__(self) -> None:
        self._state, self._idle, self._guard = ("open", "", 0), False, None

    def overslept(self) -> bool:
        return False

    def stop(self) -> None:
        pass


class Patient(FailureDetector):
    """Nobody is given up for his silence."""

    def __init__(self) -> None:
        pass

    def look(self, ranks: set[int]) -> None:
        pass

    def look_at_connections(self) -> None:
        pass

    def describe(self, rank: int) -> str:
        return f"rank {rank}"


BODY = json.dumps({"entries": list(range(50))}).encode()


def session(coordinator: Coordinator, rank: int) -> list[Any]:
    """Take the meetings of a cold start, with the rules of a real one; return what was decided."""
    survey = surveyed(missing=rank, ops=["a"])
    found: list[Any] = [coordinator.meet(SURVEY.again(0), survey, decide_survey).go]
    name = coordinator.put(BODY) if rank == 1 else digest(BODY)
    found.append(digest(coordinator.get(name)))
    decided = coordinator.meet(READY, ready(), decide_ready)
    found.append((decided.go, sorted(decided.drop)))
    found.append(coordinator.meet(CERTIFY, certified("x"), decide_certify).go)
    return found


def exchange(number: int) -> tuple[list[Any], float]:
    """Meet with one message damaged; return what each rank came to, and the longest wait."""
    chance = random.Random(f"{SEED}/message/{number}")  # noqa: S311  # damage, no secret
    counted, victim = [0], chance.randrange(1, 14)
    counting = threading.Lock()

    def spoil(value: bytes) -> bytes:
        with counting:
            counted[0] += 1
            return damaged(value, chance) if counted[0] == victim else value

    held: dict[str, Any] = {}
    outcomes: list[Any] = ["hung"] * 3

    def run(rank: int) -> None:
        coordinator = Coordinator(
            Wire(rank, held, spoil), Settings(), detector=Patient(), heartbeat=Quiet()
        )
        try:
            outcomes[rank] = session(coordinator, rank)
        except (RankLostError, SessionError) as error:
            outcomes[rank] = f"{type(error).__name__}"
            coordinator.abandon(str(error))
        except Exception as error:  # noqa: BLE001  # what is being counted
            outcomes[rank] = error
            coordinator.abandon(str(error))

    began = time.monotonic()
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=2 * BOUND_S)
    return outcomes, time.monotonic() - began


def try_messages(numbers: range) -> float:
    longest = 0.0
    for number in numbers:
        outcomes, took = exchange(number)
        longest = max(longest, took)
        assert "hung" not in outcomes, (number, outcomes)
        served = [each for each in outcomes if isinstance(each, list)]
        assert all(each == served[0] for each in served), (number, outcomes)
        for each in outcomes:
            assert isinstance(each, (list, str)), (number, outcomes)
    assert longest < BOUND_S
    return longest


def test_damaged_messages() -> None:
    """The short form."""
    try_messages(range(150))


@pytest.mark.soak
@pytest.mark.parametrize("thousand", [1, 2])
def test_thousands_of_damaged_messages(thousand: int) -> None:
    longest = try_messages(range(thousand * 1000, (thousand + 1) * 1000))
    tell("messages", longest)
