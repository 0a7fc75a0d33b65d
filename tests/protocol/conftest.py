# SPDX-License-Identifier: Apache-2.0
"""What the tests of the protocol have in common: the explorer, children, and a count at the end.

Test folders are no packages and not on sys.path: what tests import from here is loaded by its path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination import failure_detector, forward_guard, heartbeat
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.coordination.seals import Seal
from warmup_plugin.runtime.polling import wait_until, within

for _module in ("tree", "explorer"):
    _name = f"tests.protocol.{_module}"
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_module}.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])

from tests.protocol.explorer import Explored, Explorer  # noqa: E402  # loaded just now

EXPLORED = pytest.StashKey[list[Explored]]()

#: No wait of these tests is longer; what takes this long hangs.
BOUND_S = 20.0


@pytest.fixture
def explore(request: pytest.FixtureRequest) -> Callable[..., Explored]:
    """Explore all schedules of a program: ``explore(program, faults=1, kinds=("kill",))``."""
    counts = request.config.stash.setdefault(EXPLORED, [])

    def run(program: Any, **options: Any) -> Explored:
        explored = Explorer(program, **options).run()
        counts.append(explored)
        return explored

    return run


class Child:
    """A process that runs some code; the test talks to it in lines, and every line is bounded."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: list[str] = []
        readers = (self._read_lines, self._read_errors)
        self._readers = [threading.Thread(target=reader, daemon=True) for reader in readers]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, timeout_s: float = BOUND_S) -> str:
        """Return the next line it prints; an empty one when it has ended."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            pytest.fail(f"no line within {timeout_s} s; it said\n{''.join(self._errors)}")

    def ask(self, question: str) -> str:
        """Send it a line and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self.line()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stop it; return when each of its threads stands still."""
        self.send(signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")

        def stands_still() -> bool:
            return all(") T " in (path / "stat").read_text() for path in threads.iterdir())

        wait_until(stands_still, within(BOUND_S))

    def end(self, timeout_s: float = BOUND_S) -> tuple[int, str]:
        """Wait until it has ended by itself; return its status and what it said on stderr."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return status, "".join(self._errors)

    def close(self) -> None:
        """End it, stopped or not."""
        self.process.kill()
        self.end()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Start a process: ``child(code, *arguments)``; none outlives the test."""
    with contextlib.ExitStack() as stack:

        def start(code: str, *arguments: object) -> Child:
            found = Child(code, *arguments)
            stack.callback(found.close)
            return found

        yield start


class MemoryLink:
    """A store in this process; what a `Link` does, for fakes of the other ranks."""

    leader, way, end, port, sweeps = "", "", "", 0, False

    def __init__(self, rank: int = 0, size: int = 3, held: dict[str, Any] | None = None) -> None:
        self.rank, self.size, self.seal = rank, size, Seal()
        self.held: dict[str, Any] = {} if held is None else held

    def clone(self, **_: bool) -> MemoryLink:
        return MemoryLink(self.rank, self.size, self.held)

    def set(self, key: str, value: bytes) -> None:
        self.held[key] = value

    def get_now(self, key: str) -> bytes | None:
        return self.held.get(key)

    def has(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)

    def restore(self) -> None:
        pass

    def claim(self, key: str) -> bool:
        return self.held.setdefault(key, self) is self

    def compare_set(self, key: str, value: str) -> bytes:
        return bytes(self.held.setdefault(key, value.encode()))

    def close(self) -> None:
        pass

    # -- what the others say -------------------------------------------------------------------

    def beats(self, rank: int, count: int, **state: Any) -> None:
        """Let a rank beat."""
        said = {"step": "tune", "task": "", "notes": 0, "idle": False, "mates": {}, **state}
        self.set(f"beat/{rank}", json.dumps({"beats": count, **said}).encode())

    def arrives(self, rank: int, **card: Any) -> None:
        """Let a rank's process be known."""
        said = {"pid": rank + 1, "started": 1, "place": "here", **card}
        self.set(f"card/{rank}", json.dumps(said).encode())


class Clock:
    """A clock that stands still until it is set forward; stands in for a module's ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def link() -> MemoryLink:
    """Three ranks' store, seen from rank 0; rank 1 and 2 are known processes."""
    found = MemoryLink()
    for rank in (1, 2):
        found.arrives(rank)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of heartbeats and of what is made of them, standing still."""
    found = Clock()
    for module in (heartbeat, failure_detector, forward_guard):
        monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What this machine sees of the processes, by rank; to be filled in."""
    found: dict[int, str] = {}
    monkeypatch.setattr(failure_detector, "view", lambda card: found.get(card.pid - 1, "unseen"))
    return found


class QuietHeartbeat(heartbeat.Heartbeat):
    """A heartbeat that nobody hears."""

    def __init__(self) -> None:
        self._state, self._idle, self._guard = ("open", "", 0), False, None
        self._is_needed = threading.Event()

    @property
    def guard(self) -> forward_guard.ForwardGuard | None:
        return self._guard

    @property
    def is_idle(self) -> bool:
        return self._idle

    def overslept(self) -> bool:
        return False


@pytest.fixture
def quiet() -> QuietHeartbeat:
    """A pulse for a meeting whose heartbeat is not what is tested."""
    return QuietHeartbeat()


@pytest.fixture
def store() -> Iterator[StoreLink]:
    """Rank 0's end of a real store for two ranks."""
    limit = timedelta(seconds=BOUND_S)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    found = StoreLink(server, 0, 2, BOUND_S)
    yield found
    found.close()


def pytest_closing_words(config: pytest.Config) -> list[str]:
    """Say how much of the protocol was explored."""
    counts = config.stash.get(EXPLORED, [])
    if not counts:
        return []
    states = sum(explored.states for explored in counts)
    transitions = sum(explored.transitions for explored in counts)
    runs = sum(explored.runs for explored in counts)
    line = (
        f"protocol: {len(counts)} explorations, {states} states, {transitions} transitions, "
        f"{runs} runs of the real code"
    )
    return [line]
