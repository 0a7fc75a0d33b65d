# SPDX-License-Identifier: Apache-2.0
"""Tokens and passwords of a registry: which are asked for, what for, and where they go."""

from __future__ import annotations

import json
import os
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli import registries
from tests.cli.registries import Answer, Registry
from warmup_plugin.cache.image import Image

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]


def pulled(cli: Cli, registry: Registry, there: Path, *words: str, **environ: str) -> Ran:
    place = f"oci://{registry.host}/tables:v1"
    return cli("pull", place, "--root", there, "--limit", "30", *words, **environ)


def refused(ran: Ran, there: Path, says: str) -> None:
    """Hold what it comes to against the promise."""
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
    assert says in ran.err
    assert not there.exists()


PLAIN = "--plain-http"


def _with_tokens(registry: Registry, *, only: str = "") -> None:
    """Ask for a token with each request, as Docker's Hub does, good for just what it was given."""

    def guard(method: str, path: str, authorization: str) -> Answer | None:
        if path.startswith("/token"):
            if only and authorization != f"Basic {only}":
                return Answer(401)
            (scope,) = urllib.parse.parse_qs(path.partition("?")[2])["scope"]
            return Answer(200, b'{"token": "for-%s"}' % scope.rpartition(":")[2].encode())
        needs = "pull" if method in ("GET", "HEAD") else "pull,push"
        if path == "/v2/" or authorization == f"Bearer for-{needs}":
            return None
        realm = f'realm="http://{registry.host}/token",service="tables"'
        scope = f'scope="repository:tables:{needs}"'
        return Answer(401, headers={"WWW-Authenticate": f"Bearer {realm},{scope}"})

    registry.guard = guard


def test_a_token_is_fetched(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """Without credentials, where everybody may read."""
    _with_tokens(registry)
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, DOCKER_CONFIG=str(tmp_path))
    assert ran.code == 0, ran.err
    assert sum(path.startswith("/token") for _, path, _ in registry.asked) == 1


def test_a_token_for_reading_is_none_for_writing(
    cli: Cli, registry: Registry, whole: Image, tmp_path: Path
) -> None:
    """The first request of a push reads; its token is not enough for the next."""
    _with_tokens(registry)
    del registry.answers[f"/v2/tables/blobs/{whole.layer.digest}"]
    upload = {"Location": "/v2/tables/upload"}
    registry.answers["/v2/tables/blobs/uploads/"] = Answer(202, headers=upload)
    registry.answers["/v2/tables/upload"] = Answer(201)
    ran = cli("push", f"oci://{registry.host}/tables:v1", "--plain-http", "--root",
              tmp_path / "root", DOCKER_CONFIG=str(tmp_path))  # fmt: skip
    assert ran.code == 0, ran.err
    written = [path for method, path, how in registry.asked
               if method == "PUT" and how == "Bearer for-pull,push"]  # fmt: skip
    assert [path.partition("?")[0] for path in written] == [
        "/v2/tables/upload", "/v2/tables/manifests/v1",
    ]  # fmt: skip
    assert urllib.parse.unquote(written[0]).endswith(f"digest={whole.layer.digest}")


def test_a_token_is_refused(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """No credentials, wrong ones, right ones."""
    _with_tokens(registry, only="dXNlcjpzZWNyZXQ=")
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, DOCKER_CONFIG=str(tmp_path))
    refused(ran, tmp_path / "there", "the credentials are not accepted, or there are none")
    wrong = registries.credentials(tmp_path / "w", registry.host, "user", "geheim")
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, **wrong)
    refused(ran, tmp_path / "there", "the credentials are not accepted, or there are none")
    right = registries.credentials(tmp_path / "r", registry.host, "user", "secret")
    assert pulled(cli, registry, tmp_path / "there", PLAIN, **right).code == 0


def _helper(folder: Path, host: str, script: str) -> dict[str, str]:
    """Return the environment in which a program keeps the passwords of this registry."""
    program = folder / "docker-credential-of-the-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (folder / "config.json").write_text(json.dumps({"credHelpers": {host: "of-the-test"}}))
    return {"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_program_that_keeps_passwords(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """It is asked for the one of this registry."""
    _with_tokens(registry, only="dXNlcjpzZWNyZXQ=")
    says = """echo '{"Username": "user", "Secret": "secret"}'"""
    environ = _helper(tmp_path, registry.host, f'test "$(cat)" = {registry.host} && {says}')
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, **environ)
    assert ran.code == 0, ran.err


def test_a_program_that_hangs(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """It is ended with the process that asks it."""
    script = f"echo $$ > {tmp_path}/pid; exec sleep 600"
    environ = _helper(tmp_path, registry.host, script)
    began = time.monotonic()
    place = f"oci://{registry.host}/tables:v1"
    ran = cli("pull", place, PLAIN, "--root", tmp_path / "there", "--limit", "3", **environ)
    assert time.monotonic() - began < 12
    refused(ran, tmp_path / "there", "no answer within 3.0 s")
    pid = int((tmp_path / "pid").read_text())
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_netrc_is_not_asked(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """It would take the place of each token, with a password that was meant for others."""
    _with_tokens(registry)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, NETRC=str(tmp_path / "netrc"),
                 DOCKER_CONFIG=str(tmp_path))  # fmt: skip
    assert ran.code == 0, ran.err
    assert not [how for _, _, how in registry.asked if how.startswith("Basic")]


def test_credentials_that_cannot_be_read(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """The file is said, as nobody can tell what it would have held."""
    (tmp_path / "config.json").write_text("{")
    ran = pulled(cli, registry, tmp_path / "there", PLAIN, DOCKER_CONFIG=str(tmp_path))
    refused(ran, tmp_path / "there", "credentials that are kept cannot be read")


def test_a_token_goes_nowhere_by_http(cli: Cli, whole: Image, tmp_path: Path) -> None:
    """A registry that is asked by https sends the password to a place that is not."""
    tls = registries.certificate(tmp_path)
    with registries.of_this_process(tls) as registry:
        registry.holds(whole)
        _with_tokens(registry)
        trusted = {"REQUESTS_CA_BUNDLE": str(tls[0])}
        ran = pulled(cli, registry, tmp_path / "there", **trusted)
    refused(ran, tmp_path / "there", "/token, which is not https")
