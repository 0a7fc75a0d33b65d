# SPDX-License-Identifier: Apache-2.0
"""What the package logs, collected by tests and by the processes that they start."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logged(level: int = logging.NOTSET) -> Iterator[list[str]]:
    """Collect the messages of the package's logger in the body, from this level on."""
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]  # a handler's one method
    logger = logging.getLogger("warmup_plugin")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
