# SPDX-License-Identifier: Apache-2.0
"""Equal packages have one fingerprint, whoever installed them where; others have another."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from warmup_plugin.tuner import packages
from warmup_plugin.tuner.packages import by_content, content_digest

NAME, VERSION = "apache-tvm-ffi", "0.1.11"
RECORD = """\
../../../bin/tvm-ffi-config,sha256=AAA,200
apache_tvm_ffi-0.1.11.dist-info/INSTALLER,sha256=zuuu,4
apache_tvm_ffi-0.1.11.dist-info/METADATA,sha256=mmm,900
apache_tvm_ffi-0.1.11.dist-info/RECORD,,
apache_tvm_ffi-0.1.11.dist-info/WHEEL,sha256=www,90
apache_tvm_ffi-0.1.11.dist-info/direct_url.json,sha256=ddd,90
tvm_ffi/__init__.py,sha256=iii,1000
tvm_ffi/__pycache__/__init__.cpython-311.pyc,,
tvm_ffi/bin/stub,sha256=sss,10
tvm_ffi/lib/libtvm_ffi.so,sha256=lll,100000
"""


def _without(*words: str) -> str:
    rows = [row for row in RECORD.splitlines() if not any(word in row for word in words)]
    return "\n".join(rows) + "\n"


SAME = {
    "at another path": RECORD.replace("sha256=AAA,200", "sha256=BBB,214"),
    "by another installer": RECORD.replace("sha256=zuuu,4", "sha256=zppp,2"),
    "without byte code": _without(".pyc"),
    "without scripts and notes": _without("../bin", "INSTALLER", "direct_url"),
    "into a folder": RECORD.replace("../../../bin/", "../../bin/"),
    "on Windows": RECORD.replace("../../../bin/", "../../Scripts/"),
    "in another order": "\n".join(reversed(RECORD.splitlines())),
    "with notes of its own": f"{RECORD}apache_tvm_ffi-0.1.11.dist-info/uv_cache.json,sha256=u,1\n",
    "with other line ends": RECORD.replace("\n", "\r\n"),
}
OTHER = {
    "another module": RECORD.replace("sha256=iii", "sha256=jjj"),
    "another library": RECORD.replace("sha256=lll", "sha256=kkk"),
    "a file in a folder called bin": RECORD.replace("sha256=sss", "sha256=ttt"),
    "a module more": f"{RECORD}tvm_ffi/more.py,sha256=ppp,1\n",
    "a module less": _without("__init__.py"),
    "other metadata": RECORD.replace("sha256=mmm", "sha256=nnn"),
}


@pytest.mark.parametrize("record", SAME.values(), ids=SAME)
def test_how_a_package_was_installed_makes_no_other(record: str) -> None:
    assert content_digest(record) == content_digest(RECORD)


@pytest.mark.parametrize("record", OTHER.values(), ids=OTHER)
def test_another_content_makes_another(record: str) -> None:
    assert content_digest(record) != content_digest(RECORD)


def _fingerprint(record: str | None, url: str | None, name: str = NAME) -> str:
    """FlashInfer 0.7.4's, of one package."""
    digest = hashlib.sha256(json.dumps([record, url]).encode()).hexdigest()
    return f"cpython-311;x86_64-linux-gnu;{name}=={VERSION}:{digest}"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Install nothing but records, before all else on the import path."""

    def installed(record: str, url: str | None) -> None:
        notes = tmp_path / f"apache_tvm_ffi-{VERSION}.dist-info"
        notes.mkdir(exist_ok=True)
        (notes / "METADATA").write_text(f"Name: {NAME}\nVersion: {VERSION}\n")
        (notes / "RECORD").write_text(record)
        if url is not None:
            (notes / "direct_url.json").write_text(url)
        packages._found.clear()

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return installed


def test_a_fingerprint_names_what_is_installed(install: Callable[[str, str | None], None]) -> None:
    """With the digest of the contents; the rest of it is as FlashInfer has it."""
    found = set()
    for record, url in ((RECORD, None), (SAME["at another path"], '{"url": "file:///w.whl"}')):
        install(record, url)
        found.add(by_content(_fingerprint(record, url)))
    expected = f"cpython-311;x86_64-linux-gnu;{NAME}=={VERSION}:{content_digest(RECORD)}"
    assert found == {expected}


def test_what_cannot_be_found_again_keeps_its_digest(
    install: Callable[[str, str | None], None],
) -> None:
    """Another record than the one that FlashInfer has read, or no package of that name."""
    install(RECORD, None)
    for told in (_fingerprint(OTHER["another library"], None), _fingerprint(RECORD, None, "other")):
        assert by_content(told) == told


@pytest.mark.parametrize("told", ["", "unknown", "4.2.1", "nvidia-cutlass-dsl==4.8.1"])
def test_a_fingerprint_without_digests_is_left_alone(told: str) -> None:
    """As before 0.7.4: nothing is looked for."""
    assert by_content(told) == ""
