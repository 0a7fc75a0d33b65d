# SPDX-License-Identifier: Apache-2.0
"""Every wait has an end: the one function that waits, and no other call that could."""

from __future__ import annotations

import ast
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import warmup_plugin
from warmup_plugin.runtime import polling
from warmup_plugin.runtime.polling import wait_until, within

PACKAGE = Path(warmup_plugin.__file__).parent

#: The engine that comes along is an engine: its forward has collectives, its launcher has children.
ENGINES = "engines/embedded/"

#: Calls that wait, by their last name; `join` with a list of texts, `get` with a key do not.
WAITING = {
    "accept", "acquire", "all_gather", "all_gather_object", "all_reduce", "all_to_all", "barrier",
    "broadcast", "broadcast_object_list", "call", "check_call", "check_output", "communicate",
    "connect", "create_connection", "epoll", "flock", "gather_object", "init_process_group",
    "input", "lockf", "monitored_barrier", "new_group", "pause", "Popen", "poll", "readline",
    "recv", "recv_into", "recvfrom", "reduce_scatter", "result", "select", "send_object_list",
    "sendall", "sigtimedwait", "sigwait", "sleep", "synchronize", "system", "TCPStore", "urlopen",
    "wait", "wait3", "wait4", "wait_for", "waitid", "waitpid",
}  # fmt: skip

#: What may wait without `wait_until`: file, function, call, and why that has an end.
_BY_FILE = {
    "runtime/polling.py": {
        ("wait_until", "time.sleep"): "the pause between two looks",
    },
    "cache/flock.py": {
        ("_ask", "fcntl.flock"): "asks with LOCK_NB, on a thread that nobody waits for",
        ("try_lock", "asking.join"): "a time-out is given",
    },
    "coordination/heartbeat.py": {
        ("Heartbeat._run", "self._stop.wait"): "the heartbeat's pause, ended by `stop`",
        ("Heartbeat._run", "self._is_needed.wait"): "as long as between two beats",
        (
            "Heartbeat._connect",
            "self._link.connect",
        ): "that of reconnecting.py, which only begins it",
        ("Heartbeat._connect", "self._stop.wait"): "a silence and a beat, ended by `stop`",
        ("Heartbeat.stop", "self._thread.join"): "five seconds; the thread is a daemon",
    },
    "cache/lease.py": {
        ("_touch", "stop.wait"): "the pause between two touches, ended by the holder",
        ("hold", "toucher.join"): "five seconds; the thread is a daemon",
    },
    "runtime/needs.py": {
        ("lacks_threads", "time.sleep"): "near the limit, four times at most",
    },
    "runtime/sigterm.py": {
        ("Shutdown._listen", "self._listener.recv"): "a thread of its own, which ends when the "
        "block closes the other end",
        ("Shutdown._request", "self._asked.acquire"): "asks with blocking=False",
    },
    "runtime/task_timeout.py": {
        ("TaskLimit.__exit__", "self._thread.join"): "it is over; a time-out is given",
        ("TaskLimit._watch", "self._is_over.wait"): "until the task's time is over",
    },
    "runtime/ticker.py": {
        ("Ticking._run", "self._is_over.wait"): "the pause between two ticks",
        ("Ticking.end", "self._thread.join"): "a second; the thread is a daemon",
    },
    "coordination/connecting.py": {
        ("check_listens", "socket.create_connection"): "a time-out is given",
        ("client", "TCPStore"): "a time-out is given, which torch does not honour where the "
        "store's process is stopped: `clone` is only called on a thread of its own",
        ("in_time", "is_done.wait"): "a silence",
    },
    "coordination/addresses.py": {
        ("_numbers", "probe.connect"): "of a datagram socket: sends nothing",
    },
    "coordination/listeners.py": {
        ("Listeners._answer", "selector.select"): "a thread of its own, which ends when the other "
        "end is closed",
        ("Listeners._answer_one", "listener.accept"): "does not block",
        ("Listeners.keep", "kept.accept"): "does not block",
        ("Listeners._stop", "self._thread.join"): "five seconds; the thread is a daemon",
        ("_dialled", "dialling.connect"): "does not block",
        ("_heard", "connection.recv"): "does not block",
        ("probe", "selector.select"): "a time-out is given",
    },
    "coordination/opening.py": {
        ("Opening._open", "TCPStore"): "the server; a time-out is given",
    },
    "coordination/roll_call.py": {
        ("tell", "dist.broadcast"): "bounded by the time-out of the group it is given",
        ("call_the_roll", "dist.all_reduce"): "the same",
    },
    "steps/open_session.py": {
        (
            "_meet",
            "connect",
        ): "those of roll_call.py, six times at most",
    },
    "cli/tuning.py": {
        ("Rank.run", "subprocess.Popen"): "`_wait` asks how it is, with a time-out, for as long as "
        "the job may take",
        ("tune_here", "wait"): "for ranks, each of which ends within the job's time",
        ("tune_here", "each.result"): "it is done",
        ("Rank._wait", "process.wait"): "a time-out is given",
        ("_end", "process.poll"): "does not wait",
        ("_end", "process.wait"): "a time-out is given; then it has been killed",
    },
    "cli/tuning_on_ray.py": {
        ("_room", "group.wait"): "a time-out is given",
        ("_all_ranks", "ray.wait"): "for ranks, each of which ends within the job's time, or with "
        "its node; a time-out is given for their end",
    },
    "tuner/environment_stamp.py": {
        ("Lookup._wait", "thread.join"): "a time-out is given",
        ("keep_later.keep", "ends.wait"): "a time-out is given, on a thread of its own",
    },
    "tuner/kept_environment.py": {
        ("_said", "subprocess.run"): "a time-out is given, on a thread of its own",
    },
    "fleet/client.py": {
        ("start", "subprocess.Popen"): "only starts it",
        ("Worker.waits", "self._process.poll"): "does not wait",
        ("Worker.ask", "self._process.communicate"): "a time-out is given",
        ("end", "process.poll"): "only asks",
        ("end", "process.wait"): "a time-out is given, after it has been killed",
    },
    "fleet/single_flight.py": {
        ("await_turn", "pause"): "in the process of its own, which its engine ends after "
        "`replica_wait_s`; it ends with its engine",
    },
    "fleet/turn_process.py": {
        ("TurnProcess.line", "select.select"): "a time-out is given",
        ("_ended", "process.wait"): "a time-out is given; then it is killed",
    },
    "fleet/push.py": {
        ("push", "pause"): "in the process of its own, between tries that are counted",
    },
    "fleet/answering.py": {
        ("Lines.next", "select.select"): "a time-out is given",
    },
    "fleet/worker.py": {
        ("_wait_until_served", "time.sleep"): "in the process of its own, which ends with the "
        "engine's, or when the time for its health is over",
    },
    "cli/doctor_disks.py": {
        ("_locks", "fcntl.flock"): "asks with LOCK_NB, on a thread that is bounded",
    },
    "cli/doctor_probes.py": {
        ("_answer", "subprocess.run"): "a time-out is given",
    },
    "cli/doctor_ranks.py": {
        ("_session", "connect"): "those of roll_call.py, six times at most",
        ("examine", "dist.init_process_group"): "a silence",
    },
    "gpu_evidence/facts.py": {
        ("_smi", "subprocess.run"): "a time-out is given",
    },
    "gpu_evidence/run.py": {
        ("_Child.lines", "subprocess.Popen"): "only starts it",
        ("_Child.lines", "process.wait"): "it has been killed",
        ("_until", "selector.select"): "a time-out is given",
    },
    "gpu_evidence/child.py": {
        ("main", "torch.cuda.synchronize"): "the parent ends the child",
        ("_timed", "torch.cuda.synchronize"): "the parent ends the child",
    },
    "gpu_evidence/timing.py": {
        ("_captured", "torch.cuda.synchronize"): "the parent ends the child",
        ("_time", "torch.cuda.synchronize"): "the parent ends the child",
    },
    "cli/environment.py": {
        ("_asked", "subprocess.run"): "a time-out is given",
    },
    "cli/commands/status.py": {
        ("run", "time.sleep"): "what the operator has asked for with --watch",
    },
    "tuner/device.py": {
        ("clear_error", "torch.cuda.synchronize"): "FlashInfer's own after a failed tactic; the "
        "task's limit ends it",
    },
}
ALLOWED = {
    (file, function, call): reason
    for file, rows in _BY_FILE.items()
    for (function, call), reason in rows.items()
}


def calls(tree: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the function it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from calls(node, (*inside, node.name))
            continue
        if isinstance(node, ast.Call):
            yield ".".join(inside), node
        yield from calls(node, inside)


def waits(call: ast.Call) -> bool:
    """Return whether a call could wait, going by its name."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    has_limit = bool(call.keywords)
    if last == "join":  # of texts: one argument; of a thread or process: none, or a time-out
        return not call.args
    if last == "get":  # of a mapping: a key; of a queue: none, or a time-out
        return not call.args and has_limit
    return last in WAITING or name == "subprocess.run"


def found_in(source: str, file: str = "a.py") -> set[tuple[str, str, str]]:
    return {
        (file, function, ast.unparse(call.func))
        for function, call in calls(ast.parse(source))
        if waits(call)
    }


def test_every_wait_goes_through_the_one_function() -> None:
    """Whoever adds another wait says here why it has an end; whoever takes one away, too."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(ENGINES):
            found |= found_in(path.read_text(encoding="utf-8"), file)
    assert found - ALLOWED.keys() == set(), "waits that nobody looks after"
    assert ALLOWED.keys() - found == set(), "no longer there"


@pytest.mark.parametrize(
    ("source", "is_wait"),
    [
        ("time.sleep(1)", True),
        ("from time import sleep\nsleep(1)", True),
        ("event.wait()", True),
        ("store.wait(['key'])", True),
        ("thread.join()", True),
        ("thread.join(timeout=5)", True),
        ("', '.join(names)", False),
        ("queue.get(timeout=3)", True),
        ("words.get('key')", False),
        ("dist.barrier()", True),
        ("class A:\n def f(self):\n  x = [lock.acquire() for _ in y]", True),
        ("subprocess.run(['true'])", True),
        ("self.run()", False),
        ("wait_until(is_there, look)", False),
    ],
)
def test_what_counts_as_a_wait(source: str, is_wait: bool) -> None:  # noqa: FBT001  # the verdict
    """The test above would find it."""
    assert bool(found_in(source)) == is_wait


def test_every_wait_is_looked_after() -> None:
    """Whatever is waited for, `wait_until` has somebody look."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for function, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(call.func).rpartition(".")[2] == "wait_until":
                assert len(call.args) == 2, f"{path.name}: {function}"
                assert ast.unparse(call.args[1]) not in ("None", "lambda _: None"), path.name


# -- the function ----------------------------------------------------------------------------------


def test_what_is_there_is_not_waited_for() -> None:
    """Nor looked after."""
    wait_until(lambda: True, lambda _waited_s: pytest.fail("there is nothing to look after"))


def test_it_asks_at_once_and_looks_a_few_times_a_second() -> None:
    """A short wait ends promptly; a look hears how long it has been."""
    began = time.monotonic()
    told: list[float] = []
    asked = 0

    def is_there() -> bool:
        nonlocal asked
        asked += 1
        return time.monotonic() - began > 1.0

    wait_until(is_there, told.append)
    assert 1.0 < time.monotonic() - began < 1.5
    assert 15 < asked < 400
    assert 2 <= len(told) <= 4
    assert told == sorted(told)
    assert 0.2 < told[0] < 0.6


def test_a_brief_wait_pauses_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is told; a longer one as long as ever, as most of its looks are for nothing."""
    now, pauses = 0.0, list[tuple[float, float]]()

    def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append((now, seconds))
        now += seconds

    clock = types.SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(polling, "time", clock)
    wait_until(lambda: now > 2.0, lambda _waited_s: None, brief_pause_s=0.002)
    assert max(pause for at, pause in pauses if at < 1.0) == 0.002
    assert {pause for at, pause in pauses if at >= 1.0} == {0.05}


def test_a_look_ends_the_wait() -> None:
    """By whatever it raises, and no later than half a second after it could have."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wait_until(lambda: False, within(0.5))
    assert 0.5 < time.monotonic() - began < 1.3
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: False, lambda _waited_s: 1 / 0)  # type: ignore[arg-type]  # raises
