# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's environment stamps compared: which differences make another environment. Pure.

Owns the rule for the one field that may differ between equal packages. From 0.7.4 on FlashInfer's
fingerprint of the CuTe DSL has digests of how packages were installed: by another installer, or at
another path, they are others. Beside it our stamps hold `PACKAGES`, the same fingerprint with
digests of what was installed. FlashInfer passes over a field that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What a writer puts where it could not tell; never a difference.
INDETERMINATE: Final = (None, "unknown", "None")
FINGERPRINT: Final = "cutlass_dsl_version"
PACKAGES: Final = "warmup_plugin_packages"
#: FlashInfer's variable that names a file of tactics which are no candidates; among the switches.
BLOCKLIST: Final = "FLASHINFER_TACTICS_BLOCKLIST"


def by_content(stamp: Mapping[str, str]) -> dict[str, str]:
    """Return a stamp that is equal wherever the packages are, for identities and comparisons."""
    found = dict(stamp)
    packages = found.pop(PACKAGES, None)
    return found if packages is None else {**found, FINGERPRINT: packages}


def stamp_conflicts(
    a: Mapping[str, str | None], b: Mapping[str, str | None]
) -> dict[str, tuple[str, str]]:
    """Return the fields that both stamps know and in which they differ."""
    found = {}
    for name in sorted(a.keys() & b.keys() - {PACKAGES}):
        one, other = a[name], b[name]
        if one == other or one in INDETERMINATE or other in INDETERMINATE:
            continue
        if name == FINGERPRINT and {one, a.get(PACKAGES)} & {other, b.get(PACKAGES)} - {None}:
            continue
        found[name] = (str(one), str(other))
    return found
