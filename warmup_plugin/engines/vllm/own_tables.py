# SPDX-License-Identifier: Apache-2.0
"""Where vLLM keeps its own tables for this config, to start from on the first start with us.

Owns the way to them; reading is `borrow.py`'s, and nothing of vLLM's is ever written or moved.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from warmup_plugin.engines.vllm import names

logger = logging.getLogger("warmup_plugin")


def own_tables(runner: Any) -> tuple[Path, ...]:
    """Return files that FlashInfer can load and folders of its managed store, those that exist."""
    try:
        mine = names.rank_file(runner)
        files = sorted(mine.parent.glob("autotune_configs_dp*_rank*.json"))
        return (*files, *_managed())
    except Exception:  # the engine's own tables are an offer, not a need
        logger.debug("warmup-plugin: cannot find vLLM's own tables", exc_info=True)
        return ()


def _managed() -> tuple[Path, ...]:
    from warmup_plugin.tuner.probe import managed_stores

    return managed_stores(names.managed_root())
