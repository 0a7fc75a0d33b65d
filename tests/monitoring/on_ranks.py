# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks: starts that come to a bad end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank


def fails(engine: Engine) -> Any:
    """Warm up with a forward that fails."""

    def forward(_tokens: int | None = None) -> None:
        raise RuntimeError("the forward fails, as planned")

    vars(engine)["forward"] = forward
    return warm_up_rank(engine)


def differ(engine: Engine, path: str) -> Any:
    """Warm up where rank 1 has a list of tactics to leave out, and rank 0 has none."""
    if engine.ranks.rank == 1:
        barred = {"embedded::gemm::BlockedGemmRunner": [0]}
        Path(path).write_text(json.dumps({"invalid_tactics": barred}))
        os.environ["FLASHINFER_TACTICS_BLOCKLIST"] = path
    return warm_up_rank(engine)


def is_killed(engine: Engine) -> Any:
    """Warm up, and be killed in the forward."""

    def forward(_tokens: int | None = None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    vars(engine)["forward"] = forward
    return warm_up_rank(engine)
