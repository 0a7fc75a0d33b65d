# SPDX-License-Identifier: Apache-2.0
"""What serving asks of the tuner after the warm-up: how often it had no winner to give.

Owns that question. It costs serving nothing and leaves nothing in FlashInfer: the tuner keeps a
note of these lookups by itself, and it is read when somebody asks.
"""

from __future__ import annotations

from collections import Counter

from warmup_plugin.tuner import compat


def serving_fallbacks() -> dict[str, int]:
    """Return op -> shapes that were served FlashInfer's default since this process's warm-up.

    Counts each shape once, of ops that have winners for other shapes: a bucket that the warm-up's
    forward did not reach. Ops that were left on their default on purpose have none and are not
    counted. For a gauge or a health page; empty where all is well.

    Raises `LookupError` where the installed FlashInfer keeps no such note.
    """
    found = compat.fallbacks(compat.tuner())
    if found is None:
        raise LookupError(f"FlashInfer {compat.version()} does not note which lookups fall back")
    return dict(Counter(found))
