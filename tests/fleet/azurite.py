# SPDX-License-Identifier: Apache-2.0
"""Microsoft's Azurite, the Azure Storage server for tests, as `make test` installs it by npm.

Owns its start and its end, and the one container in it. Conditions on ETags and create-only writes
are Azurite's, signatures too; the client under test is the real one. Not covered: Entra's tokens.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Final

import pytest

from tests.debian import unpacked

#: Published by Microsoft, the same in every Azurite.
_ACCOUNT: Final = "devstoreaccount1"
_KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_VERSION: Final = "2021-12-02"
_LISTENS: Final = re.compile(r"listens on (http://\S+)")


def program() -> list[str]:
    """Return the command of the blob server; without it the test skips, and says so."""
    node = shutil.which("node")
    path = unpacked("azurite") / "node_modules/azurite/dist/src/blob/main.js"
    if node is not None and path.exists():
        return [node, str(path)]
    if os.environ.get("CI") and shutil.which("npm"):
        pytest.fail(f"Azurite is not at {path}, though npm could install it")
    pytest.skip("Azurite is not installed: make test does that where there is npm")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server with an empty container named tables; yields what reaches it."""
    command = [
        *program(), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence",
        "--silent", "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=folder,
    ) as server:  # fmt: skip
        try:
            yield _environment(_address(server))
        finally:
            server.kill()


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line)
        if found := _LISTENS.search(line):
            return found[1].rstrip("/")
    pytest.fail(f"Azurite has ended: {''.join(said)}")


def _environment(address: str) -> dict[str, str]:
    endpoint = f"{address}/{_ACCOUNT}"
    _make_container(endpoint, "tables")
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
        "AZURE_STORAGE_ENDPOINT": endpoint,
        "AZURE_ALLOW_HTTP": "true",
    }


def _make_container(endpoint: str, name: str) -> None:
    """Do what an administrator does by hand: no client of ours makes a container."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items()),
             f"/{_ACCOUNT}/{_ACCOUNT}/{name}", "restype:container"]  # fmt: skip
    mac = hmac.new(base64.b64decode(_KEY), "\n".join(lines).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(mac.digest()).decode()}"
    request = urllib.request.Request(  # noqa: S310  # our own server
        f"{endpoint}/{name}?restype=container", method="PUT", headers=headers
    )
    urllib.request.urlopen(request).close()  # noqa: S310  # as above
