# SPDX-License-Identifier: Apache-2.0
"""Many processes, one directory: no update lost, no view torn, no lock that the dead can hold."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry
from warmup_plugin.settings import Settings

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

STAMP = {"flashinfer_version": "0.7.2", "cuda_version": "13.0"}
IDENTITY = "a" * 64
PUBLISHER = """
import fcntl, json, sys
from pathlib import Path
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.settings import Settings
from warmup_plugin.cache.cached_table import Published
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
directory, stamp, identity, name, times, locks = (json.loads(word) for word in sys.argv[1:])
if not locks:
    def refuse(*_arguments):
        raise OSError(95, "no locks here")
    fcntl.flock = refuse
store = Store(Path(directory), Settings())
print("ready", flush=True)
sys.stdin.readline()
for i in range(times):
    key = f"p{name}-{i}"
    manifest = Manifest(identity=identity, tasks={key: TaskRecord("op", ((key,),), "tuned")})
    done = store.publish((0, 0, 0), Table(stamp, {key: Entry("R", i)}), manifest, b"{}")
    assert isinstance(done, Published), done
    print(key, flush=True)  # from here on it must never be lost
"""


@dataclass
class Publisher:
    """A process that publishes one task after the other; ``done``: those that it said it has."""

    process: subprocess.Popen[str]
    done: list[str] = field(default_factory=list)

    def listen(self) -> None:
        assert self.process.stdout is not None
        self.done.extend(line.strip() for line in self.process.stdout)


@contextmanager
def publishers(
    directory: Path, number: int, times: int, *, locks: bool
) -> Iterator[list[Publisher]]:
    with ExitStack() as stack:
        found = []
        for name in range(number):
            words = (str(directory), STAMP, IDENTITY, name, times, locks)
            command = [sys.executable, "-c", PUBLISHER, *map(json.dumps, words)]
            pipe = subprocess.PIPE
            process = stack.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            )
            stack.callback(process.kill)
            found.append(Publisher(process))
        for each in found:
            assert each.process.stdout is not None
            assert each.process.stdout.readline() == "ready\n"
        for each in found:
            assert each.process.stdin is not None
            each.process.stdin.write("go\n")
            each.process.stdin.flush()
        yield found


def race(
    directory: Path, *, number: int, times: int, killed: int, seed: int, locks: bool = True
) -> tuple[int, int, list[str]]:
    """Let them publish, kill some, read all the while; return reads, tasks said, what was wrong."""
    chance, store = random.Random(seed), Store(directory, Settings())  # noqa: S311  # a schedule
    wrong: list[str] = []
    reads = 0
    with publishers(directory, number, times, locks=locks) as started:
        listeners = [threading.Thread(target=each.listen) for each in started]
        for listener in listeners:
            listener.start()
        # By progress and not by the clock: each dies at a random one of its own publishes.
        ends = {i: chance.randrange(times) for i in chance.sample(range(number), killed)}
        highest = 0
        while any(each.process.poll() is None for each in started):
            for i, end in list(ends.items()):
                if len(started[i].done) >= end:
                    time.sleep(chance.random() * 0.02)
                    started[i].process.kill()
                    del ends[i]
            reading = store.read(STAMP, identity=IDENTITY)
            reads += 1
            # Between a writer's two files the manifest is of the table before or after.
            wrong += [f"{path.name}: {m.reason}" for path, m in reading.misses
                      if m.kind not in ("absent", "stale")]  # fmt: skip
            for part in reading.parts:
                entries = part.table.entries
                if any(
                    entry != Entry("R", int(key.split("-")[1])) for key, entry in entries.items()
                ):
                    wrong.append("an entry that nobody has written")
                if len(entries) < highest:
                    wrong.append(f"{len(entries)} entries after {highest}")
                highest = max(highest, len(entries))
        for listener in listeners:
            listener.join(timeout=30)
        said = {key for each in started for key in each.done}
    (last,) = store.read(STAMP, identity=IDENTITY).parts
    wrong += sorted(f"lost: {key}" for key in said - last.table.entries.keys())
    if last.manifest is None:
        wrong.append("the last table has no manifest")
    else:
        wrong += sorted(f"no record: {key}" for key in said - last.manifest.tasks.keys())
    return reads, len(said), wrong


def test_nothing_published_is_lost(tmp_path: Path) -> None:
    """Readers always see a whole table that only grows; the last one has every published task."""
    reads, said, wrong = race(tmp_path / "tables", number=6, times=20, killed=2, seed=1)
    assert wrong == []
    assert reads > 10
    assert said >= 4 * 20


def test_nothing_is_lost_without_locks(tmp_path: Path) -> None:
    """On a file system that knows none: locks only spare work."""
    _, said, wrong = race(tmp_path / "tables", number=4, times=20, killed=0, seed=2, locks=False)
    assert [each for each in wrong if not each.startswith(("no record", "the last"))] == []
    assert said == 4 * 20


def test_a_killed_publisher_blocks_nobody(tmp_path: Path) -> None:
    """Whatever it held when it died, the next one publishes within a second."""
    directory = tmp_path / "tables"
    for seed in range(5):
        race(directory, number=2, times=10, killed=2, seed=seed)
        began = time.monotonic()
        _, said, wrong = race(directory, number=1, times=1, killed=0, seed=seed)
        assert (said, wrong) == (1, [])
        assert time.monotonic() - began < 5.0


@pytest.mark.soak
def test_sixteen_publishers_a_third_killed(tmp_path: Path) -> None:
    """16 processes x 200 publishes, 5 of them killed at random moments."""
    began = time.monotonic()
    reads, said, wrong = race(tmp_path / "tables", number=16, times=200, killed=5, seed=3)
    print(f"{reads} reads, {said} tasks published, {time.monotonic() - began:.0f} s")  # noqa: T201
    assert wrong == []
    assert said >= 11 * 200
