# SPDX-License-Identifier: Apache-2.0
"""A function of another module, replaced on all threads while one of them needs that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


class StandIn:
    """Stands in for ``module.name`` while one `used` context is open at least.

    ``make`` is given the function of the module and returns what is called in its place. What the
    module has is restored with the last context.
    """

    def __init__(
        self, module: ModuleType, name: str, make: Callable[[Callable[..., Any]], Any]
    ) -> None:
        self._module, self._name, self._make = module, name, make
        self._lock = threading.Lock()
        self._threads: list[int] = []
        self._own: Any = None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Replace the function in the body, for its callers on all threads."""
        thread = threading.get_ident()
        with self._lock:
            if not self._threads:
                self._own = getattr(self._module, self._name)
                setattr(self._module, self._name, self._make(self._own))
            self._threads.append(thread)
        try:
            yield
        finally:
            with self._lock:
                self._threads.remove(thread)
                if not self._threads:
                    setattr(self._module, self._name, self._own)

    def is_used_here(self) -> bool:
        """Return whether the calling thread is in such a body."""
        return threading.get_ident() in self._threads
