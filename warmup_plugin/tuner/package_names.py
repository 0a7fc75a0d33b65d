# SPDX-License-Identifier: Apache-2.0
"""The names of all installed packages, which FlashInfer's environment stamp asks for twice.

Owns a quicker way to the same names. To parse the metadata of 140 packages with their descriptions
takes 50 ms each time, more than the programs that are run for a stamp. The name is the second line
of nearly every file, and FlashInfer asks for more only of packages whose names it is looking for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from warmup_plugin.runtime.stand_in import StandIn

#: The first two headers of a file, as every builder writes them; no third line belongs to the name.
_NAMED = r"Metadata-Version: [0-9.]+\nName: ([A-Za-z0-9][A-Za-z0-9._-]*)\n(?![ \t])"


def naming_packages_quickly() -> AbstractContextManager[None]:
    """Read the names of installed packages without a parser in the body, for this thread alone.

    `importlib.metadata` answers all else that is asked of a package, and all other threads.
    """
    return _packages.used()


def _quick(own: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
    def distributions(**options: Any) -> Iterable[Any]:
        found = own(**options)
        return map(_Package, found) if _packages.is_used_here() else found

    return distributions


class _Package:
    """An installed package; its metadata are read when they are asked for."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @functools.cached_property
    def metadata(self) -> Any:
        named = re.match(_NAMED, self._own.read_text("METADATA") or "")
        return _Metadata(self._own, named[1]) if named else self._own.metadata


class _Metadata:
    """A package's headers, of which the name is known."""

    def __init__(self, package: Any, name: str) -> None:
        self._package, self._name = package, name

    def __getitem__(self, header: str) -> Any:
        return self._name if header == "Name" else self._package.metadata[header]

    def __contains__(self, header: object) -> bool:
        return header in self._package.metadata

    def __iter__(self) -> Iterator[Any]:
        return iter(self._package.metadata)

    def __len__(self) -> int:
        return len(self._package.metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package.metadata, name)


_packages = StandIn(importlib.metadata, "distributions", _quick)
