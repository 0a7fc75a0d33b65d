# SPDX-License-Identifier: Apache-2.0
"""FlashInfer releases whose tuner has been tried: what it does need not be found out at a start.

Owns the list, by the digest of the tuner's source (`probe.sources_digest`), so that a patched
release is not on it. A test tries each release and holds this list against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Digest -> the fields of a file key without extras, and with them.
PROVEN: Final[Mapping[str, tuple[int, int]]] = {
    # 0.6.11.post2
    "7930a9f5709b8a463c91564894a590c8d63c3600a38f0c0d61cbd6ad47e25592": (3, 4),
    # 0.6.12
    "f14b14c90fb0d4b2300afb47f81857932991f30d0348191164729a46a85e5afd": (3, 3),
    # 0.6.13
    "adaaabe452bc3a4d2aca72551d17093a0096aae761db73bfd3e643042420f692": (4, 4),
    # 0.6.16.post3, 0.6.17
    "e928bc7efbe80c0cd1fe76711c8d12dc4593f3935f7bb6eff73991c2305540f4": (4, 4),
    # 0.6.18, 0.6.18.post1
    "4b875cd248e1c76a58c53b3f64538519055e92804b2ebaf1f1b3faab45e91018": (4, 4),
    # 0.7.0, 0.7.0.post1
    "37797c49449a0d05d250d4180bba3da6db039da79e06cb33bda2225eee454ebc": (4, 4),
    # 0.7.1, 0.7.2, 0.7.2.post1
    "b1ba46777482f6d248eb2d5aa0af486ae64978037fdf9899a96ec97cdd6496fc": (4, 4),
    # 0.7.4
    "cd8cdc3bb5f3cd627954e97c5f3adad3558582f782907caa1ed05be94f3f195e": (4, 4),
}
