# SPDX-License-Identifier: Apache-2.0
"""Where vLLM keeps its own tables for this config, to start from on the first start with us.

Owns the way to them; reading is `external.py`'s, and nothing of vLLM's is ever written or moved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmup_plugin.engines.vllm import compat

logger = logging.getLogger("warmup_plugin")


def own_tables(runner: Any) -> Iterator[Path]:
    """Yield files that FlashInfer can load and folders of its managed store, those that exist.

    Looks when it is iterated, which is where a table is missing: vLLM's hash of its config takes
    longer than all the rest of a warm start's reading.
    """
    try:
        mine = compat.rank_file(runner)
        yield from sorted(mine.parent.glob("autotune_configs_dp*_rank*.json"))
        yield from _managed()
    except Exception:  # the engine's own tables are an offer, not a need
        logger.debug("warmup-plugin: cannot find vLLM's own tables", exc_info=True)


def _managed() -> tuple[Path, ...]:
    from warmup_plugin.tuner.compat import managed_stores

    return managed_stores(compat.managed_root())
