# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks: functions of an engine, named to `launch`.

Most are `warm_up_rank` with something planted or watched, and return its result with what was seen.
Wrapping is done here, in processes that end with the test; the package is what is under test.
"""

from __future__ import annotations

from typing import Any

from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank


def plain(engine: Engine) -> tuple[Any, None]:
    """Warm up as the engine does."""
    return warm_up_rank(engine), None
