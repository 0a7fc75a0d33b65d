# SPDX-License-Identifier: Apache-2.0
"""Which version of an engine is taken for which tested one.

Owns how a version is read: a post-release, a release candidate, a development build and a local
build are builds of the release whose number they carry. Pure, and by hand: what is asked is less
than PEP 440, and `packaging` would be one more import in every process of an engine. Refuses to
guess: a text that is written in another way is a build of nothing, and so is an alpha or a beta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BUILD = re.compile(
    r"(?P<release>\d+(\.\d+)*(\.post\d+)?)"
    r"([-_.]?rc[-_.]?\d+)?([-_.]?post[-_.]?\d+)?([-_.]?dev[-_.]?\d*)?"
    r"(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


def taken_for(version: str, tested: Iterable[str]) -> str:
    """Return the tested version that this is, or is a build of; an empty text where it is neither.

    A tested post-release stands before the release that it follows.
    """
    tested = tuple(tested)
    if version in tested:
        return version
    found = _BUILD.fullmatch(version)
    if found is None:
        return ""
    release = found["release"]
    bases = (release, release.partition(".post")[0])
    return next((base for base in bases if base in tested), "")


def is_the_same_release(version: str, base: str) -> bool:
    """Return whether nothing but its local label tells a version from this one."""
    return bool(base) and version.partition("+")[0] == base
