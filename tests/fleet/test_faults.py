# SPDX-License-Identifier: Apache-2.0
"""A fleet with a fault in it: the start is as without it, at most the bound later, and says why.

One real start for each row, cold, beside the others. The bound is the setting's default.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.fleet import broken_fleets as broken
from warmup_plugin import FleetAnswer

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

WAIT_S = 2.0
#: What a busy machine adds until a process that is killed is gone.
SLACK_S = 2.0
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true"}  # fmt: skip


class Answers(http.server.BaseHTTPRequestHandler):
    """One status for all; ``shared``: what lies there, a part of ``part`` bytes ten times a second.

    Without it a body of nothing.
    """

    status: ClassVar[int] = 503
    code: ClassVar[str] = "Fault"
    shared: ClassVar[Path | None] = None
    part: ClassVar[int] = 0

    def do_GET(self) -> None:  # the library's name
        """Answer as the fault says."""
        body = self._body()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 20:00:00 GMT")
        self.end_headers()
        with contextlib.suppress(OSError):
            for begin in range(0, len(body), self.part or len(body)):
                self.wfile.write(body[begin : begin + (self.part or len(body))])
                self.wfile.flush()
                time.sleep(0.1 if self.part else 0)

    def _body(self) -> bytes:
        if self.shared is None:
            return b" " * 4096 if self.part else f"<Error><Code>{self.code}</Code></Error>".encode()
        path = self.shared / self.path.removeprefix("/tables/prefix/")
        return max(path.iterdir() if path.is_dir() else [path]).read_bytes()  # the latest pointer

    do_PUT = do_GET  # noqa: N815  # as above

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering(status: int, **more: Any) -> Iterator[str]:
    handler = type("Handler", (Answers,), {"status": status, **more})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """A port at which connections are made and nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def at(address: str) -> dict[str, str]:
    return {**KEYS, "AWS_ENDPOINT_URL": address, "WARMUP_PLUGIN_FLEET": "s3://tables/prefix"}


@pytest.fixture(scope="module")
def published(start: Callable[..., Started], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one host has published its table."""
    shared, root = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("root")
    env = {"WARMUP_PLUGIN_FLEET": f"file://{shared}", "WARMUP_PLUGIN_FLEET_ROLE": "write"}
    assert start(root, env).published["state"] == "published"
    return shared


@dataclass
class Row:
    """A fault. ``state`` and ``says``: what the receipt must have. ``env``: what is wrong.

    ``address``: of a server, which may serve what a host has published; ``make``: a folder. Where
    ``has_keys`` the host uses what its own key has signed.
    """

    state: str
    says: str
    address: Callable[[Path], contextlib.AbstractContextManager[str]] | None = None
    make: Callable[[Path, Path], object] | None = None
    env: dict[str, str] = field(default_factory=dict)
    has_keys: bool = False


ROWS = {
    "dead endpoint": Row("failed", "", lambda _: contextlib.nullcontext("http://127.0.0.1:9")),
    "black hole": Row("failed", "", lambda _: listening()),
    "503": Row("failed", "503", lambda _: answering(503)),
    "slow": Row("failed", "", lambda _: answering(200, part=1)),
    "10 kB a second": Row("failed", "", lambda shared: answering(200, part=1000, shared=shared)),
    "wrong credentials": Row("failed", "permission denied", lambda _: answering(403)),
    "credentials not accepted": Row("failed", "not accepted", lambda _: answering(401)),
    "a clock a day off": Row(
        "failed", "clock", lambda _: answering(403, code="RequestTimeTooSkewed")
    ),
    "no name": Row("failed", "", lambda _: contextlib.nullcontext("http://fleet.invalid")),
    "no credentials": Row(
        "failed", "no credentials for s3://", env={"WARMUP_PLUGIN_FLEET": "s3://tables/x"}
    ),
    "no folder": Row("failed", "", env={"WARMUP_PLUGIN_FLEET": "file:///nobody/has/this"}),
    "no bundle": Row("refused", "is not there", make=broken.no_bundle),
    "cut off": Row("refused", "other bytes than its name says", make=broken.cut_off),
    "poisoned": Row("refused", "other bytes than listed", make=broken.poisoned),
    "edited": Row("refused", "vouches for a table with another sha256", make=broken.edited),
    "unlike": Row("refused", "its digest is", make=broken.unlike),
    "no archive": Row("refused", "not an archive", make=broken.no_archive),
    "another identity's": Row("refused", "another identity's", make=broken.anothers),
    "unsigned": Row("refused", "is not signed", make=broken.unsigned, has_keys=True),
    "a stranger's": Row("refused", "signed by none", make=broken.by_a_stranger, has_keys=True),
    "no pointer": Row("refused", "pointer cannot be read", make=broken.not_a_pointer),
    "huge pointer": Row("failed", "more than the", make=broken.huge_pointer),
}


@pytest.fixture(scope="module")
def starts(
    start: Callable[..., Started], published: Path, tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Future[Started]]]:  # fmt: skip
    """The starts of the rows that are asked for, three at a time."""
    asked = {
        item.callspec.params.get("name")
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(3))
        found = {}
        for name, row in ((name, row) for name, row in ROWS.items() if name in asked):
            folder = tmp_path_factory.mktemp("row")
            env = dict(row.env)
            if row.address:
                env = at(stack.enter_context(row.address(published)))
            if row.make:
                row.make(published, folder / "shared")
                env = {"WARMUP_PLUGIN_FLEET": f"file://{folder / 'shared'}"}
            if row.has_keys:
                env["WARMUP_PLUGIN_FLEET_KEYS"] = str(folder / "mine.pub")
            env["WARMUP_PLUGIN_FLEET_WAIT_S"] = str(WAIT_S)
            found[name] = pool.submit(start, folder / "root", env)
        yield found


@pytest.mark.parametrize("name", ROWS)
def test_the_start_is_as_without_it(starts: dict[str, Future[Started]], name: str) -> None:
    """Tuned and certified by itself, within the bound, with the reason in receipt and warning."""
    assert_as_without(starts[name].result(100), ROWS[name])


def assert_as_without(begun: Started, row: Row) -> None:
    """Fail unless the start is as one without a fleet, and says what is amiss."""
    assert begun.timed_of_tasks > 0
    assert len(begun.certificate) == 64
    assert begun.fleet.state == row.state
    assert row.says in begun.fleet.reason
    assert begun.fleet.reason
    assert begun.fleet.seconds < WAIT_S + SLACK_S
    assert not begun.fleet.directory
    (warning,) = [text for text in begun.ranks[0].report.warnings if "fleet" in text]
    assert begun.fleet.reason in warning
    assert warning in " ".join(begun.seen[0]["lines"])


def test_a_black_hole_holds_up_no_rank_longer(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    """Rank 1 waits for rank 0, and that only for the bound."""
    with listening() as address:
        begun = start(tmp_path, {**at(address), "WARMUP_PLUGIN_FLEET_WAIT_S": "1"}, tp=2)
    assert [rank.report.fleet == FleetAnswer() for rank in begun.ranks] == [False, True]
    for rank in begun.ranks:
        waiting = rank.report.seconds["read"] + rank.report.seconds["agree"]
        assert waiting < 1 + SLACK_S


def test_a_replayed_pointer_only_costs_what_it_lacks(
    start: Callable[..., Started], published: Path, tmp_path: Path
) -> None:
    """An old bundle is a whole one: its winners serve, and the rest is tuned."""
    shared = tmp_path / "shared"
    env = {"WARMUP_PLUGIN_FLEET": f"file://{shared}"}
    has = broken.replayed(published, shared)
    begun = start(tmp_path / "root", env)
    assert begun.fleet.state == "fetched"
    tasks = begun.ranks[0].report.tasks
    assert tasks["from_cache"] == has > 0
    assert tasks["tuned"] > 0
    assert len(begun.certificate) == 64


def test_a_disk_without_room_for_the_bundle(
    start: Callable[..., Started], published: Path, tmp_path: Path
) -> None:
    """The start is as without a fleet, and nothing is left of what has been fetched."""
    place = tmp_path / "root" / "fleet"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        begun = start(tmp_path / "root", {"WARMUP_PLUGIN_FLEET": f"file://{published}"})
        assert not [path for path in place.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S607
    assert_as_without(begun, Row("failed", "No space left on device"))


def test_credentials_that_only_read_publish_nothing_and_say_so(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    """The start is warm or cold as ever; the log has the reason."""

    class Reads(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self.send_error(404)

        def do_PUT(self) -> None:  # as above
            self.send_error(403)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Reads) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**at(f"http://127.0.0.1:{server.server_port}"), "WARMUP_PLUGIN_FLEET_ROLE": "write"}
        begun = start(tmp_path, env)
        server.shutdown()
    assert begun.fleet.state == "absent"
    assert begun.published["state"] == "failed"
    assert "permission denied" in begun.published["reason"]
    assert any("nothing is published" in line for line in begun.seen[0]["lines"])
