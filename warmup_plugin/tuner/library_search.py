# SPDX-License-Identifier: Apache-2.0
"""Python's search for a shared library, which FlashInfer's environment stamp makes.

Owns what happens where that search cannot run: the library is not found, and nothing raises.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import threading
from collections.abc import Iterator

from warmup_plugin.runtime.needs import lacks_processes

#: The compiler, its own part that links, and the linker: processes count as threads do.
_PROCESSES = 3

_searches = threading.Lock()
_search_depth = 0
_own_search = ctypes.util.find_library


@contextlib.contextmanager
def bearing_failed_searches() -> Iterator[None]:
    """Have a library not be found in the body where it cannot be searched for.

    Where the linker's cache does not name it, Python has a compiler and a linker look for it, for
    which it needs a temporary directory; without one it raises. A compiler that cannot start its
    own processes, as those of a session are started meanwhile, tries again for a quarter of a
    minute: then there is no search. FlashInfer asks elsewhere.
    """
    global _search_depth  # noqa: PLW0603  # of the process, as the function it stands for

    def find_library(name: str) -> str | None:
        if lacks_processes(_PROCESSES):
            return None
        try:
            return _own_search(name)
        except OSError:
            return None

    with _searches:
        _search_depth += 1
        ctypes.util.find_library = find_library
    try:
        yield
    finally:
        with _searches:
            _search_depth -= 1
            if not _search_depth:
                ctypes.util.find_library = _own_search
