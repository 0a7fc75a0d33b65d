# SPDX-License-Identifier: Apache-2.0
"""Starts of hosts that begin together against an empty fleet: one tunes, the others wait for it."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.conftest import s3_environment
from tests.fleet.tables import lease_of
from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.manifest import Manifest, TaskRecord, Tasks
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.cli import main
from warmup_plugin.fleet.lease import MISSED, Lease, parse_lease, render_lease
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pointer import LEASES, Whose
from warmup_plugin.planning.inventory import Item, Lot
from warmup_plugin.runtime.polling import wait_until, within
from warmup_plugin.steps.single_flight import answered
from warmup_plugin.steps.work import Work

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

Start = Callable[..., "Started"]
Environment = Callable[..., dict[str, str]]
#: Seconds; also a busy machine renews a lease more often than six times this.
BEAT = {"WARMUP_PLUGIN_FLEET_BEAT_S": "1"}


class Page:
    """The health page of an engine, which serves when the test says so."""

    def __init__(self) -> None:
        self.serves = threading.Event()
        page = self

        class Health(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                self.send_response(200 if page.serves.is_set() else 503)
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.env = {
            "WARMUP_PLUGIN_FLEET_HEALTH": f"http://127.0.0.1:{self._server.server_port}/health"
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page that no engine serves yet."""
    found = Page()
    yield found
    found.close()


def at(path: Path) -> str:
    """Return what a start is at, by its progress file: a step, or ``ready``."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return ""
    return str(found["step"] if found["state"] == "warming" else found["state"])


@pytest.mark.parametrize("layout", [{}, {"tp": 2}], ids=["1", "2"])
def test_one_tunes_and_all_serve_its_table(
    start: Start, fleet: Environment, tmp_path: Path, page: Page, layout: dict[str, int]
) -> None:
    """The others wait until the one that tunes serves and has published, and time nothing."""
    roots = [tmp_path / name for name in "abc"]
    paths = [root / "progress.json" for root in roots]
    for root in roots:
        root.mkdir()

    def begin(root: Path, path: Path) -> Started:
        env = {**fleet("write"), **BEAT, **page.env, "WARMUP_PLUGIN_PROGRESS_FILE": str(path)}
        return start(root, env, **layout)

    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(begin, *each) for each in zip(roots, paths, strict=True)]
        try:
            wait_until(lambda: sorted(map(at, paths)) == ["ready", "wait", "wait"], within(60.0))
        finally:
            page.serves.set()
        found = [each.result(100) for each in asked]
    tuned = [each for each in found if each.timed_of_tasks]
    assert len(tuned) == 1
    assert len({each.certificate for each in found}) == 1
    (holder,) = tuned
    assert (holder.fleet.lease, holder.fleet.holder, holder.fleet.waited) == ("held", "", 0.0)
    assert holder.published["state"] == "published"
    for root, each in zip(roots, found, strict=True):
        if each is holder:
            continue
        told = each.fleet
        assert (told.state, told.lease) == ("fetched", "adopted")
        assert told.bundle == holder.published["bundle"]
        assert told.holder.startswith("process ")
        assert told.waited > 0
        assert told.publishes == "no: the fleet has all of it"
        (row,) = [row for row in each.ranks[0].report.waited if row.at == "wait"]
        assert row.for_whom == f"{told.holder}, for the fleet"
        assert all(rank.report.seconds["wait"] > 0 for rank in each.ranks)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main(["explain", "--last", "--root", str(root)]) == 0
        words = " ".join(said.getvalue().split())
        assert f"for {told.holder}, which tuned for the fleet" in words
    later = start(tmp_path / "d", fleet("read"), **layout)
    assert (later.timed_of_tasks, later.fleet.lease) == (0, "")
    assert later.certificate == holder.certificate


def test_a_reader_waits_for_a_host_that_tunes(
    start: Start, fleet: Environment, tmp_path: Path, page: Page
) -> None:
    """It may not write, and need not: it takes what the other publishes. Alone it tunes at once."""
    alone = start(tmp_path / "alone", fleet("read"))
    assert alone.timed_of_tasks > 0
    assert (alone.fleet.lease, alone.fleet.waited) == ("free", 0.0)
    path = tmp_path / "progress.json"
    with ThreadPoolExecutor() as pool:
        tunes = pool.submit(start, tmp_path / "a", {**fleet("write"), **BEAT, **page.env})
        try:
            wait_until(lambda: bool(leases(fleet())), within(60.0))
            env = {**fleet("read"), "WARMUP_PLUGIN_PROGRESS_FILE": str(path)}
            reads = pool.submit(start, tmp_path / "b", env)
            wait_until(lambda: at(path) == "wait", within(60.0))
        finally:
            page.serves.set()
        holder, reader = tunes.result(100), reads.result(100)
    assert (reader.timed_of_tasks, reader.fleet.lease) == (0, "adopted")
    assert reader.certificate == holder.certificate


def leases(env: dict[str, str]) -> list[Whose]:
    """Return the identities of which the fleet has a lease."""
    import obstore

    objects = Objects(env["WARMUP_PLUGIN_FLEET"], "given", timeout_s=20)
    rows = [row["path"] for part in obstore.list(objects._store, prefix=LEASES.rstrip("/"))
            for row in part]  # fmt: skip
    return [Whose(*row.removeprefix(LEASES).split("/")[:3]) for row in rows]


@pytest.fixture
def folder(folder: dict[str, str]) -> dict[str, str]:
    """A fleet in a folder, of hosts that may write."""
    return {**BEAT, **folder, "WARMUP_PLUGIN_FLEET_ROLE": "write"}


def opened(env: dict[str, str]) -> Objects:
    return Objects(env["WARMUP_PLUGIN_FLEET"], "given", timeout_s=5, writes=True)


def plant(env: dict[str, str], whose: Whose, beat_s: float) -> None:
    """Have a host hold the lease that never renews it."""
    other = lease_of("process 1 on a host that died", identity=whose.identity, beat_s=beat_s)
    objects = opened(env)
    assert objects.swap_lease(whose, render_lease(other), objects.lease(whose))


@pytest.fixture
def whose(start: Start, folder: dict[str, str], tmp_path: Path) -> Whose:
    """The identity of these starts, of which the fleet has a lease and no table."""
    begun = start(tmp_path / "first", {**folder, "WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S": "600"},
                  script="ending")  # fmt: skip
    assert begun.timed_of_tasks > 0
    (found,) = {*leases(folder)}
    wait_until(lambda: _is_free(folder, found), within(30.0))
    return found


def _is_free(env: dict[str, str], whose: Whose) -> bool:
    seen = opened(env).lease(whose)
    lease = parse_lease(seen.data, whose.identity) if seen else None
    return isinstance(lease, Lease) and not lease.holder


def test_a_dead_host_is_taken_over_by_a_start(
    start: Start, folder: dict[str, str], tmp_path: Path, whose: Whose
) -> None:
    """Within six of its beats and a look; the receipt says whom it has waited for, and why."""
    plant(folder, whose, 0.5)
    begun = start(tmp_path / "b", folder)
    assert begun.timed_of_tasks > 0
    assert begun.fleet.lease == "held"
    assert begun.fleet.holder == "process 1 on a host that died"
    assert begun.fleet.lease_reason.endswith("has renewed it no longer")
    assert MISSED * 0.5 <= begun.fleet.waited < (MISSED + 2) * 0.5 + 5.0
    assert begun.published["state"] == "published"
    assert _is_free(folder, whose)


def test_the_wait_is_bounded(
    start: Start, folder: dict[str, str], tmp_path: Path, whose: Whose
) -> None:
    """By `replica_wait_s`, however long the holder might still live; then this start tunes."""
    plant(folder, whose, 60.0)
    begun = start(tmp_path / "b", {**folder, "WARMUP_PLUGIN_REPLICA_WAIT_S": "2"}, tp=1)
    assert begun.timed_of_tasks > 0
    assert len(begun.certificate) == 64
    assert begun.fleet.lease == "over"
    assert 2.0 <= begun.fleet.waited < 5.0
    assert any("this start tunes by itself" in text for text in begun.ranks[0].report.warnings)
    assert begun.published["state"] == "published"


def test_a_store_that_fails_in_the_middle_costs_a_second_tuning(
    start: Start, tmp_path: Path
) -> None:
    """The pointer is absent; of the lease every request fails. No error, and within the bound."""

    class Fails(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self.send_error(503 if "lease" in self.path else 404)

        def do_PUT(self) -> None:  # as above
            self.send_error(503)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fails) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            **s3_environment(f"http://127.0.0.1:{server.server_port}"), **BEAT,
            "WARMUP_PLUGIN_FLEET": f"s3://tables/{secrets.token_hex(4)}",
            "WARMUP_PLUGIN_FLEET_ROLE": "write",
        }  # fmt: skip
        begun = start(tmp_path, env, tp=2)
        server.shutdown()
    assert begun.timed_of_tasks > 0
    assert len(begun.certificate) == 64
    assert (begun.fleet.state, begun.fleet.lease, begun.fleet.waited) == ("absent", "failed", 0.0)
    assert "503" in begun.fleet.lease_reason
    assert any("this start tunes by itself" in text for text in begun.ranks[0].report.warnings)


def test_a_fleet_that_gave_no_answer_is_not_asked_again(
    start: Start, folder: dict[str, str], tmp_path: Path
) -> None:
    """Its time is for all questions together."""
    env = {**folder, "WARMUP_PLUGIN_FLEET": "file:///nobody/has/this"}
    env["WARMUP_PLUGIN_FLEET_ROLE"] = "read"
    begun = start(tmp_path / "a", env)
    assert (begun.fleet.state, begun.fleet.lease) == ("failed", "")


def test_a_warm_start_asks_for_no_lease(
    start: Start, folder: dict[str, str], tmp_path: Path, whose: Whose
) -> None:
    """Whoever holds it: there is nothing to tune."""
    plant(folder, whose, 60.0)
    warm = start(tmp_path / "first", folder)
    assert (warm.timed_of_tasks, warm.fleet.lease) == (0, "")
    seen = opened(folder).lease(whose)
    assert seen is not None
    assert b"a host that died" in seen.data


def test_a_task_without_a_winner_is_answered_as_well() -> None:
    """Else each host would wait for its turn to find out again that there is none."""
    records = {
        "won": TaskRecord("op", (("a", "b"),), "tuned"),
        "none": TaskRecord("op", (("c",),), "default", reason="no candidate"),
    }
    table = Table({}, {"a": Entry("Runner", 1)})
    items = [
        Item("won", "op", ("a", "b"), "missing"),
        Item("none", "op", ("c",), "missing"),
        Item("left", "op", ("d",), "missing"),
        Item("known", "op", ("a",), "known"),
    ]
    work = Work(
        base=CachedTable(table, Manifest(identity="0" * 64, tasks=Tasks(records))),
        lots=[Lot((0,), items)],
    )
    assert answered(work) == {"won", "none"}
