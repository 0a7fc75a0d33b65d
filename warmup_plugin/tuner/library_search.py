# SPDX-License-Identifier: Apache-2.0
"""Python's search for a shared library, which FlashInfer's environment stamp makes.

Owns what happens where that search cannot run: the library is not found, and nothing raises.
"""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable
from contextlib import AbstractContextManager

from warmup_plugin.runtime.stand_in import StandIn

#: The compiler, its own part that links, and the linker: processes count as threads do.
_PROCESSES = 3


def bearing_failed_searches() -> AbstractContextManager[None]:
    """Have a library not be found in the body where it cannot be searched for.

    Where the linker's cache does not name it, Python has a compiler and a linker look for it, for
    which it needs a temporary directory; without one it raises. A compiler that cannot start its
    own processes, as those of a session are started meanwhile, tries again for a quarter of a
    minute: then there is no search. FlashInfer asks elsewhere.
    """
    return _search.used()


def _bearing(own: Callable[[str], str | None]) -> Callable[[str], str | None]:
    def find_library(name: str) -> str | None:
        try:
            from warmup_plugin.runtime.needs import lacks_processes  # only a search asks

            return None if lacks_processes(_PROCESSES) else own(name)
        except OSError:
            return None

    return find_library


_search = StandIn(ctypes.util, "find_library", _bearing)
