# SPDX-License-Identifier: Apache-2.0
"""What goes wrong inside a rank: ``Spec.fault`` names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Faults:
    def __init__(self, spec: Any) -> None:
        self._spec = spec

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        yield
