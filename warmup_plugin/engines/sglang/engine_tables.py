# SPDX-License-Identifier: Apache-2.0
"""Where SGLang keeps its own tables for this config, to start from on the first start with us.

Owns the way to them; reading is `external.py`'s, and no tactic of ours is ever written to them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmup_plugin.engines.sglang import compat

logger = logging.getLogger("warmup_plugin")


def own_tables(model_runner: Any) -> Iterator[Path]:
    """Yield SGLang's files that exist, of this rank first and of its pipeline stage next.

    Looks when it is iterated, which is where a table is missing.
    """
    try:
        mine = compat.rank_file(model_runner)
        stage = f"_pp{compat.of_parallel('pp_rank', 0)}_"
        found = sorted(mine.parent.glob("rank_*.json"))
    except Exception:  # the engine's own tables are an offer, not a need
        logger.debug("warmup-plugin: cannot find SGLang's own tables", exc_info=True)
        return
    yield from sorted(found, key=lambda path: (path != mine, stage not in path.name, path.name))
