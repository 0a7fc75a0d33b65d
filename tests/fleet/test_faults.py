# SPDX-License-Identifier: Apache-2.0
"""A fleet with a fault in it: the start is as without it, at most the bound later, and says why.

One real start for each row, cold, beside the others. The bound is the setting's default.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from warmup_plugin import FleetAnswer
from warmup_plugin.cache import archive
from warmup_plugin.cache.archive import Packed
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pointer import Pointer, Whose, bundle_key, parse_pointer, render_pointer
from warmup_plugin.runtime.safe_json import digest

if TYPE_CHECKING:
    from tests.fleet.conftest import Started

pytestmark = pytest.mark.multiprocess

WAIT_S = 2.0
#: What a busy machine adds until a process that is killed is gone.
SLACK_S = 2.0
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true"}  # fmt: skip


#: A runner, and as long a name that is none's.
_RUNNER, _OTHER = b"BlockedGemmRunner", b"BlockedGemmRunnex"


class Answers(http.server.BaseHTTPRequestHandler):
    """One status for all; ``trickle``: a body of which a byte comes each tenth of a second."""

    status: ClassVar[int] = 503
    trickle: ClassVar[bool] = False

    def do_GET(self) -> None:  # the library's name
        """Answer as the fault says."""
        self.send_response(self.status)
        body = b"<Error><Code>Fault</Code></Error>"
        self.send_header("Content-Length", str(4096 if self.trickle else len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 20:00:00 GMT")
        self.end_headers()
        if not self.trickle:
            self.wfile.write(body)
            return
        with contextlib.suppress(OSError):
            for _ in range(300):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)

    do_PUT = do_GET  # noqa: N815  # as above

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering(status: int, *, trickle: bool = False) -> Iterator[str]:
    handler = type("Handler", (Answers,), {"status": status, "trickle": trickle})
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


def _copy(shared: Path, to: Path) -> tuple[Objects, Whose, Pointer]:
    for path in shared.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(shared)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    objects = Objects(f"file://{to}", "given", timeout_s=5, writes=True)
    (whose,) = objects.all_pointers()
    seen = objects.pointer(whose)
    assert seen is not None
    pointer = parse_pointer(seen.data, whose.identity)
    assert isinstance(pointer, Pointer)
    return objects, whose, pointer


def _point(objects: Objects, whose: Whose, pointer: Pointer, **other: Any) -> None:
    changed = {**{f: getattr(pointer, f) for f in pointer.__struct_fields__}, **other}
    assert objects.swap(whose, render_pointer(Pointer(**changed)), objects.pointer(whose))


def no_bundle(shared: Path, to: Path) -> None:
    """The pointer names a bundle that is not there."""
    objects, whose, pointer = _copy(shared, to)
    _point(objects, whose, pointer, bundle="0" * 64)


def cut_off(shared: Path, to: Path) -> None:
    """The bundle has lost its end."""
    objects, _, pointer = _copy(shared, to)
    name = bundle_key(pointer.bundle)
    objects.overwrite(name, (to / name).read_bytes()[:-2048])


def _renamed(shared: Path, to: Path, change: Callable[[bytes], bytes]) -> None:
    """Put a bundle under the right digest of other bytes, and point to it."""
    objects, whose, pointer = _copy(shared, to)
    data = change((to / bundle_key(pointer.bundle)).read_bytes())
    objects.create(bundle_key(digest(data)), data)
    _point(objects, whose, pointer, bundle=digest(data))


def _repacked(shared: Path, to: Path, change: Callable[[Packed], Packed]) -> None:
    """Do so with an archive that is in order, of files that are changed."""
    _renamed(
        shared,
        to,
        lambda data: archive.render(map(change, archive.read(io.BytesIO(data), 1 << 24))),
    )


def poisoned(shared: Path, to: Path) -> None:
    """Somebody has changed a winner in a bundle that is otherwise as it was."""
    _renamed(shared, to, lambda data: data.replace(_RUNNER, _OTHER, 1))


def edited(shared: Path, to: Path) -> None:
    """Somebody has changed a winner and packed it again, and left the manifest as it was."""
    _repacked(
        shared,
        to,
        lambda file: (
            replace(file, data=file.data.replace(_RUNNER, _OTHER, 1))
            if re.fullmatch(r"rank_\w+\.json", file.name)
            else file
        ),
    )


def anothers(shared: Path, to: Path) -> None:
    """The bundle is another identity's."""
    _repacked(
        shared,
        to,
        lambda file: replace(
            file, path=file.path.replace(file.identity, "0" * 64), identity="0" * 64
        ),
    )


def unlike(shared: Path, to: Path) -> None:
    """The factors in it are not those that the identity is the digest of."""
    _repacked(
        shared,
        to,
        lambda file: (
            replace(file, data=file.data.replace(b'"tp":1', b'"tp":2'))
            if file.name == "identity.json"
            else file
        ),
    )


def no_archive(shared: Path, to: Path) -> None:
    """The bundle is something else altogether."""
    _renamed(shared, to, lambda _data: b"#!/bin/sh\nrm -rf /\n")


def not_a_pointer(shared: Path, to: Path) -> None:
    """The pointer is no document."""
    objects, whose, _ = _copy(shared, to)
    assert objects.swap(whose, b"{", objects.pointer(whose))


def huge_pointer(shared: Path, to: Path) -> None:
    """The pointer has a megabyte."""
    objects, whose, _ = _copy(shared, to)
    assert objects.swap(whose, b" " * (1 << 20), objects.pointer(whose))


@dataclass
class Row:
    """A fault. ``state`` and ``says``: what the receipt must have. ``env``: what is wrong."""

    state: str
    says: str
    address: Callable[[], contextlib.AbstractContextManager[str]] | None = None
    make: Callable[[Path, Path], None] | None = None
    env: dict[str, str] = field(default_factory=dict)


ROWS = {
    "dead endpoint": Row("failed", "", lambda: contextlib.nullcontext("http://127.0.0.1:9")),
    "black hole": Row("failed", "", listening),
    "503": Row("failed", "503", lambda: answering(503)),
    "slow": Row("failed", "", lambda: answering(200, trickle=True)),
    "wrong credentials": Row("failed", "permission denied", lambda: answering(403)),
    "credentials not accepted": Row("failed", "not accepted", lambda: answering(401)),
    "no name": Row("failed", "", lambda: contextlib.nullcontext("http://fleet.invalid")),
    "no credentials": Row(
        "failed", "no credentials for s3://", env={"WARMUP_PLUGIN_FLEET": "s3://tables/x"}
    ),
    "no folder": Row("failed", "", env={"WARMUP_PLUGIN_FLEET": "file:///nobody/has/this"}),
    "no bundle": Row("refused", "is not there", make=no_bundle),
    "cut off": Row("refused", "other bytes than its name says", make=cut_off),
    "poisoned": Row("refused", "other bytes than listed", make=poisoned),
    "edited": Row("refused", "vouches for a table with another sha256", make=edited),
    "unlike": Row("refused", "its digest is", make=unlike),
    "no archive": Row("refused", "not an archive", make=no_archive),
    "another identity's": Row("refused", "another identity's", make=anothers),
    "no pointer": Row("refused", "pointer cannot be read", make=not_a_pointer),
    "huge pointer": Row("failed", "more than the", make=huge_pointer),
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
                env = at(stack.enter_context(row.address()))
            if row.make:
                row.make(published, folder / "shared")
                env = {"WARMUP_PLUGIN_FLEET": f"file://{folder / 'shared'}"}
            env["WARMUP_PLUGIN_FLEET_WAIT_S"] = str(WAIT_S)
            found[name] = pool.submit(start, folder / "root", env)
        yield found


@pytest.mark.parametrize("name", ROWS)
def test_the_start_is_as_without_it(starts: dict[str, Future[Started]], name: str) -> None:
    """Tuned and certified by itself, within the bound, with the reason in receipt and warning."""
    row, begun = ROWS[name], starts[name].result(100)
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
    objects, whose, pointer = _copy(published, shared)
    _point(objects, whose, pointer, bundle="1" * 64, generation=9)
    _point(objects, whose, pointer)
    begun = start(tmp_path / "root", env)
    assert begun.fleet.state == "fetched"
    assert begun.timed_of_tasks == 0


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
