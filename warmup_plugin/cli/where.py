# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin where`: the directory of a job's tables, and why it is that one.

Owns the question, not the answer: the path comes from `paths.resolve`, as in a warm-up. Reads
directories and files, changes none. Needs neither torch nor FlashInfer.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from warmup_plugin.cli import machine, output
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.reading import TableFile, factors_in_words, read_identity, read_table
from warmup_plugin.identity import Identity
from warmup_plugin.manifest import Manifest
from warmup_plugin.paths import IDENTITY_NAME, Component, Placement, parse_table_name, resolve
from warmup_plugin.settings import Settings
from warmup_plugin.table import Miss

HELP = "print where the tables lie, and where each part of the path is from"
DESCRIPTION = """\
Print the directory of a job's tables, each part of it with its source. Without an identity: the
directory above it, and the identities that have tables there. Nothing is changed."""
EXAMPLES = """\
examples:
  warmup-plugin where                                  what is there
  warmup-plugin where --identity 3fa9                  one identity, by its first digits
  warmup-plugin where --factors identity.json          the same, from the factors
  warmup-plugin where --version 0.7.2.post1 --arch sm100 --root /models/cache
                                                       as on a machine with that GPU
"""

_SOURCES = {"argument": "--root", "engine root": "--engine-root"}
_DIGITS = 64
_IDENTITY = re.compile(f"[0-9a-f]{{{_DIGITS}}}")


@dataclass(frozen=True)
class Found:
    """An identity that has a directory: what it stands for and the tables in it."""

    identity: str
    words: str
    tables: tuple[TableFile, ...]

    @property
    def num_entries(self) -> int:
        """Return the number of entries of the largest table: each node has its own copy."""
        counts = [len(t.table.entries) for t in self.tables if not isinstance(t.table, Miss)]
        return max(counts, default=0)

    @property
    def state(self) -> str:
        """Return how much the tables are worth, in a word."""
        if not self.tables:
            return "empty"
        if any(table.has_fault for table in self.tables):
            return "has faults"
        manifests = [t.manifest for t in self.tables if isinstance(t.manifest, Manifest)]
        if not manifests:
            return "no manifest"
        return "complete" if any(m.complete for m in manifests) else "incomplete"

    @property
    def changed(self) -> float:
        """Return when the newest table was written, unix seconds."""
        return max((_changed(table.path) for table in self.tables), default=0.0)


@dataclass(frozen=True)
class Whereabouts:
    """The answer. ``found``: the one identity that was asked for, or all that have a directory."""

    directory: Path
    components: tuple[Component, ...]
    identity: str
    exists: bool
    found: tuple[Found, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--identity", metavar="HEX", type=_hex, help="sha256 of the config factors, or its start"
    )
    which.add_argument(
        "--factors", metavar="FILE", type=Path, help="the config factors, as in an identity.json"
    )
    parser.add_argument("--version", metavar="V", help="FlashInfer's version (default: installed)")
    parser.add_argument("--arch", metavar="A", help="sm<digits> or cpu (default: this machine's)")
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="cache root, as given to warm_up(root=...)"
    )
    parser.add_argument(
        "--engine-root", metavar="DIR", type=Path, help="the engine's own cache root"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _hex(text: str) -> str:
    if not re.fullmatch(f"[0-9a-f]{{1,{_DIGITS}}}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be 1 to {_DIGITS} hex digits")
    return text.lower()


def run(*, json: bool, **question: Any) -> int:
    """Answer and print."""
    settings = Settings.from_env()
    answer = whereabouts(settings=settings, environ=os.environ, **question)
    if json:
        output.print_json(_document(answer))
    else:
        _print(answer)
    return 0


def whereabouts(
    *,
    identity: str | None,
    factors: Path | None,
    version: str | None,
    arch: str | None,
    root: Path | None,
    engine_root: Path | None,
    settings: Settings,
    environ: Mapping[str, str],
) -> Whereabouts:
    """Return where tables lie.

    Raises:
        CommandError: the identity cannot be had, or there is no FlashInfer to ask for its version.
        PlacementError: a part is not what its place in the path takes.
    """
    is_plain = root is None and settings.override_dir is not None  # no version, no arch in the path
    versioned = Component("version", "0", "") if is_plain else _version(version)
    on_arch = Component("arch", "cpu", "") if is_plain else _arch(arch, environ)
    limit = settings.table_bytes

    def placement(digest: str) -> Placement:
        return resolve(
            settings, digest, version=versioned.value, arch=on_arch.value, environ=environ,
            argument=_absolute(root), engine_root=_absolute(engine_root),
        )  # fmt: skip

    above = placement("0" * _DIGITS)
    shelf = above.directory.parent
    digest = _digest(identity, factors, shelf, limit)
    place = placement(digest) if digest else Placement(shelf, above.components[:-1])
    names = [digest] if digest else _identities(shelf)
    return Whereabouts(
        directory=place.directory,
        components=tuple(_sourced(place.components, versioned, on_arch)),
        identity=digest,
        exists=place.directory.is_dir(),
        found=tuple(_look(shelf / name, limit) for name in names if (shelf / name).is_dir()),
    )


def _version(given: str | None) -> Component:
    found = machine.flashinfer_version() if given is None else Component("", given, "--version")
    if found is None:
        raise CommandError("FlashInfer is not installed here: say which with --version")
    return found


def _arch(given: str | None, environ: Mapping[str, str]) -> Component:
    return machine.architecture(environ) if given is None else Component("", given, "--arch")


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _sourced(
    components: tuple[Component, ...], version: Component, arch: Component
) -> Iterator[Component]:
    """Yield the components with the sources that hold here."""
    here = {"version": version.source, "arch": arch.source}
    for part in components:
        source = here.get(part.name, _SOURCES.get(part.source, part.source))
        yield replace(part, source=source)


def _digest(identity: str | None, factors: Path | None, shelf: Path, limit: int) -> str:
    """Return the identity that was asked for, empty where none was."""
    if factors is not None:
        read = read_identity(factors, limit)
        if isinstance(read, Identity):
            return read.digest
        raise CommandError(f"{factors}: {read.reason}")
    if identity is None or len(identity) == _DIGITS:
        return identity or ""
    matches = [name for name in _identities(shelf) if name.startswith(identity)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise CommandError(f"no identity in {shelf} begins with {identity}")
    raise CommandError(f"several identities begin with {identity}: {', '.join(matches)}")


def _identities(shelf: Path) -> list[str]:
    try:
        return sorted(path.name for path in shelf.iterdir() if _IDENTITY.fullmatch(path.name))
    except OSError:
        return []


def _look(directory: Path, limit: int) -> Found:
    identity = read_identity(directory / IDENTITY_NAME, limit)
    known = isinstance(identity, Identity)
    names = sorted(path.name for path in directory.iterdir() if parse_table_name(path.name))
    return Found(
        identity=directory.name,
        words=factors_in_words(identity.factors) if known else f"? ({identity.reason})",
        tables=tuple(read_table(directory / name, limit) for name in names),
    )


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _document(answer: Whereabouts) -> dict[str, Any]:
    return {
        "directory": str(answer.directory),
        "exists": answer.exists,
        "identity": answer.identity or None,
        "components": [asdict(part) for part in answer.components],
        "identities": [
            {
                "identity": found.identity,
                "about": found.words,
                "tables": [str(table.path) for table in found.tables],
                "entries": found.num_entries,
                "state": found.state,
                "changed": found.changed,
            }
            for found in answer.found
        ],
    }


def _print(answer: Whereabouts) -> None:
    out = output.console()
    out.print(str(answer.directory), soft_wrap=True, style="bold")
    out.print()
    rows = [(part.name, part.value, part.source) for part in answer.components]
    output.print_rows(out, rows, header=("part", "value", "from"))
    out.print()
    if answer.identity:
        _print_identity(answer)
    elif answer.found:
        header = ("identity", "of", "entries", "state", "written")
        output.print_rows(out, map(_row, answer.found), header=header, right="entries")
    else:
        out.print("Nothing is kept there yet." if answer.exists else "It does not exist yet.")


def _row(found: Found) -> tuple[str, ...]:
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.changed))
    entries = str(found.num_entries)
    return found.identity[: output.SHORT], found.words, entries, found.state, written


def _print_identity(answer: Whereabouts) -> None:
    out = output.console()
    if not answer.exists:
        out.print("It does not exist yet.")
        return
    (found,) = answer.found
    out.print(f"{found.words}: {found.state}")
    tables = [(t.path.name, _of_table(t)) for t in found.tables]
    output.print_rows(out, tables)


def _of_table(table: TableFile) -> str:
    if isinstance(table.table, Miss):
        return f"cannot be used: {table.table.reason}"
    entries = len(table.table.entries)
    return f"{entries} {'entry' if entries == 1 else 'entries'}, {output.size(table.bytes)}"
