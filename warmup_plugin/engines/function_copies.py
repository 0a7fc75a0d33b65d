# SPDX-License-Identifier: Apache-2.0
"""An engine's own function, run with some of the names it uses replaced.

Owns how: a copy of the function over a copy of its globals, so that no module of the engine is
touched. And the path in which such a function can make no directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any


def over(function: FunctionType, replaced: Mapping[str, Any]) -> FunctionType:
    """Return the function over a copy of its globals in which some are replaced."""
    copied = FunctionType(
        function.__code__, {**function.__globals__, **replaced}, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class Unmade(type(Path())):  # type: ignore[misc]  # the class of paths on this system
    """A path that is not made a directory, and neither is one that is derived from it."""

    def mkdir(self, *_args: Any, **_options: Any) -> None:
        pass
