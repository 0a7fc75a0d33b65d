# SPDX-License-Identifier: Apache-2.0
"""Registries on loopback: Debian's docker-registry, and one of this process that does what it must.

Debian's programs are those of `tests/debian.py`. No server outlives its test.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import debian
from warmup_plugin.cache.image import Image

WAIT_S = 30.0
#: One that knows the password `secret`, as `htpasswd -B` writes it.
USERS = "user:$2b$04$4HQj9Gr1HuJeOEFSQ3uu1Ow2tOeQWuqKvkZQKpoS1SwVJIOeLKKRW\n"


def program(name: str) -> str:
    """Return the path of one of Debian's programs."""
    return debian.program(name, "registry", "docker-registry, skopeo")


def skopeo(*words: object) -> str:
    """Run skopeo; return what it prints."""
    libraries = ":".join(
        str(path) for path in debian.unpacked("registry").glob("**/lib/*-linux-gnu")
    )
    done = subprocess.run(
        [program("skopeo"), "--insecure-policy", *map(str, words)], capture_output=True, text=True,
        check=False, timeout=60, env={**os.environ, "LD_LIBRARY_PATH": libraries},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def debians(folder: Path, **http: Any) -> Iterator[str]:
    """Run Debian's registry; yield its host and port. ``http``: more of its settings there."""
    path = program("docker-registry")
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    auth = http.pop("auth", None)
    config = {
        "version": 0.1, "log": {"level": "warn"}, "http": {"addr": host, **http},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        **({"auth": auth} if auth else {}),
    }  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))  # which is YAML as well
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [path, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
        try:
            _wait_for(host, process, folder / "log")
            yield host
        finally:
            process.kill()
            process.wait(10)


def _wait_for(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    name, _, port = host.partition(":")
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"docker-registry does not listen: {log.read_text()}")


def credentials(folder: Path, host: str, user: str, password: str) -> dict[str, str]:
    """Return the environment of whom `docker login` has let in."""
    import base64

    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return {"DOCKER_CONFIG": str(folder)}


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for loopback, which only itself has signed."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1)).add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate, private = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    return certificate, private


@dataclass
class Answer:
    """What is answered; ``said``: its length as it is told, if that is another one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    said: int | None = None
    #: Seconds between two bytes.
    pace_s: float = 0.0


@dataclass
class Registry:
    """A registry in this process. ``answers``: by path; ``asked``: what has been."""

    host: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    #: Says whether a request is let in, and else what is answered.
    guard: Callable[[str, str, str], Answer | None] = lambda _method, _path, _authorization: None

    def holds(self, whole: Image, name: str = "tables", tag: str = "v1") -> None:
        """Answer for this image."""
        self.answers["/v2/"] = Answer()
        kind = {"Content-Type": json.loads(whole.manifest.data).get("mediaType", "")}
        for last in (tag, whole.manifest.digest):
            self.answers[f"/v2/{name}/manifests/{last}"] = Answer(200, whole.manifest.data, kind)
        for blob in (whole.config, whole.layer):
            self.answers[f"/v2/{name}/blobs/{blob.digest}"] = Answer(200, blob.data)


@contextlib.contextmanager
def of_this_process(tls: tuple[Path, Path] | None = None) -> Iterator[Registry]:
    """Serve what a test says on loopback."""
    registry = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            path = self.path.partition("?")[0]
            authorization = self.headers.get("Authorization", "")
            registry.asked.append((self.command, self.path, authorization))
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            answer = registry.guard(self.command, self.path, authorization)
            _send(self, answer or registry.answers.get(path, Answer(404)))

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  # the library's names

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()


def _send(handler: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(answer.status)
    size = len(answer.body) if answer.said is None else answer.said
    for name, value in {"Content-Length": str(size), **answer.headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "HEAD":
        return
    with contextlib.suppress(OSError):
        for at in range(len(answer.body)) if answer.pace_s else ():
            handler.wfile.write(answer.body[at : at + 1])
            handler.wfile.flush()
            time.sleep(answer.pace_s)
        if not answer.pace_s:
            handler.wfile.write(answer.body)
