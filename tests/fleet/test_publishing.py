# SPDX-License-Identifier: Apache-2.0
"""What becomes of tables that several hosts publish: nothing acknowledged is lost, nothing is half.

No engine here: small tables, the real client, real servers.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.tables import IDENTITY, LIMIT, STAMP, WHOSE, key, write
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.fleet.bundle import Bundle, own_part, parse_bundle, render_bundle, united
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pointer import Pointer, bundle_key, parse_pointer, render_pointer
from warmup_plugin.fleet.pull import Pulled, latest, pull
from warmup_plugin.fleet.push import push
from warmup_plugin.fleet.single_flight import Asked, Turn, await_turn
from warmup_plugin.runtime.safe_json import Miss

Environment = Callable[..., dict[str, str]]
HOSTS = Path(__file__).with_name("hosts.py")


def opened() -> Objects:
    return Objects(os.environ["WARMUP_PLUGIN_FLEET"], "given", timeout_s=20, writes=True)


def held(objects: Objects) -> set[str]:
    """Return the tasks that the fleet's latest bundle holds."""
    found = latest(objects, WHOSE, LIMIT)
    assert not isinstance(found, Miss), found
    return set(found[1].manifest.tasks)


def test_two_hosts_tables_become_one(fleet: Environment, tmp_path: Path) -> None:
    """Each had tasks that the other lacked; what both had stays as the fleet has it."""
    fleet()
    write(tmp_path / "a", ["x", "both"], tactic=1)
    write(tmp_path / "b", ["y", "both"], tactic=2)
    objects = opened()
    first = push(objects, WHOSE, tmp_path / "a", LIMIT)
    second = push(objects, WHOSE, tmp_path / "b", LIMIT)
    assert (first.state, second.state) == ("published", "published")
    found = latest(objects, WHOSE, LIMIT)
    assert not isinstance(found, Miss)
    bundle = found[1]
    assert set(bundle.manifest.tasks) == {"x", "y", "both"}
    tactics = {name: bundle.part.table.entries[key(name)].tactic for name in ("x", "y", "both")}
    assert tactics == {"x": 1, "y": 2, "both": 1}
    assert bundle.manifest.complete
    assert bundle.manifest.generation > first.generation


def test_nothing_new_writes_nothing(fleet: Environment, tmp_path: Path) -> None:
    """A second publication of the same tasks leaves the pointer alone."""
    fleet()
    write(tmp_path / "a", ["x"])
    objects = opened()
    push(objects, WHOSE, tmp_path / "a", LIMIT)
    before = objects.pointer(WHOSE)
    assert push(objects, WHOSE, tmp_path / "a", LIMIT).state == "unchanged"
    assert objects.pointer(WHOSE) == before


def test_the_fleets_table_wins_on_the_host_that_it_came_from(tmp_path: Path) -> None:
    """Its generation is above every part's, so all hosts come to serve the same."""
    write(tmp_path, ["x"])
    mine = own_part(tmp_path, WHOSE, LIMIT)
    assert not isinstance(mine, Miss)
    union = united(mine, None)
    assert union is not None
    assert isinstance(union.manifest, Manifest)
    assert isinstance(mine.manifest, Manifest)
    assert union.manifest.generation == mine.manifest.generation + 1


def test_equal_tables_are_equal_bundles(tmp_path: Path) -> None:
    """To the byte, whatever the host: so bundles are named by their digest."""
    bundles = []
    for name in "ab":
        write(tmp_path / name, ["x"])
        part = own_part(tmp_path / name, WHOSE, LIMIT)
        assert not isinstance(part, Miss)
        bundles.append(render_bundle(part, IDENTITY.canonical(), WHOSE))
    assert bundles[0] == bundles[1]
    assert isinstance(parse_bundle(bundles[0], WHOSE, LIMIT), Bundle)
    assert STAMP["flashinfer_version"] == WHOSE.version


def test_a_bundle_that_is_not_what_its_name_says_is_written_anew(
    fleet: Environment, tmp_path: Path
) -> None:
    """Somebody, or a write that was cut off, has left other bytes under the name."""
    fleet()
    write(tmp_path / "a", ["x"])
    objects = opened()
    done = push(objects, WHOSE, tmp_path / "a", LIMIT)
    whole = objects.get(bundle_key(done.bundle), LIMIT)
    assert whole is not None
    objects.overwrite(bundle_key(done.bundle), whole[:-512])
    assert pull(objects, WHOSE, tmp_path / "p", LIMIT).state == "refused"
    again = push(objects, WHOSE, tmp_path / "a", LIMIT)
    assert again.state == "published"
    assert "was not whole" in again.reason
    assert pull(objects, WHOSE, tmp_path / "p", LIMIT).state == "fetched"


def test_a_pointer_whose_answer_was_lost_is_known_again(
    fleet: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says that it has changed: it was this very write that has changed it."""
    fleet()
    write(tmp_path / "a", ["x"])
    objects = opened()
    swap = objects.swap

    def lost(*arguments: Any) -> bool:
        swap(*arguments)
        return False

    monkeypatch.setattr(objects, "swap", lost)
    done = push(objects, WHOSE, tmp_path / "a", LIMIT)
    assert (done.state, done.tries) == ("published", 1)


def test_a_pointer_of_a_later_version_stays(fleet: Environment, tmp_path: Path) -> None:
    """Its hosts use it; what this version does not understand it does not replace."""
    fleet()
    write(tmp_path / "a", ["x"])
    objects = opened()
    push(objects, WHOSE, tmp_path / "a", LIMIT)
    seen = objects.pointer(WHOSE)
    assert seen is not None
    pointer = parse_pointer(seen.data, WHOSE.identity)
    assert isinstance(pointer, Pointer)
    later = render_pointer(pointer).replace(b'"schema": 1', b'"schema": 2')
    assert objects.swap(WHOSE, later, seen)
    write(tmp_path / "a", ["y"])
    done = push(objects, WHOSE, tmp_path / "a", LIMIT)
    assert (done.state, "schema 2" in done.reason) == ("failed", True)
    assert pull(objects, WHOSE, tmp_path / "p", LIMIT).state == "refused"


def test_a_folders_number_that_was_free_again_is_not_taken(tmp_path: Path) -> None:
    """A host that slept while seventeen others published begins anew."""
    (tmp_path / "shared").mkdir()
    objects = Objects(f"file://{tmp_path}/shared", "given", timeout_s=1, writes=True)
    assert objects.swap(WHOSE, b"1", None)
    slept = objects.pointer(WHOSE)
    for number in range(2, 20):
        assert objects.swap(WHOSE, str(number).encode(), objects.pointer(WHOSE))
    assert not objects.swap(WHOSE, b"late", slept)
    assert not objects.swap(WHOSE, b"first", None)
    last = objects.pointer(WHOSE)
    assert last is not None
    assert last.data == b"19"


def test_a_warm_start_makes_one_request_and_an_empty_host_two(
    counted: list[str], tmp_path: Path
) -> None:
    """The pointer; and the bundle, where it is not here yet."""
    objects = Objects("s3://tables/p", "given", timeout_s=10)
    write(tmp_path / "a", ["x"])
    assert push(objects, WHOSE, tmp_path / "a", LIMIT).state == "published"
    counted.clear()
    assert pull(objects, WHOSE, tmp_path / "b", LIMIT).state == "fetched"
    assert counted == ["GET v1/ptr", "GET v1/bundle"]
    counted.clear()
    assert pull(objects, WHOSE, tmp_path / "b", LIMIT).state == "kept"
    assert counted == ["GET v1/ptr"]


def test_the_requests_of_a_lease(counted: list[str], tmp_path: Path) -> None:
    """Of a reader where no host tunes, of one that tunes, and of one that waits and adopts."""
    objects = Objects("s3://tables/p", "given", timeout_s=10)
    told = list[dict[str, Any]]()

    def placed() -> Pulled:
        return pull(objects, WHOSE, tmp_path / "b", LIMIT)

    def wait(turn: Turn | None, pause: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        asked = Asked(objects, WHOSE, turn, "", frozenset(), placed, told.append)
        return await_turn(asked, pause=pause)

    assert wait(None)["state"] == "free"
    assert counted == ["GET v1/lease", "GET v1/ptr"]
    counted.clear()
    turn = Turn(objects, WHOSE, "a host", 5.0)
    assert wait(turn)["state"] == "held"
    turn._due = 0.0
    turn.beat()
    assert counted == ["GET v1/lease", "GET v1/ptr", "PUT v1/lease", "PUT v1/lease"]
    counted.clear()

    def pause(_seconds: float) -> None:
        assert counted == ["GET v1/lease"]
        write(tmp_path / "a", ["x"])
        push(objects, WHOSE, tmp_path / "a", LIMIT)
        turn.free()
        counted.clear()

    assert wait(Turn(objects, WHOSE, "another", 5.0), pause)["state"] == "fetched"
    assert counted == ["GET v1/lease", "GET v1/ptr", "GET v1/ptr", "GET v1/bundle"]


def test_a_bundle_that_has_changed_on_this_disk_is_fetched_again(
    fleet: Environment, tmp_path: Path
) -> None:
    """And put in the place of the other; an older one of the identity goes, but for the last."""
    fleet()
    objects, place = opened(), tmp_path / "place"
    found = []
    for name in ("x", "y", "z"):
        write(tmp_path / "a", [name])
        push(objects, WHOSE, tmp_path / "a", LIMIT)
        found.append(Path(pull(objects, WHOSE, place, LIMIT).directory))
    assert [path.exists() for path in found] == [False, True, True]
    table = found[-1] / "rank_tp0_pp0_dp0.json"
    whole = table.read_bytes()
    table.write_bytes(whole[:-10])
    assert pull(objects, WHOSE, place, LIMIT).state == "fetched"
    assert table.read_bytes() == whole
    assert not [path.name for path in found[-1].parent.iterdir() if path.name.startswith(".")]


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("hosts", "publications", "killed"),
    [
        pytest.param(5, 5, 2, id="5x5"),
        pytest.param(16, 20, 5, id="16x20", marks=[
            pytest.mark.exhaustive, pytest.mark.timeout(900),
        ]),
    ],
)  # fmt: skip
def test_every_reader_sees_a_whole_bundle_and_the_last_holds_all(
    fleet: Environment, tmp_path: Path, hosts: int, publications: int, killed: int
) -> None:
    """Hosts publish at once, and a third of them is killed somewhere in between."""
    fleet()
    stop = tmp_path / "stop"
    readers = [
        _host("read", tmp_path / f"reader{number}", stop, stdout=subprocess.PIPE)
        for number in range(2)
    ]
    logs = [tmp_path / f"log{number}" for number in range(hosts)]
    writers = [
        # Who is to be killed would publish for ever.
        _host(
            "publish",
            tmp_path / f"host{number}",
            number,
            publications if number >= killed else 100_000,
            log,
        )
        for number, log in enumerate(logs)
    ]
    try:
        _kill_some(writers[:killed], logs)
        statuses = [writer.wait(600) for writer in writers]
    finally:
        stop.touch()
        answers = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
        for process in [*writers, *readers]:
            process.kill()
            process.wait()
    assert statuses == [-9] * killed + [0] * (hosts - killed)
    assert [answer["bad"] for answer in answers] == [[], []]
    assert all(answer["reads"] > 5 for answer in answers)
    acknowledged = {line for log in logs if log.exists() for line in log.read_text().split()}
    assert acknowledged <= held(opened())
    assert len(acknowledged) >= (hosts - killed) * publications


def _host(*words: Any, stdout: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(HOSTS), *map(str, words)], stdout=stdout)


def _kill_some(writers: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
    """Kill each of these while it publishes: after its first publication, some time later."""
    chance = random.Random(20261129)  # noqa: S311  # a schedule, no secret
    for writer, log in zip(writers, logs, strict=False):
        deadline = time.monotonic() + 300
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        writer.kill()
