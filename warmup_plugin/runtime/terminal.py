# SPDX-License-Identifier: Apache-2.0
"""One line that moves on a terminal.

Owns the control sequences, and that the line stays one: it is cut to the terminal's width, since
what wraps cannot be wiped. Refuses streams that are no terminal and terminals that are ``dumb``.
Never raises: a stream may have been closed by other code.
"""

from __future__ import annotations

import contextlib
import os
from typing import TextIO

_WIDTH = 80


class MovingLine:
    """A line on a stream. ``moves``: whether it may; it does until it is given up."""

    def __init__(self, stream: TextIO | None, *, wanted: bool) -> None:
        self._stream = stream
        self._is_drawn = False
        self.moves = wanted and _is_terminal(stream)

    def say(self, text: str) -> None:
        """Replace the line."""
        self._is_drawn = True
        width = _width(self._stream) - 1  # in its last column some terminals wrap already
        self._write(text if len(text) <= width else f"{text[: max(width - 3, 0)]}...")

    def give_up(self) -> None:
        """Wipe the line and let it rest, where it has been drawn."""
        if self._is_drawn:
            self._write("")
            self._is_drawn = self.moves = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):  # closed: this also runs in the heartbeat
            self._stream.write(f"\r\x1b[2K{text}")
            self._stream.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    """Return whether a line may move there; Python has no stream at all where it was closed."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (OSError, ValueError):
        return False


def _width(stream: TextIO | None) -> int:
    """Return how wide it is now; people change that while a line moves."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH if stream else _WIDTH
    except (OSError, ValueError):
        return _WIDTH
