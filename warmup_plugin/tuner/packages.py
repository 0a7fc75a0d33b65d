# SPDX-License-Identifier: Apache-2.0
"""The packages that compile FlashInfer's CuTe DSL kernels, told apart by what is in them.

Owns the fingerprint that stands under `stamps.PACKAGES`: FlashInfer's own, with a digest of each
package's files in place of one of its installation records (0.7.4). Left out of the records is what
an installer writes: scripts, which name their interpreter's path, byte code, and its own notes. A
package whose records are not found again keeps FlashInfer's digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re

#: One package in FlashInfer's fingerprint: name, version, sha256 of RECORD and direct_url.json.
_PACKAGE = r"([a-z0-9][a-z0-9._-]*)==([^:;]+):([0-9a-f]{64})"
_SCRIPT = r'"?(\.\./)*(bin|Scripts)/'
#: Of the notes beside a package only these two are the wheel's own.
_WHEELS_OWN = (".dist-info/METADATA,", ".dist-info/WHEEL,")


#: By FlashInfer's fingerprint, what `by_content` has found for it or was told.
_found: dict[str, str] = {}


def by_content(fingerprint: str) -> str:
    """Return the fingerprint by what is installed; empty where it has no such digests."""
    if fingerprint not in _found:
        has_digests = re.search(_PACKAGE, fingerprint) is not None
        _found[fingerprint] = re.sub(_PACKAGE, _package, fingerprint) if has_digests else ""
    return _found[fingerprint]


def remember(fingerprint: str, packages: str) -> None:
    """Take this for the answer of `by_content`, which an earlier process has found."""
    _found.setdefault(fingerprint, packages)


def _package(found: re.Match[str]) -> str:
    name, version, digest = found.groups()
    for record, url in _records(name):
        told = json.dumps([record, url]).encode()
        if record and hashlib.sha256(told).hexdigest() == digest:
            digest = content_digest(record)
            break
    return f"{name}=={version}:{digest}"


def _records(name: str) -> list[tuple[str | None, str | None]]:
    """Return RECORD and direct_url.json of every installed package of a name."""
    try:
        return [
            (found.read_text("RECORD"), found.read_text("direct_url.json"))
            for found in importlib.metadata.distributions(name=name)
        ]
    except OSError:
        return []


def content_digest(record: str) -> str:
    """Return a digest of the files that an installation record names, in any order."""
    rows = [row for row in record.splitlines() if ".pyc," not in row and not re.match(_SCRIPT, row)]
    kept = [
        row for row in rows if ".dist-info/" not in row or any(own in row for own in _WHEELS_OWN)
    ]
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
