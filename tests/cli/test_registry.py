# SPDX-License-Identifier: Apache-2.0
"""Tables through a real registry, Debian's, and through skopeo: what is pushed is pulled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli import registries
from tests.cli.registries import skopeo
from tests.cli.shelves import files_below, identity, put

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]
PLAIN = "--plain-http"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that everybody may read and write, by http."""
    with registries.debians(tmp_path_factory.mktemp("debian") / "registry") as host:
        yield host


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache root with two identities."""
    put(tmp_path / "root")
    put(tmp_path / "root", identity(tp=4))
    return tmp_path / "root"


def test_there_and_back(cli: Cli, host: str, root: Path, tmp_path: Path) -> None:
    """To the byte, by tag and by digest, which is that of `pack --oci`; pushed twice, too."""
    place, there = f"oci://{host}/team/tables:v1", tmp_path / "there"
    packed = cli("pack", "--oci", tmp_path / "image", "--root", root, "--json").document
    pushed = cli("push", place, PLAIN, "--root", root, "--json").document
    assert pushed["digest"] == packed["digest"]
    assert (pushed["reference"], len(pushed["identities"])) == (place, 2)
    assert cli("push", place, PLAIN, "--root", root, "--json").document == pushed

    pulled = cli("pull", place, PLAIN, "--root", there, "--json").document
    assert pulled["digest"] == packed["digest"]
    assert [row["became"] for row in pulled["identities"]] == ["new", "new"]
    assert files_below(there) == files_below(root)
    by_digest = f"oci://{host}/team/tables@{packed['digest']}"
    again = cli("pull", by_digest, PLAIN, "--root", there, "--json").document
    assert [row["became"] for row in again["identities"]] == ["the same", "the same"]


def test_one_identity_and_a_dry_run(cli: Cli, host: str, root: Path, tmp_path: Path) -> None:
    """What is named is pushed; nothing is written where only a check is asked for."""
    place, there = f"oci://{host}/one:v1", tmp_path / "there"
    ran = cli("push", place, identity().digest[:12], PLAIN, "--root", root)
    assert (ran.code, ran.out.count("3 files")) == (0, 1), ran.err
    ran = cli("pull", place, PLAIN, "--root", there, "--dry-run")
    assert (ran.code, ran.out.count("would be new")) == (0, 1)
    assert not there.exists()


def test_skopeo_takes_it_as_it_is(cli: Cli, host: str, root: Path, tmp_path: Path) -> None:
    """Byte for byte into a layout, which `unpack` takes; into Docker's words, which are read."""
    place, there = f"{host}/for-skopeo", tmp_path / "there"
    pushed = cli("push", f"oci://{place}:v1", PLAIN, "--root", root, "--json").document
    found = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{place}:v1"))
    assert found["Digest"] == pushed["digest"]
    assert found["Labels"]["cache.vllm.image/entry-count"] == "2"

    layout = tmp_path / "copy"
    skopeo("copy", "--src-tls-verify=false", f"docker://{place}:v1", f"oci:{layout}:latest")
    ran = cli("unpack", layout, "--digest", pushed["digest"], "--root", there)
    assert ran.code == 0, ran.err
    assert files_below(there) == files_below(root)

    skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--format=v2s2",
           f"docker://{place}:v1", f"docker://{place}:docker")  # fmt: skip
    ran = cli("pull", f"oci://{place}:docker", PLAIN, "--root", tmp_path / "docker", "--json")
    assert ran.document["digest"] != pushed["digest"]
    assert files_below(tmp_path / "docker") == files_below(root)


def test_what_skopeo_pushes_is_pulled(cli: Cli, host: str, root: Path, tmp_path: Path) -> None:
    """A layout of `pack --oci` needs no oras on the machine that packs."""
    packed = cli("pack", "--oci", tmp_path / "image", "--root", root, "--json").document
    place = f"{host}/by-skopeo:v1"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/image:latest", f"docker://{place}")
    pulled = cli("pull", f"oci://{place}", PLAIN, "--root", tmp_path / "there", "--json").document
    assert pulled["digest"] == packed["digest"]
    assert files_below(tmp_path / "there") == files_below(root)


def test_a_password_is_asked_for(cli: Cli, root: Path, tmp_path: Path) -> None:
    """None, a wrong one, and the right one, which another registry's is not taken for."""
    (tmp_path / "users").write_text(registries.USERS)
    auth = {"htpasswd": {"realm": "tables", "path": str(tmp_path / "users")}}
    with registries.debians(tmp_path / "registry", auth=auth) as host:
        place = f"oci://{host}/tables:v1"

        def push(**environ: str) -> Ran:
            return cli("push", place, PLAIN, "--root", root, **environ)

        none = push(DOCKER_CONFIG=str(tmp_path))
        assert (none.code, none.err.count("\n")) == (1, 1)
        assert "asks for credentials, and there are none" in none.err
        other = push(**registries.credentials(tmp_path / "o", "127.0.0.1:1", "user", "secret"))
        assert "asks for credentials, and there are none" in other.err
        wrong = push(**registries.credentials(tmp_path / "w", host, "user", "geheim"))
        assert (wrong.code, wrong.err.count("\n")) == (1, 1)
        assert "the credentials are not accepted" in wrong.err
        assert "geheim" not in wrong.err
        right = registries.credentials(tmp_path / "r", host, "user", "secret")
        assert push(**right).code == 0
        ran = cli("pull", place, PLAIN, "--root", tmp_path / "there", **right)
        assert (ran.code, files_below(tmp_path / "there")) == (0, files_below(root))

        kept = tmp_path / "auth.json"
        skopeo(
            "login", "--tls-verify=false", "--authfile", kept, "-u", "user", "-p", "secret", host
        )
        ran = cli("pull", place, PLAIN, "--root", tmp_path / "there", "--dry-run",
                  DOCKER_CONFIG=None, REGISTRY_AUTH_FILE=str(kept))  # fmt: skip
        assert ran.code == 0, ran.err


def test_https_is_the_rule(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A certificate that is not known is refused, one that is in the bundle is taken."""
    certificate, key = registries.certificate(tmp_path)
    tls = {"certificate": str(certificate), "key": str(key)}
    with registries.debians(tmp_path / "registry", tls=tls) as host:
        place = f"oci://{host}/tables:v1"
        ran = cli("push", place, "--root", root)
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert "https: certificate verify failed" in ran.err
        trusted = {"REQUESTS_CA_BUNDLE": str(certificate)}
        assert cli("push", place, "--root", root, **trusted).code == 0
        ran = cli("pull", place, "--root", tmp_path / "there", **trusted)
        assert (ran.code, files_below(tmp_path / "there")) == (0, files_below(root))


def test_plain_http_is_never_a_guess(cli: Cli, host: str, root: Path) -> None:
    """Not even on loopback."""
    ran = cli("push", f"oci://{host}/tables:v1", "--root", root)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "https: " in ran.err
