# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian that tests run, unpacked by `make test` or installed on the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_ENVIRONMENT = Path(__file__).parents[1] / ".venv"


def unpacked(folder: str) -> Path:
    """Return where `make test` unpacks the packages of this name."""
    variable = f"WARMUP_TEST_{folder.upper()}"
    return Path(os.environ.get(variable, _ENVIRONMENT / folder))


def program(name: str, folder: str, packages: str) -> str:
    """Return the path of a program of these packages.

    Where it is missing the test skips, naming it, and with ``CI`` set it fails.
    """
    places = f"{unpacked(folder)}/usr/bin"
    found = shutil.which(name, path=places) or shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is neither on the PATH nor in {places}")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {packages})")
    return found
