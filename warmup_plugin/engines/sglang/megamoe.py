# SPDX-License-Identifier: Apache-2.0
"""MegaMoE's records: tuned by SGLang inside its context, kept in its own file, one per GPU.

Owns their way from that file into the tuner before the session and back after it. They are never
shared with another rank, and our table has none. What cannot be read or written is a warning: the
records are then made anew, by every start.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmup_plugin.engines.sglang import compat

logger = logging.getLogger("warmup_plugin")


@contextlib.contextmanager
def records_kept(model_runner: Any) -> Iterator[None]:
    """Load the records of this GPU, run the body, and write them back if it has changed them."""
    from warmup_plugin.tuner import compat as flashinfer

    namespace, path = compat.megamoe_namespace(), compat.rank_file(model_runner)
    if path.is_file():
        with _warning(f"MegaMoE's records are not read from {path}"):
            flashinfer.tuner().load_configs(str(path))
    before = flashinfer.tuner().get_namespaced_records(namespace)
    yield
    if flashinfer.tuner().get_namespaced_records(namespace) != before:
        with _warning(f"MegaMoE's records are not kept in {path}"):
            _write(path)


def _write(path: Path) -> None:
    from warmup_plugin.tuner import compat as flashinfer

    path.parent.mkdir(parents=True, exist_ok=True)
    flashinfer.tuner().save_configs(str(path))


@contextlib.contextmanager
def _warning(said: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  # of FlashInfer, for any bad file: never ends a start
        logger.warning("warmup-plugin: %s: %s: %s", said, type(error).__name__, error)
