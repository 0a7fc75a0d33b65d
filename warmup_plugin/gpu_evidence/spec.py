# SPDX-License-Identifier: Apache-2.0
"""What a child is told. The parent needs neither torch nor FlashInfer to say it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spec:
    """What a child is told. ``way``: "ops" only lists what there is to try.

    ``batches`` are those of the warm-up, ``served`` those that are asked for and timed afterwards.
    ``stand_in``: called first (`config.resolve`); it puts a stand-in for the GPU in place and
    returns the ops to try, None for FlashInfer's.
    """

    way: str
    folder: str
    talk: int
    names: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    served: tuple[int, ...] = ()
    stand_in: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        found = json.loads(text)
        lists = {name: tuple(found[name]) for name in ("names", "batches", "served")}
        return cls(**{**found, **lists})
