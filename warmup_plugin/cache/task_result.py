# SPDX-License-Identifier: Apache-2.0
"""What became of one task on the rank that tuned it. Pure."""

from __future__ import annotations

import msgspec

from warmup_plugin.cache.manifest import DEFAULTS, WINNERS
from warmup_plugin.cache.table import Entry

#: What is known of a task from now on. Another result says something of one start alone
#: (``failed``) or is each rank's own (``unshared``): it is not stored, and the task is tuned again.
LASTING = (*WINNERS, *DEFAULTS)


class Result(msgspec.Struct, frozen=True):
    """What became of one task on the rank that tuned it, as it crosses ranks."""

    task: str
    kind: str
    winner: int | None = None
    entry: Entry | None = None
    reason: str = ""
    ms: float | None = None
    default_ms: float | None = None
    rank: int = 0
    host: str = ""
    at: float = 0.0
    samples: int | None = None
    candidates: int | None = None
    gpu: str = ""
    seconds: float = 0.0
