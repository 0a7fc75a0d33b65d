# SPDX-License-Identifier: Apache-2.0
"""Where an image lies in a registry: `oci://HOST/NAME:TAG`, `oci://HOST/NAME@sha256:...`, or both.

Owns the form of such a reference. No tag is meant where none is said: `latest` is a name like any
other. Pure: imports no client.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_FORM: Final = re.compile(
    rf"oci://(?P<host>[A-Za-z0-9.-]+(?::[0-9]{{1,5}})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{{1,5}})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


class Reference(msgspec.Struct, frozen=True):
    """An image in a registry; ``tag`` or ``digest`` may be empty, not both."""

    host: str
    name: str
    tag: str
    digest: str

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"oci://{self.host}/{self.name}{tag}{digest}"


def parse(text: str) -> Reference:
    """Return what a reference says.

    Raises:
        ValueError: it is none; the text says why.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: must be oci://HOST/NAME:TAG or oci://HOST/NAME@sha256:...")
    found = Reference(match["host"], match["name"], match["tag"] or "", match["digest"] or "")
    if not found.tag and not found.digest:
        raise ValueError(f"{text}: without a tag or a digest")
    return found
