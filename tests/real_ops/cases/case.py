# SPDX-License-Identifier: Apache-2.0
"""What a case is: an op as an engine calls it, and at which batches.

Owns the batches. The default ones lie on buckets, between them, below the first, and above the
largest that vLLM tunes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: One call of every layer at a batch.
Step = Callable[[int], Any]
#: Builds the weights of two layers.
Make = Callable[[], Step]

SIZES = (1, 7, 8, 100, 3000, 8192, 10240, 16384)
SERVED = (1, 2, 3, 5, 8, 9, 31, 64, 100, 128, 255, 300, 512, 1000, 2048, 3000, 4096, 8192, 10000,
          16384)  # fmt: skip
SMALL = (1, 7, 8, 100, 300)
FEW = (1, 3, 7, 8, 31, 64, 100, 128, 200, 300, 500)
BLACKWELL, HOPPER, GEFORCE = "10.0", "9.0", "12.0"


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    sizes: tuple[int, ...] = SIZES
    served: tuple[int, ...] = SERVED
    #: The GPUs whose op code takes it.
    on: tuple[str, ...] = (BLACKWELL, HOPPER, GEFORCE)
    #: The releases that have it; all of them without.
    releases: tuple[str, ...] = ()
    #: Why the plugin leaves its ops to FlashInfer; it takes part in their tuning without it.
    left: str = ""
    #: Why each rank tunes some of its tasks for itself: lists of runners that share a file key.
    apart: str = ""


def up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
