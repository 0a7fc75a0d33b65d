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
from warmup_plugin.cli.reading import TableFile, read_identity
from warmup_plugin.cli.shelf import DIGITS, Found, identities_on, look
from warmup_plugin.errors import PlacementError
from warmup_plugin.identity import Identity
from warmup_plugin.paths import Component, Placement, resolve
from warmup_plugin.settings import Settings
from warmup_plugin.table import Miss

HELP = "print where the tables lie, and where each part of the path is from"
DESCRIPTION = """\
Print the directory of a job's tables, each part of the path with its source.
Without an identity: the directory above it, and the identities that have tables
there. Changes nothing; needs neither torch nor FlashInfer."""
EXAMPLES = """\
examples:
  warmup-plugin where                             what is there
  warmup-plugin where --identity 3fa9             one of them, by first digits
  warmup-plugin where --factors identity.json     by the factors themselves
  warmup-plugin where --root /models/cache --version 0.7.2.post1 --arch sm100
                                                  as on a machine with that GPU
"""

_SOURCES = {"argument": "--root", "engine root": "--engine-root"}


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
    if not re.fullmatch(f"[0-9a-f]{{1,{DIGITS}}}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be 1 to {DIGITS} hex digits")
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
        CommandError: the identity cannot be had, there is no FlashInfer to ask for its version, or
            a part is not what its place in the path takes.
    """
    is_plain = root is None and settings.override_dir is not None  # no version, no arch in the path
    versioned = Component("version", "0", "") if is_plain else _version(version)
    on_arch = Component("arch", "cpu", "") if is_plain else _arch(arch, environ)
    limit = settings.table_bytes

    def placement(digest: str) -> Placement:
        try:
            return resolve(
                settings, digest, version=versioned.value, arch=on_arch.value, environ=environ,
                argument=_absolute(root), engine_root=_absolute(engine_root),
            )  # fmt: skip
        except PlacementError as error:
            is_usage = error.name in ("version", "arch")
            code = CommandError.USAGE if is_usage else CommandError.FAILED
            raise CommandError(str(error), code=code) from None

    above = placement("0" * DIGITS)
    shelf = above.directory.parent
    digest = _digest(identity, factors, shelf, limit)
    place = placement(digest) if digest else Placement(shelf, above.components[:-1])
    names = [digest] if digest else identities_on(shelf)
    return Whereabouts(
        directory=place.directory,
        components=tuple(_sourced(place.components, versioned, on_arch)),
        identity=digest,
        exists=place.directory.is_dir(),
        found=tuple(look(shelf / name, limit) for name in names if (shelf / name).is_dir()),
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
    if identity is None or len(identity) == DIGITS:
        return identity or ""
    matches = [name for name in identities_on(shelf) if name.startswith(identity)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise CommandError(f"no identity in {shelf} begins with {identity}")
    raise CommandError(f"several identities begin with {identity}: {', '.join(matches)}")


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
    output.print_path(out, answer.directory)
    rows = [
        (part.name, _short(part), output.words(part.source, "dim")) for part in answer.components
    ]
    output.print_rows(out, rows)
    out.print()
    if answer.identity:
        _print_identity(answer)
    elif answer.found:
        header = ("identity", "entries", "state", "written", "of")
        output.print_rows(out, map(_row, answer.found), header=header, right=("entries",))
    else:
        out.print(f"  {'Nothing is kept there' if answer.exists else 'It does not exist'} yet.")


def _short(part: Component) -> str:
    """Return the value; the path above has the whole of it."""
    return f"{part.value[: output.SHORT]}..." if part.name == "identity" else part.value


def _row(found: Found) -> tuple[str, ...]:
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.changed))
    entries = str(found.num_entries)
    return found.identity[: output.SHORT], entries, found.state, written, found.words


def _print_identity(answer: Whereabouts) -> None:
    out = output.console()
    if not answer.exists:
        out.print("  It does not exist yet.")
        return
    (found,) = answer.found
    output.print_rows(out, [(f"{found.words}: {found.state}",)])
    output.print_rows(out, [(t.path.name, _of_table(t)) for t in found.tables])


def _of_table(table: TableFile) -> str:
    if isinstance(table.table, Miss):
        return f"cannot be used: {table.table.reason}"
    entries = output.plural(len(table.table.entries), "entry", "entries")
    return f"{entries}, {output.size(table.bytes)}"
