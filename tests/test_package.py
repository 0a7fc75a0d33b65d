# SPDX-License-Identifier: Apache-2.0
"""The package as it is shipped: the wheel under test, light to import, typed, two dependencies."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
from importlib import resources
from pathlib import Path

import pytest

import warmup_plugin

CHECKOUT = Path(__file__).parent.parent
HEAVY = ("flashinfer", "msgspec", "numpy", "rich", "sglang", "torch", "vllm")


def in_child(script: str) -> object:
    """Run a script in a new interpreter, in the checkout; what it prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=CHECKOUT
    )
    return json.loads(done.stdout)


def files_of(package: Path) -> dict[str, bytes]:
    """Each file of a package folder, but for what Python and the linters leave there."""
    found = {str(path.relative_to(package)): path for path in package.rglob("*")}
    litter = re.compile(r"(^|/)(__pycache__|\.)")
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if path.is_file() and not litter.search(name)
    }


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_the_package_does_not_import(heavy: str) -> None:
    """An engine pays for what it uses, when it uses it."""
    script = "import json, sys, warmup_plugin; print(json.dumps(sorted(sys.modules)))"
    modules = in_child(script)
    assert isinstance(modules, list)
    assert [name for name in modules if name.partition(".")[0] == heavy] == []


def test_the_wheel_is_what_is_tested() -> None:
    """Here and in children that run in the checkout, the package comes from site-packages."""
    site_packages = Path(sysconfig.get_path("purelib"))
    assert Path(warmup_plugin.__file__).is_relative_to(site_packages)
    child = in_child("import json, warmup_plugin; print(json.dumps(warmup_plugin.__file__))")
    assert child == warmup_plugin.__file__


def test_the_wheel_is_of_this_checkout() -> None:
    """No test passes on a wheel that was built before the last edit."""
    installed = files_of(Path(warmup_plugin.__file__).parent)
    checkout = files_of(CHECKOUT / "warmup_plugin")
    stale = {name for name in installed | checkout if installed.get(name) != checkout.get(name)}
    assert not stale, f"the installed wheel is stale: run `make test`, not pytest alone: {stale}"


def test_public_names() -> None:
    """`__all__` is sorted and each of its names can be had."""
    assert list(warmup_plugin.__all__) == sorted(warmup_plugin.__all__)
    for name in warmup_plugin.__all__:
        assert getattr(warmup_plugin, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy import does not answer for names that are not there."""
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(warmup_plugin, "no_such_name")  # noqa: B009 -- mypy knows that it is not there


def test_types_are_shipped() -> None:
    """Type checkers read the annotations of an installed wheel only where this file stands."""
    assert resources.files("warmup_plugin").joinpath("py.typed").is_file()


def test_metadata() -> None:
    """One version, two dependencies, one command."""
    metadata = importlib.metadata.metadata("warmup-plugin")
    assert metadata["Version"] == warmup_plugin.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    required = importlib.metadata.requires("warmup-plugin") or []
    assert [line for line in required if "extra ==" not in line] == ["msgspec>=0.19", "rich>=13"]
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="warmup-plugin")
    assert callable(command.load())
