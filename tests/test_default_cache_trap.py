# SPDX-License-Identifier: Apache-2.0
"""Proof that the trap of conftest.py stands where users keep their tables, and that it closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from warmup_plugin.cache.paths import resolve
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Trap


def default_directory(environ: dict[str, str]) -> Path:
    placement = resolve(
        Settings.from_env(environ), "0" * 64, version="0.7.2.post1", arch="cpu", environ=environ
    )
    return placement.directory


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_default_directory_is_trapped(default_cache_trap: Trap, variable: str) -> None:
    """What `resolve` falls back on lies in the trap, by either variable."""
    directory = default_directory({variable: os.environ[variable]})
    assert directory.is_relative_to(default_cache_trap.root)


def test_a_test_that_uses_it_fails(default_cache_trap: Trap) -> None:
    """Writing there, from a child too, is reported with the path; the next test starts clean."""
    directory = default_directory(dict(os.environ))
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(parents=True)"
    subprocess.run([sys.executable, "-c", script, str(directory)], check=True)
    with pytest.raises(AssertionError, match=f"was written to: .*{directory.name}"):
        default_cache_trap.check()
    default_cache_trap.check()


def test_the_home_directory_is_trapped(default_cache_trap: Trap) -> None:
    """Anything else that a library drops into the home directory is found as well."""
    home = Path.home()
    home.mkdir()
    (home / ".some-library").touch()
    with pytest.raises(AssertionError, match=r"home/\.some-library"):
        default_cache_trap.check()
