# SPDX-License-Identifier: Apache-2.0
"""SGLang with one cache root, as the tests, the pod and `make demo-sglang` start it.

Owns what a start of SGLang is told: its model, its cache folder, the function of each rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_starts
from sglang_on_ranks import LLAMA, Spec, serve


class Job(engine_starts.Job):
    """A hand-made model and a cache root."""

    spec = Spec
    serve = staticmethod(serve)
    own_tables = ("flashinfer/autotune/**/*",)

    def environment(self) -> dict[str, str]:
        return {"SGLANG_CACHE_DIR": str(self.root)}


def make_job(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> Job:
    """Return a job with an empty cache root; ``config`` changes the model's."""
    found: Job = Job.make(folder, config or LLAMA, **options)
    return found
