# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that a setting may have: how each is read from text, checked, described.

Owns the rules of numbers, flags, paths and addresses, in words and as code. Knows no setting: which
of them has which kind stands in `settings.py`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import field
from pathlib import Path
from typing import Final, TypeVar, get_args

import msgspec

_Value = TypeVar("_Value")
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")


class Kind(msgspec.Struct, frozen=True):
    """How a kind of value is read from text, checked, and described.

    ``parse`` raises `ValueError`. ``normal`` makes of an argument what the variable would have been
    read as, and leaves what it does not know.
    """

    parse: Callable[[str], object]
    accepts: Callable[[object], bool]
    rule: str
    normal: Callable[[object], object] = lambda value: value

    def read(self, text: str) -> object:
        """Return what a text stands for; raises `ValueError` where it breaks the rule."""
        value = self.parse(text)
        if not self.accepts(value):
            raise ValueError(text)
        return value


def setting(variable: str, kind: Kind, meaning: str, *, default: _Value) -> _Value:
    """Declare a row of the table of settings: a field of its dataclass."""
    row = {"variable": variable, "meaning": meaning, "rule": kind.rule, "kind": kind}
    declared: _Value = field(default=default, metadata=row)
    return declared


def choice(names: object) -> Kind:
    """Return the kind of a `Literal` type's texts."""
    allowed = get_args(names)
    return Kind(str, lambda value: value in allowed, f"one of {', '.join(allowed)}")


def seconds(*, zero: bool) -> Kind:
    """Return the kind of a length of time, which may be 0 or not."""

    def accepts(value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return math.isfinite(value) and (value > 0 or (zero and value == 0))

    return Kind(float, accepts, f"a finite number of seconds, {'0 or more' if zero else 'above 0'}")


def _is_share(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < 1  # type: ignore[operator]  # mypy forgets what it is


SHARE: Final = Kind(float, _is_share, "a share, from 0 to less than 1")


def count(least: int) -> Kind:
    """Return the kind of a whole number that is no smaller than ``least``."""
    return Kind(
        int,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number, {least} or more",
    )


def _parse_flag(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


FLAG: Final = Kind(
    _parse_flag, lambda value: isinstance(value, bool), f"one of {', '.join(_TRUE + _FALSE)}"
)


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


def _as_paths(value: object) -> object:
    return tuple(map(_as_path, value)) if isinstance(value, (tuple, list)) else value


def _parse_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~" where there is no home directory
        raise ValueError(text) from error


PATH: Final = Kind(
    _parse_path,
    # Ranks of one job may start in different directories: a relative path would scatter the tables.
    lambda value: isinstance(value, Path) and value.is_absolute(),
    "an absolute path",
    _as_path,
)

PROM: Final = Kind(
    _parse_path,
    # The collector reads no other file, and says nothing of one.
    lambda value: PATH.accepts(value) and isinstance(value, Path) and value.suffix == ".prom",
    "an absolute path that ends in .prom",
    _as_path,
)


def _parse_paths(text: str) -> tuple[Path, ...]:
    return tuple(_parse_path(part) for part in text.split(os.pathsep) if part)


PATHS: Final = Kind(
    _parse_paths,
    lambda value: isinstance(value, tuple) and all(map(PATH.accepts, value)),
    "absolute paths, with : between them",
    _as_paths,
)
HOST: Final = Kind(
    str,
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_.:%-]+", value)),
    "a host name or an IP address, without scheme or port",
)
URL: Final = Kind(
    str,
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"https?://[^\s@]+", value)),
    "an address that begins with http:// or https://, without user name",
)


def _is_location(value: object) -> bool:
    from warmup_plugin.fleet.location import is_location  # a start without a fleet has no need

    return is_location(value)


FLEET: Final = Kind(
    str,
    _is_location,
    "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY, without "
    "user name, query or ..",
)


def unlike(names: Iterable[str], prefix: str, variables: Iterable[str]) -> dict[str, str]:
    """Return the names with this prefix that are none of the variables, each with the nearest."""
    known = {variable.removeprefix(prefix): variable for variable in variables}
    found = {}
    for name in sorted(each.removeprefix(prefix) for each in names if each.startswith(prefix)):
        if name not in known:
            import difflib  # few have such a variable

            nearest = difflib.get_close_matches(name, known, n=1)
            found[f"{prefix}{name}"] = known[nearest[0]] if nearest else ""
    return found
