# SPDX-License-Identifier: Apache-2.0
"""Python's cyclic garbage collector, kept out of the way of large tables.

Ten thousand entries are tens of thousands of new objects, none of them garbage; the collector would
look at them, and now and then at everything the engine holds, again and again while they are made.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Collect nothing during the body: for work that is short and does not wait."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
