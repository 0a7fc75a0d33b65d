# SPDX-License-Identifier: Apache-2.0
"""What is read of the fleet before a start asks for it: the same, once, or not used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.counting_server import CountingServer
from tests.fleet.tables import IDENTITY, LIMIT, WHOSE, write
from warmup_plugin import Identity, Settings, begin_early
from warmup_plugin.fleet import client
from warmup_plugin.fleet.client import Worker
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pull import look_ahead, pull
from warmup_plugin.fleet.push import push
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.tuner import compat

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

BOTH = ["GET v1/ptr", "GET v1/bundle"]


def publish(tmp_path: Path, *names: str, complete: bool = True) -> None:
    objects = Objects("s3://tables/p", "given", timeout_s=10)
    write(tmp_path / "a", names or ["x"], complete=complete)
    assert push(objects, WHOSE, tmp_path / "a", LIMIT).state == "published"
    CountingServer.asked.clear()


def request(place: Path, **other: Any) -> dict[str, Any]:
    return {
        "do": "pull", "url": "s3://tables/p", "credentials": "given", "limit_s": 20.0,
        "timeout_s": 10.0, "table_bytes": LIMIT, "whose": [*WHOSE], "place": str(place), **other,
    }  # fmt: skip


def after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that was read ahead count as read just now."""
    paths, _, rest = client._CODE.partition("; ")
    less = "from warmup_plugin.fleet import worker as w; w._JUST_S = 0.0"
    monkeypatch.setattr(client, "_CODE", "; ".join([paths, rest.replace("; ", f"; {less}; ", 1)]))


def answer(ahead: dict[str, Any] | None, asked: dict[str, Any], *more: Any) -> dict[str, Any]:
    """Announce one request, do ``more``, and ask another."""
    worker = Worker()
    if ahead is not None:
        worker.announce(ahead)
    for each in more:
        each(worker)
    return worker.ask(asked, 20.0)


def test_what_is_read_ahead_is_not_read_again(counted: list[str], tmp_path: Path) -> None:
    """Announced once or twice, the requests are those of one start, and so is the answer."""
    publish(tmp_path)
    alone = answer(None, request(tmp_path / "b"))
    assert (alone["state"], counted) == ("fetched", BOTH)
    counted.clear()
    wanted = request(tmp_path / "c")
    ahead = answer(wanted, wanted, lambda worker: worker.announce(wanted))
    assert counted == BOTH
    assert {**ahead, "directory": ""} == {**alone, "directory": ""}
    counted.clear()
    assert answer(wanted, wanted)["state"] == "kept"
    assert counted == ["GET v1/ptr"]


def test_another_identity_is_asked_for_anew(counted: list[str], tmp_path: Path) -> None:
    """The guess was wrong, which costs its requests and nothing else."""
    publish(tmp_path)
    other = request(tmp_path / "b", whose=[*WHOSE[:2], "0" * 64])
    assert answer(other, request(tmp_path / "b"))["state"] == "fetched"
    assert counted == ["GET v1/ptr", *BOTH]


@pytest.mark.parametrize(
    ("name", "again"), [("AWS_SECRET_ACCESS_KEY", BOTH), ("VLLM_CACHE_ROOT", [])]
)
def test_other_credentials_ask_anew(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: list[str]
) -> None:
    """An engine sets variables as it loads its model; those that no client reads do not count."""
    publish(tmp_path)
    wanted = request(tmp_path / "b")
    found = answer(wanted, wanted, lambda _worker: monkeypatch.setenv(name, "another"))
    assert found["state"] == "fetched"
    assert counted == [*BOTH, *again]


@pytest.mark.parametrize(("complete", "again"), [(True, []), (False, BOTH)])
def test_while_a_model_loads_another_host_may_publish(
    counted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complete: bool,  # noqa: FBT001  # a table
    again: list[str],
) -> None:
    """Where tasks are left the fleet is asked again, a moment after; a complete table is one."""
    after_a_moment(monkeypatch)
    publish(tmp_path, complete=complete)
    wanted = request(tmp_path / "b")
    assert answer(wanted, wanted)["state"] == "fetched"
    assert counted == [*BOTH, *again]


def test_what_was_absent_is_asked_for_again(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that the model is loaded another host has published it."""
    after_a_moment(monkeypatch)
    wanted = request(tmp_path / "b")

    def published(_worker: Worker) -> None:
        wait_until(lambda: bool(counted), within(20.0), brief_pause_s=0.05)
        assert counted == ["GET v1/ptr"]
        publish(tmp_path)

    assert answer(wanted, wanted, published)["state"] == "fetched"
    assert counted == BOTH


def test_a_bundle_that_was_not_there_is_asked_for_again(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the pointer says that it is complete."""
    after_a_moment(monkeypatch)
    publish(tmp_path)
    (name,) = (name for name in CountingServer.objects if "/bundle/" in name)
    bundle = CountingServer.objects.pop(name)
    wanted = request(tmp_path / "b")

    def restored(_worker: Worker) -> None:
        wait_until(lambda: counted == BOTH, within(20.0), brief_pause_s=0.05)
        CountingServer.objects[name] = bundle

    assert answer(wanted, wanted, restored)["state"] == "fetched"


def test_a_store_that_fails_is_tried_once(counted: list[str], tmp_path: Path) -> None:
    """And the start hears why."""
    CountingServer.refuses = True
    try:
        wanted = request(tmp_path / "b")
        found = answer(wanted, wanted)
    finally:
        CountingServer.refuses = False
    assert (found["state"], found["reason"]) == ("failed", "the pointer: permission denied")
    assert counted == ["GET v1/ptr"]


@pytest.mark.usefixtures("counted")
def test_a_bundle_that_is_passed_over_is_not_placed(tmp_path: Path) -> None:
    """Which bundles these are is known only when the start asks."""
    publish(tmp_path)
    place = tmp_path / "b"
    bundle = answer(None, request(place))["bundle"]
    wanted = request(tmp_path / "c")
    found = answer(wanted, {**wanted, "passed_over": {bundle: "two starts have died with it"}})
    assert (found["state"], found["reason"]) == ("refused", "two starts have died with it")
    assert not (tmp_path / "c").exists()


def test_what_lies_here_already_is_read_neither_time(counted: list[str], tmp_path: Path) -> None:
    """A place that turns out to be another one has the bundle fetched then."""
    publish(tmp_path)
    objects = Objects("s3://tables/p", "given", timeout_s=10)
    assert pull(objects, WHOSE, tmp_path / "b", LIMIT).state == "fetched"
    counted.clear()
    ahead = look_ahead(objects, WHOSE, tmp_path / "b", LIMIT)
    assert (ahead.bundle, counted) == (None, ["GET v1/ptr"])
    assert pull(objects, WHOSE, tmp_path / "c", LIMIT, ahead=ahead).state == "fetched"
    assert counted == BOTH


def test_announcements_never_fill_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may not read yet, and the engine does not wait for it."""
    monkeypatch.setattr(client, "_CODE", "import time; time.sleep(30)")
    worker = Worker()
    began = time.monotonic()
    for number in range(10):
        monkeypatch.setenv("WARMUP_TEST_LONG", f"{number}" * 10_000)
        worker.announce({"do": "pull"})
    assert time.monotonic() - began < 15.0
    worker.close()


@pytest.mark.multiprocess
@pytest.mark.parametrize("tp", [1, 2])
def test_a_start_announces_what_it_asks_for(
    start: Callable[..., Started], counted: list[str], tmp_path: Path, tp: int
) -> None:
    """Rank 0 announces it as the ranks meet, and with the loading where its host has kept a look.

    A warm start makes one request, however often it is announced.
    """
    fleet = {"WARMUP_PLUGIN_FLEET": "s3://tables/p"}
    cold = start(tmp_path / "a", {**fleet, "WARMUP_PLUGIN_FLEET_ROLE": "write"}, tp=tp)
    assert cold.published["state"] == "published"
    identity = cold.ranks[0].report.identity

    def warm(*, is_early: bool) -> tuple[str, list[str], list[str]]:
        counted.clear()
        arguments = {"is_early": is_early}
        found = start(tmp_path / "b", fleet, script="announcing", arguments=arguments, tp=tp)
        assert found.timed_of_tasks == 0
        assert found.certificate == cold.certificate
        assert not any(seen["announced"] for seen in found.seen[1:])
        return found.fleet.state, found.seen[0]["announced"], [*counted]

    warm(is_early=False)  # keeps the look, which two ranks had to divide
    assert warm(is_early=False) == ("kept", [identity], ["GET v1/ptr"])
    assert warm(is_early=True) == ("kept", [identity] * 2, ["GET v1/ptr"])


def test_without_a_kept_look_only_the_process_is_begun(
    folder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look would take longer than the fleet does."""
    told = list[dict[str, Any]]()
    monkeypatch.setattr(compat, "slow_fields", lambda: {compat.BY_PROGRAMS: str})
    monkeypatch.setattr(Worker, "announce", lambda _worker, request: told.append(request))
    begin_early(0, Settings.from_env(folder), identity=IDENTITY, cache_root=tmp_path)
    begin_early(0, Settings.from_env(folder), identity=Identity.of(model="m", dtype="d"),
                cache_root=Path("relative"))  # fmt: skip
    assert [request.get("whose") for request in told] == [None]
