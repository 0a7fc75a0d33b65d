# SPDX-License-Identifier: Apache-2.0
"""What a FlashInfer release tunes is what the tables say: no call site or runner class unseen."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.real_ops import tables, wheel
from tests.real_ops.cases.catalogue import CASES
from tests.real_ops.conftest import release_folder
from tests.real_ops.rows import MAIN, NEXT

# A bound for what hangs: a server starts with the first test that asks it.
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

#: How many of a release's call sites of choose_one must be reached.
LEAST = {MAIN: 44, NEXT: 52}
RELEASES = [MAIN, pytest.param(NEXT, marks=pytest.mark.real_ops)]
GPUS = ("10.0", "12.0", "9.0")


def package(release: str) -> Path:
    if release != MAIN:
        return release_folder(release) / "flashinfer"
    spec = importlib.util.find_spec("flashinfer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.mark.parametrize("release", RELEASES)
def test_every_call_site_is_in_the_table(release: str) -> None:
    """A new or moved one fails here, by file, function and op."""
    assert sorted(tables.read(release, "site")) == wheel.sites(package(release))


@pytest.mark.parametrize("release", RELEASES)
def test_every_runner_class_is_in_the_table(release: str) -> None:
    assert sorted(tables.read(release, "runner")) == wheel.runners(package(release))


@pytest.mark.parametrize("release", RELEASES)
def test_enough_call_sites_are_reached(release: str) -> None:
    assert len(tables.reached(release, "site")) >= LEAST[release]


@pytest.mark.parametrize("kind", ["site", "runner"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_line_names_a_case_or_a_reason(release: str, kind: str) -> None:
    for name, (case, gpu) in tables.reached(release, kind).items():
        assert gpu in CASES[case].on, name
        assert not CASES[case].releases or release in CASES[case].releases, name
    reasons = [how for how in tables.read(release, kind).values() if how.startswith(tables.OUT)]
    assert all(len(reason.split()) > 3 for reason in reasons)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("release", RELEASES)
def test_the_cases_reach_what_the_table_says(
    ask: Callable[..., Any], release: str, gpu: str
) -> None:
    expected = {
        (kind, name, case)
        for kind in ("site", "runner")
        for name, (case, where) in tables.reached(release, kind).items()
        if where == gpu
    }
    names = sorted({case for *_, case in expected})
    seen = ask("reached", "sites_of", on=gpu, release=release, limit_s=400, names=names)
    found = set()
    for kind, name, case in expected:
        file, second, *_ = name.split(" ")
        for where, function, _op, classes in seen[case]:
            if kind == "site" and (where, function) == (file, second):
                found.add((kind, name, case))
            if kind == "runner" and second in classes:
                found.add((kind, name, case))
    assert sorted(expected - found) == []
