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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from warmup_plugin.cache.paths import Component, Placement, resolve
from warmup_plugin.cli import environment, output, places
from warmup_plugin.cli.identity_summary import DIGITS, Found, identities_on, look
from warmup_plugin.cli.inventory import few
from warmup_plugin.cli.load import TableFile, read_identity
from warmup_plugin.cli.output import CommandError
from warmup_plugin.errors import PlacementError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.settings import Settings

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


@dataclass(frozen=True)
class Whereabouts:
    """The answer. ``found``: the one identity that was asked for, or all that have a directory.

    ``others``: further roots in which starts on this machine keep tables.
    """

    directory: Path
    components: tuple[Component, ...]
    identity: str
    exists: bool
    found: tuple[Found, ...]
    others: tuple[places.Root, ...] = ()


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
    places.add_arguments(parser)
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

    Of several roots it is the one that has the identity, else where the next start will look.

    Raises:
        CommandError: the identity cannot be had, there is no FlashInfer to ask for its version, or
            a part is not what its place in the path takes.
    """
    limit = settings.table_bytes
    found = [p for p in places.find(root, engine_root, settings, environ) if p.kind != "layer"]
    is_plain = found[0].kind == "override"  # no version, no arch in the path
    if is_plain and version is None and environment.flashinfer_version() is None:
        found = found[:1]
    versioned = Component("version", "0", "") if len(found) == is_plain else _version(version)
    on_arch = Component("arch", "cpu", "") if len(found) == is_plain else _arch(arch, environ)
    shelves = {place: _shelf(place, versioned, on_arch) for place in found}
    digest = _digest(identity, factors, shelves, limit)
    home = _home(shelves, digest)
    shelf = shelves[home]
    place = Placement(shelf.directory, shelf.components)
    if digest:
        part = Component("identity", digest, "sha256 of the config factors")
        place = Placement(shelf.directory / digest, (*shelf.components, part))
    names = [digest] if digest else identities_on(shelf.directory)
    folders = [shelf.directory / name for name in names]
    return Whereabouts(
        directory=place.directory,
        components=place.components,
        identity=digest,
        exists=place.directory.is_dir(),
        found=tuple(look(folder, limit) for folder in folders if folder.is_dir()),
        others=tuple(other for other in found if other != home and other.matters),
    )


def _shelf(place: places.Root, version: Component, arch: Component) -> Placement:
    """Return the directory of all identities below a root."""
    try:
        whole = resolve(
            Settings(override_dir=place.path if place.kind == "override" else None), "0" * DIGITS,
            version=version.value, arch=arch.value, environ={},
            argument=None if place.kind == "override" else place.path,
        )  # fmt: skip
    except PlacementError as error:
        is_usage = error.name in ("version", "arch")
        code = CommandError.USAGE if is_usage else CommandError.FAILED
        raise CommandError(str(error), code=code) from None
    here = {"version": version.source, "arch": arch.source, "root": place.source,
            "override": place.source}  # fmt: skip
    parts = tuple(
        msgspec.structs.replace(c, source=here.get(c.name, c.source)) for c in whole.components[:-1]
    )
    return Placement(whole.directory.parent, parts)


def _home(shelves: Mapping[places.Root, Placement], digest: str) -> places.Root:
    if digest:
        having = [each for each, shelf in shelves.items() if (shelf.directory / digest).is_dir()]
        if having:
            return having[0]
    return places.target(list(shelves))


def _version(given: str | None) -> Component:
    found = environment.flashinfer_version() if given is None else Component("", given, "--version")
    if found is None:
        raise CommandError("FlashInfer is not installed here: say which with --version")
    return found


def _arch(given: str | None, environ: Mapping[str, str]) -> Component:
    return environment.architecture(environ) if given is None else Component("", given, "--arch")


def _digest(
    identity: str | None,
    factors: Path | None,
    shelves: Mapping[places.Root, Placement],
    limit: int,
) -> str:
    """Return the identity that was asked for, empty where none was."""
    if factors is not None:
        read = read_identity(factors, limit)
        if isinstance(read, Identity):
            return read.digest
        raise CommandError(f"{factors}: {read.reason}")
    if identity is None or len(identity) == DIGITS:
        return identity or ""
    matches = sorted(
        {
            name
            for shelf in shelves.values()
            for name in identities_on(shelf.directory)
            if name.startswith(identity)
        }
    )
    if len(matches) == 1:
        return matches[0]
    if not matches:
        where = ", ".join(str(shelf.directory) for shelf in shelves.values())
        raise CommandError(f"no identity in {where} begins with {identity}")
    raise CommandError(f"several identities begin with {identity}: {few(matches)}")


def _document(answer: Whereabouts) -> dict[str, Any]:
    return {
        "schema": 1,
        "directory": str(answer.directory),
        "exists": answer.exists,
        "identity": answer.identity or None,
        "components": [msgspec.structs.asdict(part) for part in answer.components],
        "others": [{"path": str(each.path), "source": each.source} for each in answer.others],
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
    if not output.is_quiet():
        also = [("also", f"{each.path}  ({each.source})") for each in answer.others]
        output.print_rows(out, also)
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
