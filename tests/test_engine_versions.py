# SPDX-License-Identifier: Apache-2.0
"""In which versions of an engine this package acts, and what it says of the others."""

from __future__ import annotations

import logging

import pytest

from warmup_plugin.engines import gate, versions

TESTED = ("0.33.0", "0.32.0", "0.16.post3")

TAKEN = [
    ("0.33.0", "0.33.0"),
    ("0.33.0.post1", "0.33.0"),
    ("0.33.0.post12+cu130", "0.33.0"),
    ("0.33.0+cu130", "0.33.0"),
    ("0.33.0+cu130.torch2-13", "0.33.0"),
    ("0.32.0rc2", "0.32.0"),
    ("0.32.0-rc.2", "0.32.0"),
    ("0.33.0.dev7", "0.33.0"),
    ("0.33.0rc1.dev12+g1f43ee7ab.d20261130", "0.33.0"),
    ("0.16.post3", "0.16.post3"),
    ("0.16.post3+cu130", "0.16.post3"),
    ("0.16", ""),
    ("0.16.post4", ""),
    ("0.34.0", ""),
    ("0.33.1", ""),
    ("0.33.1.dev12+g1f43ee7ab", ""),  # the next release's, as setuptools-scm counts
    ("0.33", ""),
    ("0.33.0.1", ""),
    ("10.33.0", ""),
    ("0.33.0a1", ""),
    ("0.33.0b2", ""),
    ("0.33.0rc", ""),
    ("0.33.0 post1", ""),
    ("0.33.0+", ""),
    ("dev", ""),
    ("", ""),
]


@pytest.mark.parametrize(("version", "base"), TAKEN)
def test_a_version_is_taken_for_the_tested_one_that_it_is_a_build_of(
    version: str, base: str
) -> None:
    assert versions.taken_for(version, TESTED) == base


#: version, names that are missing, the setting; whether it acts, what its one line says.
ENTERED = [
    pytest.param("0.33.0", [], "", True, "", id="tested"),
    pytest.param("0.33.0+cu130", [], "", True, "", id="local build"),
    pytest.param("0.33.0.post1", [], "", True, "0.33.0.post1 is taken for 0.33.0", id="build"),
    pytest.param("0.33.0.post1", ["a", "b"], "", False, "0.33.0.post1 has no a, b", id="moved"),
    pytest.param("0.33.0", ["a"], "", False, "0.33.0 has no a", id="patched"),
    pytest.param("0.34.0", [], "", False, "WARMUP_PLUGIN_UNTESTED=probe", id="untested"),
    pytest.param("0.34.0", [], "off", False, "WARMUP_PLUGIN_UNTESTED=probe", id="off"),
    pytest.param("0.34.0", ["a"], "off", False, "is not a tested version", id="off and moved"),
    pytest.param("0.34.0", [], "probe", True, "and is tried", id="probe"),
    pytest.param("0.34.0", ["a"], "probe", False, "0.34.0 has no a", id="probe and moved"),
    pytest.param("0.34.0", [], "on", False, "WARMUP_PLUGIN_UNTESTED", id="malformed"),
]


@pytest.mark.parametrize(("version", "missing", "setting", "acts", "said"), ENTERED)
def test_whether_it_acts_and_its_one_line(  # noqa: PLR0917  # a table's columns
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str,
    missing: list[str], setting: str, acts: bool, said: str,  # noqa: FBT001  # a column
) -> None:  # fmt: skip
    monkeypatch.setenv("WARMUP_PLUGIN_UNTESTED", setting)
    with caplog.at_level(logging.INFO, "warmup_plugin"):
        found = gate.usable_settings("vLLM", version, TESTED, missing)

    assert (found is not None) == acts
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == bool(said)
    assert all(said in line for line in lines)
