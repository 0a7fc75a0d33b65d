# SPDX-License-Identifier: Apache-2.0
"""The lookups of serving, after the warm-up, for which the tuner had no winner.

Owns `serving_fallbacks`. Serving pays nothing for it and FlashInfer is not changed: the tuner
itself keeps a note of these lookups, which a call of the function reads.
"""

from __future__ import annotations

from collections import Counter

from warmup_plugin.tuner import compat


def serving_fallbacks() -> dict[str, int]:
    """Count the shapes that serving has run with FlashInfer's default since the warm-up.

    Such a shape belongs to a bucket that the warm-up's forward did not reach. The figures suit a
    gauge or a health page.

    Returns:
        Op name -> number of shapes, each counted once, of ops that have winners for other shapes.
        Empty where every lookup found a winner. Ops that stay on their default on purpose have no
        winners and are not counted.

    Raises:
        LookupError: the installed FlashInfer keeps no note of such lookups.
    """
    found = compat.fallbacks(compat.tuner())
    if found is None:
        raise LookupError(f"FlashInfer {compat.version()} does not note which lookups fall back")
    return dict(Counter(found))
