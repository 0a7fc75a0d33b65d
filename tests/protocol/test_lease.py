# SPDX-License-Identifier: Apache-2.0
"""Who tunes for a directory: one process at a time, as long as it lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from warmup_plugin.cache import lease
from warmup_plugin.cache.lease import hold
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.runtime.process_info import own_card

if TYPE_CHECKING:
    from tests.protocol.conftest import Child

#: Takes the lease, says whether it has it, and holds it until the next line.
HOLDS = """
    import sys
    from pathlib import Path
    from warmup_plugin.cache.lease import hold
    with hold(Path(sys.argv[1])) as holder:
        print("holder:", holder, flush=True)
        sys.stdin.readline()
    print("let go", flush=True)
"""
ELSEWHERE = {"card": {"pid": 1, "started": 1, "place": "another machine/1"}, "token": "theirs"}


def path_of(directory: Path) -> Path:
    return directory / "journal" / "tuning.json"


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def plant(directory: Path, content: Any, age_s: float = 0.0) -> None:
    """Put a lease there, as old as that."""
    path = path_of(directory)
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_held_for_the_length_of_the_body(tmp_path: Path) -> None:
    """With who holds it in the file, and nothing left of it afterwards."""
    with hold(tmp_path) as holder:
        assert holder == ""
        written = json.loads(path_of(tmp_path).read_text())
        assert written["card"] == own_card().to_json()
        with hold(tmp_path) as other:
            assert other == f"process {os.getpid()} on {written['host']}"
        assert path_of(tmp_path).exists(), "who did not get it does not take it away"
    assert files(tmp_path) == ["journal"]
    with pytest.raises(ValueError, match="planted"), hold(tmp_path):
        raise ValueError("planted")
    assert files(tmp_path) == ["journal"]


@pytest.mark.multiprocess
def test_another_process_holds_it(tmp_path: Path, child: Callable[..., Child]) -> None:
    """Until it lets go; stopped, it holds it still."""
    other = child(HOLDS, tmp_path)
    assert other.line() == "holder:"
    with hold(tmp_path) as holder:
        assert holder.startswith(f"process {other.pid} on ")
    other.stop()
    with hold(tmp_path) as holder:
        assert holder.startswith(f"process {other.pid} on ")
    other.send(signal.SIGCONT)
    assert other.ask("let go") == "let go"
    with hold(tmp_path) as holder:
        assert holder == ""


@pytest.mark.multiprocess
def test_a_killed_holder_is_followed_at_once(tmp_path: Path, child: Callable[..., Child]) -> None:
    """Its file is there, its process is not."""
    other = child(HOLDS, tmp_path)
    assert other.line() == "holder:"
    other.send(signal.SIGKILL)
    other.end()
    assert path_of(tmp_path).exists()
    with hold(tmp_path) as holder:
        assert holder == ""
        assert json.loads(path_of(tmp_path).read_text())["card"] == own_card().to_json()
    assert files(tmp_path) == ["journal"]


@pytest.mark.parametrize(
    ("content", "age_s", "is_held"),
    [
        pytest.param(ELSEWHERE, 0.0, True, id="another machine's, fresh"),
        pytest.param(ELSEWHERE, 29.0, True, id="another machine's, not touched for 29 s"),
        pytest.param(ELSEWHERE, 31.0, False, id="another machine's, stale"),
        pytest.param("", 0.0, True, id="not written yet"),
        pytest.param("", 31.0, False, id="never written"),
        pytest.param('{"card": {"pid": 1', 0.0, True, id="cut off"),
        pytest.param([], 31.0, False, id="a list"),
        pytest.param({"card": []}, 0.0, True, id="a card that is none"),
        pytest.param({"card": {"pid": 1, "more": 2}}, 0.0, True, id="a card of another version"),
        pytest.param({"card": {"pid": "..", "started": 1, "place": 5}}, 0.0, True, id="odd values"),
    ],
)
def test_a_holder_that_cannot_be_seen_must_touch_its_file(
    tmp_path: Path,
    content: Any,
    age_s: float,
    is_held: bool,  # noqa: FBT001  # the verdict
) -> None:
    """Thirty seconds without that, and it is gone."""
    plant(tmp_path, content, age_s)
    with hold(tmp_path) as holder:
        assert bool(holder) == is_held
    assert path_of(tmp_path).exists() == is_held


def test_a_holder_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own: a lease that was taken over is not kept alive by the one before."""
    monkeypatch.setattr(lease, "_TOUCH_S", 0.05)
    with hold(tmp_path):
        os.utime(path_of(tmp_path), (0, 0))
        wait_until(lambda: path_of(tmp_path).stat().st_mtime > 0, within(5.0))
        plant(tmp_path, ELSEWHERE, age_s=1e6)
        time.sleep(0.3)
        assert path_of(tmp_path).stat().st_mtime < time.time() - 1e5
    assert json.loads(path_of(tmp_path).read_text()) == ELSEWHERE, "nor taken away by it"
    assert not [thread for thread in threading.enumerate() if thread.name == "warmup-lease"]


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a link to a pipe", "a link to a device"])
def test_what_is_no_file_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    """It is nobody's lease; to open a pipe would wait for whoever writes to it."""
    path, pipe = path_of(tmp_path), tmp_path / "pipe"
    path.parent.mkdir()
    if kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "a link to a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(pipe if "link" in kind else path)
    if kind == "a link to a pipe":
        path.symlink_to(pipe)
    assert lease.holder(tmp_path) == ""
    with hold(tmp_path) as holder:
        assert holder == ""
        assert lease.holder(tmp_path), "and another takes its place"


def test_without_a_thread_it_is_held_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_thread: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with hold(tmp_path) as holder:
            assert holder == ""
            assert path_of(tmp_path).exists()
    assert not path_of(tmp_path).exists()


@pytest.mark.parametrize("obstacle", ["a file", "a dangling link", "a directory"])
def test_where_no_lease_can_be_had_everybody_tunes(tmp_path: Path, obstacle: str) -> None:
    """Tuning twice is a waste, not an error."""
    if obstacle == "a file":
        (tmp_path / "journal").write_text("in the way")
    elif obstacle == "a dangling link":
        (tmp_path / "journal").symlink_to(tmp_path / "nowhere" / "at all")
    else:
        path_of(tmp_path).mkdir(parents=True)
    before = files(tmp_path)
    with hold(tmp_path) as one, hold(tmp_path) as other:
        assert one == other == ""
    assert files(tmp_path) == before


def test_a_full_disk_leaves_no_lease_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would wait for nobody."""

    def full(_content: object, _file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with hold(tmp_path) as holder:
        assert holder == ""
    assert files(tmp_path) == ["journal"]


#: Takes the lease again and again, sixteen processes at once; in the body it is alone, or says so.
RACES = """
    import os, random, sys, time
    from pathlib import Path
    from warmup_plugin.cache.lease import hold
    directory, end, held = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
    inside = directory / "inside"
    children = []
    for number in range(15):
        if os.fork() == 0:
            children, number = None, number + 1
            break
    else:
        number = 0
    draw = random.Random(number)
    while time.monotonic() < end:
        with hold(directory) as holder:
            if holder:
                time.sleep(draw.random() / 1000)
                continue
            descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)  # fails where another holds it
            held += 1
            if draw.random() < 0.1 and children is None and number > 4:
                inside.unlink()
                os._exit(0)  # without letting go
            time.sleep(draw.random() / 2000)
            inside.unlink()
            os.close(descriptor)
    if children is None:
        os._exit(0 if held else 4)
    status = {os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(15)}
    print(sorted(status), held > 0, flush=True)
"""


@pytest.mark.multiprocess
def test_never_two_holders_at_once(tmp_path: Path, child: Callable[..., Child]) -> None:
    """Sixteen processes race for it for a while; eleven of them die holding it."""
    race = child(RACES, tmp_path, 2.0)
    assert race.line(30.0) in ("[0] True", "[0, 4] True")
    assert race.end() == (0, "")
    with hold(tmp_path) as holder:
        assert holder == "", "who died last is followed, too"
    assert files(tmp_path) == ["journal"]
