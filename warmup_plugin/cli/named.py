# SPDX-License-Identifier: Apache-2.0
"""What people name on a command line: an identity, a table, a receipt; the same for every verb.

Owns the rule: a path that is there, else the first digits of an identity that is kept below one of
the roots. Raises `CommandError` where it is neither, with what was tried. Reads names only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from warmup_plugin.cache.paths import IDENTITY_NAME, parse_table_name
from warmup_plugin.cache.store import REPORTS
from warmup_plugin.cli import inventory, receipts
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.places import Root

_DIGITS = re.compile("[0-9a-f]{1,64}")


def kept_as(
    name: str, roots: Sequence[Root], version: str | None = None, arch: str | None = None
) -> list[inventory.Kept]:
    """Return the directories of the identity with these first digits, one for each root.

    Of any FlashInfer version and architecture, unless one is named.
    """
    digits = name.lower()
    if not _DIGITS.fullmatch(digits):
        nor = "" if "/" in name or "." in name else ", nor the first digits of an identity"
        raise CommandError(f"{name}: no such file or directory{nor}")
    if not roots:
        message = (
            f"{name}: no such file, and no cache root to look in: set WARMUP_PLUGIN_CACHE_ROOT"
        )
        raise CommandError(message)
    return inventory.matching(list(roots), digits, version, arch)


def directory(name: str, roots: Sequence[Root]) -> Path:
    """Return the directory of one identity, by itself, a file in it, or first digits."""
    path = Path(name).expanduser()
    if not path.exists():
        return Path(kept_as(name, roots)[0].directory)
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == REPORTS else path.parent


def is_of_identity(path: Path) -> bool:
    """Return whether this is the directory of an identity, or one like it."""
    try:
        names = [each.name for each in path.iterdir()]
    except OSError:
        return False
    return IDENTITY_NAME in names or any(map(parse_table_name, names)) or (
        len(path.name) == inventory.DIGITS and bool(_DIGITS.fullmatch(path.name))
    )  # fmt: skip


def tables(name: str, roots: Sequence[Root]) -> list[Path]:
    """Return the tables that the user names: one, those of a directory, those of an identity."""
    path = Path(name).expanduser()
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if parse_table_name(each.name))
        return [path / each for each in names]
    if path.exists():
        return [path]
    found = kept_as(name, roots)
    return [Path(kept.directory, each) for kept in found for each in kept.tables]


def file(name: str, roots: Sequence[Root]) -> Path:
    """Return one file: itself, or the first table of a directory or of an identity.

    Raises:
        CommandError: there is no table there.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return path
    found = tables(name, roots)
    if not found:
        raise CommandError(f"{name}: no table there")
    return found[0]


def receipt(name: str, roots: Sequence[Root], limit: int) -> Path:
    """Return a receipt: itself, or the newest that can be read of an identity."""
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return path
    if path.is_dir():
        return receipts.newest(path.glob(f"{REPORTS}/*.json"), limit, of=f"in {path}")
    found = kept_as(name, roots)
    paths = [each for kept in found for each in receipts.receipts_of(kept)]
    return receipts.newest(paths, limit, of=f"of identity {name}")
