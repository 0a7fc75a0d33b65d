# SPDX-License-Identifier: Apache-2.0
"""A registry with a fault in it: one line that says what is wrong, in a bounded time, and no file.

The registry is of this process; its faults are those that a real one cannot be made to have.
"""

from __future__ import annotations

import gzip
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.registries import Answer, Registry
from tests.cli.shelves import files_below, put
from warmup_plugin.cache import image
from warmup_plugin.cache.image import Image

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]
#: Of what ends by itself, and of what does not.
PATIENT_S, LIMIT_S = 60.0, 3.0
#: What a busy machine adds until a process has begun, and until it is gone.
SLACK_S = 8.0


def pulled(
    cli: Cli, host: str, there: Path, *, limit_s: float = PATIENT_S, **environ: str
) -> Ran:  # fmt: skip
    """Pull, and see that it ends in time."""
    began = time.monotonic()
    ran = cli("pull", f"oci://{host}/tables:v1", "--root", there, "--limit", limit_s,
              "--plain-http", **environ)  # fmt: skip
    assert time.monotonic() - began < limit_s + SLACK_S
    return ran


def refused(ran: Ran, there: Path, says: str) -> None:
    """Hold what a fault comes to against the promise."""
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
    assert re.search(says, ran.err), ran.err
    assert not there.exists()


def test_the_control_is_taken(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """Without a fault, with one look at what it wants, one manifest and two blobs."""
    ran = pulled(cli, registry.host, tmp_path / "there")
    assert ran.code == 0, ran.err
    assert files_below(tmp_path / "there") == files_below(tmp_path / "root")
    assert [method for method, _, _ in registry.asked] == ["GET"] * 4


def _layer(registry: Registry, whole: Image) -> Answer:
    return registry.answers[f"/v2/tables/blobs/{whole.layer.digest}"]


def _manifest(registry: Registry) -> Answer:
    return registry.answers["/v2/tables/manifests/v1"]


def _cut_off(registry: Registry, whole: Image) -> None:
    answer = _layer(registry, whole)
    answer.body, answer.said = answer.body[:-100], len(answer.body)


def _shorter(registry: Registry, whole: Image) -> None:
    answer = _layer(registry, whole)
    answer.body = answer.body[:-100]


def _longer(registry: Registry, whole: Image) -> None:
    _layer(registry, whole).body += bytes(1 << 20)


def _other_bytes(registry: Registry, whole: Image) -> None:
    answer = _layer(registry, whole)
    answer.body = answer.body[:-1] + b"?"


def _layer_gone(registry: Registry, whole: Image) -> None:
    del registry.answers[f"/v2/tables/blobs/{whole.layer.digest}"]


def _endless_manifest(registry: Registry, _whole: Image) -> None:
    _manifest(registry).body = bytes(image.DOCUMENT_BYTES + 1)


def _bomb(registry: Registry, whole: Image) -> None:
    """All digests fit; 40 kB unfold to 32 MB."""
    unpacked = gzip.decompress(whole.layer.data) + bytes(32 << 20)
    layer = image.blob(gzip.compress(unpacked))
    text = whole.manifest.data.decode().replace(whole.layer.digest, layer.digest)
    text = text.replace(f'"size":{len(whole.layer.data)}', f'"size":{len(layer.data)}')
    registry.holds(Image(image.blob(text.encode()), whole.config, layer))


def _answers(status: int, body: bytes = b"") -> Callable[[Registry, Image], None]:
    def change(registry: Registry, _whole: Image) -> None:
        registry.guard = lambda _method, _path, _authorization: Answer(status, body)

    return change


DENIED = b'{"errors":[{"code":"DENIED","message":"no\\u001b[2J such project"}]}'
Fault = tuple[Callable[[Registry, Image], None], str]
FAULTS: dict[str, Fault] = {
    "cut off": (_cut_off, "in the middle of an answer"),
    "shorter": (_shorter, "bytes, not .*: cut off"),
    "longer": (_longer, "sends more than the"),
    "other bytes": (_other_bytes, "other bytes than its digest says"),
    "no layer": (_layer_gone, "there is no such image"),
    "an endless manifest": (_endless_manifest, "sends more than the"),
    "a bomb": (_bomb, "unfolds to more than the"),
    "401": (_answers(401), "the credentials are not accepted, or there are none"),
    "403": (_answers(403, DENIED), r"permission denied \(no\[2J such project\)"),
    "404": (_answers(404), "there is no such image"),
    "429": (_answers(429), "too many requests"),
    "500": (_answers(500), "answers 500"),
    "503": (_answers(503, b"<html>" * 99), "answers 503$"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_one_line(
    cli: Cli, registry: Registry, whole: Image, tmp_path: Path, fault: Fault
) -> None:
    """And nothing is written, nothing is tried for longer than was allowed."""
    change, says = fault
    change(registry, whole)
    ran = pulled(cli, registry.host, tmp_path / "there", WARMUP_PLUGIN_TABLE_BYTES="1000000")
    refused(ran, tmp_path / "there", says)
    assert "\x1b" not in ran.err


def test_another_image_than_the_digest_asked_for(
    cli: Cli, registry: Registry, whole: Image, tmp_path: Path
) -> None:
    """A tag that has moved, or a registry that lies."""
    wanted = f"sha256:{'0' * 64}"
    registry.answers[f"/v2/tables/manifests/{wanted}"] = Answer(200, whole.manifest.data)
    for name in (f"tables@{wanted}", f"tables:v1@{wanted}"):
        place = f"oci://{registry.host}/{name}"
        ran = cli("pull", place, "--plain-http", "--root", tmp_path / "there")
        refused(ran, tmp_path / "there", "not the one asked for")


def test_nobody_listens(cli: Cli, tmp_path: Path) -> None:
    """Said at once; `push` says it as well."""
    refused(pulled(cli, "127.0.0.1:1", tmp_path / "there"), tmp_path / "there", "refused")
    put(tmp_path / "root")
    ran = cli("push", "oci://127.0.0.1:1/tables:v1", "--root", tmp_path / "root")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "cannot be reached: Connection refused" in ran.err


def test_a_registry_that_trickles(
    cli: Cli, registry: Registry, whole: Image, tmp_path: Path
) -> None:
    """A byte now and then is no silence: the process that asks is ended."""
    _layer(registry, whole).pace_s = 0.05
    ran = pulled(cli, registry.host, tmp_path / "there", limit_s=LIMIT_S)
    refused(ran, tmp_path / "there", r"no answer within 3\.0 s|its time was up")


def test_a_registry_that_is_silent(cli: Cli, tmp_path: Path) -> None:
    """It takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        ran = pulled(cli, host, tmp_path / "there", limit_s=LIMIT_S)
    refused(ran, tmp_path / "there", r"it is silent|no answer within 3\.0 s|its time was up")


def test_a_name_that_no_name_server_knows(cli: Cli, tmp_path: Path) -> None:
    """Or of which none answers."""
    ran = pulled(cli, "registry.invalid", tmp_path / "there")
    refused(ran, tmp_path / "there", "cannot be reached|no answer within|its time was up")
