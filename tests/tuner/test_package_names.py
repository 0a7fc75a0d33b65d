# SPDX-License-Identifier: Apache-2.0
"""Names of packages, read quickly for FlashInfer, are those that `importlib.metadata` reads."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.tuner import compat
from warmup_plugin.tuner.package_names import naming_packages_quickly

LONG = "\n\nName: of-a-description\n\nWords.\n"
#: Headers as builders write them, as none does, and files that are none.
HEADERS = {
    "nvidia_cublas_cu13": "Metadata-Version: 2.4\nName: nvidia-cublas-cu13\nVersion: 13.2.1.1"
    + LONG,
    "name_goes_on": "Metadata-Version: 2.1\nName: nvidia-cublas\n -cu12\nVersion: 1" + LONG,
    "name_later": "Metadata-Version: 2.1\nVersion: 1\nName: nvidia-cutlass-dsl" + LONG,
    "two_names": "Metadata-Version: 2.1\nName: first\nName: second\nVersion: 1" + LONG,
    "other_case": "metadata-version: 2.1\nname: Nvidia-Cutlass-DSL\nversion: 4.5" + LONG,
    "wide": "Metadata-Version: 2.1\nName:  spaced \nVersion: 1" + LONG,
    "odd": "Metadata-Version: 2.1\nName: nvidia cublas=1\nVersion: 1" + LONG,
    "no_name": "Metadata-Version: 2.1\nVersion: 1" + LONG,
    "empty": "",
    "carriage_returns": "Metadata-Version: 2.1\r\nName: nvidia-cublas\r\nVersion: 2\r\n\r\nW\r\n",
    "name_is_all": "Metadata-Version: 2.1\nName: alone\n",
    "name_is_last": "Metadata-Version: 2.1\nName: alone",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with one installed package for each of `HEADERS`."""
    for name, text in HEADERS.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(text.encode())
    (tmp_path / "without-1.dist-info").mkdir()
    egg = tmp_path / "old.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text(HEADERS["nvidia_cublas_cu13"])
    (tmp_path / "file.egg-info").write_text(HEADERS["two_names"])
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def asked() -> list[tuple[Any, ...]]:
    """Return what FlashInfer asks of a package and what others do; what raises, by its name."""
    return [
        tuple(
            told(ask, found)
            for ask in (
                lambda one: one.metadata["Name"],
                lambda one: one.metadata["Version"],
                lambda one: one.version,
                lambda one: sorted(one.metadata),
                lambda one: "Version" in one.metadata,
                lambda one: len(one.metadata),
                lambda one: one.metadata.get_all("Requires-Dist"),
                lambda one: one.metadata.json,
                lambda one: one.read_text("METADATA"),
                lambda one: str(one.locate_file("a")),
            )
        )
        for found in importlib.metadata.distributions()
    ]


def told(ask: Callable[[Any], Any], of: Any) -> Any:
    try:
        return ask(of)
    except Exception as error:  # noqa: BLE001  # whatever it is: the same
        return type(error).__name__


@pytest.mark.usefixtures("packages")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # for a header that is not there
def test_the_answers_are_the_same() -> None:
    before = asked()
    with naming_packages_quickly():
        quick = asked()
    assert quick == before
    assert len(quick) > len(HEADERS)


@pytest.mark.usefixtures("packages")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_name_takes_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    own = importlib.metadata.PathDistribution.metadata

    def metadata(package: importlib.metadata.PathDistribution) -> Any:
        parsed.append(str(package.locate_file("")))
        return own.__get__(package)

    monkeypatch.setattr(importlib.metadata.PathDistribution, "metadata", property(metadata))
    with naming_packages_quickly():
        found = importlib.metadata.distributions()
        names = [told(lambda one: one.metadata["Name"], one) for one in found]
    assert "nvidia-cublas-cu13" in names
    assert len(parsed) < len(names) / 2


@pytest.mark.parametrize("field", compat.SLOW)
@pytest.mark.usefixtures("packages")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flashinfer_hears_the_same(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = compat.SLOW[field]
    look = getattr(sys.modules[module], name).__wrapped__
    monkeypatch.setattr("ctypes.util.find_library", lambda _name: None)
    before = told(lambda _: look(), None)
    with naming_packages_quickly():
        assert told(lambda _: look(), None) == before
    assert before not in ("unknown", "")


def test_no_other_thread_hears_of_it() -> None:
    own, heard = importlib.metadata.distributions, list[type]()

    def ask() -> None:
        heard.extend(map(type, importlib.metadata.distributions()))

    with naming_packages_quickly(), naming_packages_quickly():
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        (mine, *_) = map(type, importlib.metadata.distributions())
    assert heard
    assert mine not in heard
    assert importlib.metadata.distributions is own
