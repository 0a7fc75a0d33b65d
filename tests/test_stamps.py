# SPDX-License-Identifier: Apache-2.0
"""Which differences between two environment stamps make another environment."""

from __future__ import annotations

import pytest

from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES, by_content, stamp_conflicts

STAMP = {"flashinfer_version": "0.7.2.post1", "cudnn_version": "91400", "gpu": "NVIDIA H200"}


@pytest.mark.parametrize(
    ("one", "other", "fields"),
    [
        ({}, {}, []),
        ({"gpu": "NVIDIA B200"}, {}, ["gpu"]),
        ({"flashinfer_version": "0.7.1"}, {}, ["flashinfer_version"]),
        ({"cudnn_version": "91500"}, {}, ["cudnn_version"]),
        ({"cudnn_version": "91500", "gpu": "x"}, {}, ["cudnn_version", "gpu"]),
        ({"cudnn_version": "unknown"}, {}, []),
        ({}, {"cudnn_version": "unknown"}, []),
        ({"cudnn_version": "None"}, {}, []),
        ({"cudnn_version": None}, {}, []),
        ({"more": "1"}, {}, []),
        ({"more": "1"}, {"more": "2"}, ["more"]),
    ],
)
def test_stamp_conflicts(
    one: dict[str, str | None], other: dict[str, str | None], fields: list[str]
) -> None:
    """Only what both sides know, with both values; the same from either side."""
    a, b = {**STAMP, **one}, {**STAMP, **other}
    assert stamp_conflicts(a, b) == {name: (a[name], b[name]) for name in fields}
    assert stamp_conflicts(b, a) == {name: (b[name], a[name]) for name in fields}


#: FlashInfer's fingerprint of the same packages at two paths, and what we make of both.
HERE, THERE = {FINGERPRINT: "here", PACKAGES: "same"}, {FINGERPRINT: "there", PACKAGES: "same"}
OTHER = {FINGERPRINT: "there", PACKAGES: "other"}


@pytest.mark.parametrize(
    ("one", "other", "fields"),
    [
        pytest.param(HERE, HERE, [], id="equal"),
        pytest.param(HERE, THERE, [], id="installed elsewhere"),
        pytest.param(HERE, OTHER, [FINGERPRINT], id="other packages"),
        pytest.param(HERE, {FINGERPRINT: "here"}, [], id="FlashInfer's own file, made here"),
        pytest.param(HERE, {FINGERPRINT: "there"}, [FINGERPRINT], id="its file, made elsewhere"),
        pytest.param(HERE, by_content(THERE), [], id="an identity's"),
        pytest.param(HERE, by_content(OTHER), [FINGERPRINT], id="another identity's"),
        pytest.param(HERE, {FINGERPRINT: "unknown"}, [], id="not known"),
        pytest.param({FINGERPRINT: "4.2"}, {FINGERPRINT: "4.3"}, [FINGERPRINT], id="before 0.7.4"),
    ],
)
def test_packages_are_told_apart_by_what_is_in_them(
    one: dict[str, str], other: dict[str, str], fields: list[str]
) -> None:
    """Not by how they were installed; the same from either side."""
    a, b = {**STAMP, **one}, {**STAMP, **other}
    assert list(stamp_conflicts(a, b)) == list(stamp_conflicts(b, a)) == fields


def test_an_identitys_stamp_is_equal_wherever_the_packages_are() -> None:
    """One field for one question; a stamp without digests stays as it is."""
    assert by_content({**STAMP, **HERE}) == by_content({**STAMP, **THERE}) != {**STAMP, **HERE}
    assert by_content({**STAMP, **HERE}) == {**STAMP, FINGERPRINT: "same"}
    assert by_content(STAMP) == STAMP
