# SPDX-License-Identifier: Apache-2.0
"""`push` and `pull` before a registry is asked: references, wrong usage, what is not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.shelves import put
from warmup_plugin.fleet import reference
from warmup_plugin.fleet.client import Kind, Worker

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["push", "registry.example/tables:v1"], "must be oci://HOST/NAME:TAG"),
        (["push", "oci://registry.example/tables"], "without a tag or a digest"),
        (["push", f"oci://registry.example/tables:v1@sha256:{'0' * 64}"], "push gives an image"),
        (["push", f"oci://registry.example/tables@sha256:{'0' * 64}"], "push gives an image"),
        (["pull", "oci://registry.example/Tables:v1"], "must be oci://HOST/NAME:TAG"),
        (["pull", "oci://registry.example/../tables:v1"], "must be oci://HOST/NAME:TAG"),
        (["pull", "oci://user@registry.example/tables:v1"], "must be oci://HOST/NAME:TAG"),
        (["pull", "oci://registry.example/tables:v1", "--limit", "0"], "must be above 0"),
        (["pull", "oci://registry.example/tables:v1", "--limit", "inf"], "must be above 0"),
        (["pull", "oci://registry.example/tables:v1", "--limit", "nan"], "must be above 0"),
    ],
)  # fmt: skip
def test_wrong_usage(cli: Cli, tmp_path: Path, words: list[str], says: str) -> None:
    """Before anything is asked or packed."""
    put(tmp_path)
    ran = cli(*words, "--root", tmp_path)
    assert (ran.code, says in ran.err) == (2, True), ran.err


@pytest.mark.parametrize("host", ["localhost", "registry", "10.0.0.1:5000", "[::1]:5000"])
def test_references(host: str) -> None:
    """As they are written, so they are said; which part is the host is no guess."""
    for rest in ("a:v1", f"a/b.c/d:v1@sha256:{'0' * 64}", f"a@sha256:{'0' * 64}"):
        found = reference.parse(f"oci://{host}/{rest}")
        assert (found.host, str(found)) == (host, f"oci://{host}/{rest}")


def test_the_extra_that_is_not_installed_is_named() -> None:
    """With what installs it."""
    absent = Kind("nothing.of_that_name", "nothing_of_that_name", "oci")
    answer = Worker(absent).ask({}, 20.0)
    assert "pip install 'warmup-plugin[oci]' brings nothing_of_that_name" in answer["reason"]


def test_the_client_is_imported_where_a_registry_is_asked(tmp_path: Path) -> None:
    """Not by the command line, nor where a layout is written."""
    put(tmp_path / "root")
    script = (
        "import sys; from warmup_plugin.cli import main; "
        f"code = main(['pack', '--oci', {str(tmp_path / 'image')!r}, '--root', "
        f"{str(tmp_path / 'root')!r}]); "
        "sys.exit(code or ', '.join({'oras', 'requests', 'urllib3'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True,
                          text=True, cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
