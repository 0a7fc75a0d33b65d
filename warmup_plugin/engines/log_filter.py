# SPDX-License-Identifier: Apache-2.0
"""An engine's log without what the engine says of a file that it does not have.

Owns that one filter, for the length of the engine's own function: it would name a path at which
nothing is read or written, and an operator would look there for the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class LogWithout:
    """An engine's logger, but for lines about one file."""

    def __init__(self, own: Any, file: Path) -> None:
        self._own, self._file = own, file

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name)

        def log(*args: Any, **kwargs: Any) -> Any:
            texts = [str(arg) for arg in args if isinstance(arg, (str, Path))]
            return None if str(self._file) in texts else own(*args, **kwargs)

        return log if callable(own) else own
