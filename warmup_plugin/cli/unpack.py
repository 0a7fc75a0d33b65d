# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin unpack`: tables out of such a file, into a cache root.

Owns the order: all of it is read and checked, put aside whole, checked again as a start would, and
only then does an identity's directory appear, in one rename. What is there already stays: the same
bytes are left alone, another table of the same identity is merged with, as by a start.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from warmup_plugin.cli import archive, output, tree, verify
from warmup_plugin.cli.output import CommandError
from warmup_plugin.files import is_inside, write_files
from warmup_plugin.locks import locked
from warmup_plugin.manifest import Manifest, parse_manifest
from warmup_plugin.paths import IDENTITY_NAME, LAYOUT, manifest_name, parse_table_name
from warmup_plugin.settings import Settings
from warmup_plugin.store import NotPublished, Store
from warmup_plugin.table import Table, parse_table

HELP = "take tables out of such a file, all checked, into a cache root"
DESCRIPTION = """\
Take tables out of a file that `pack` has written. Everything is checked before
anything is written, and each identity appears whole. What is there already is
kept: the same bytes are left alone, other tables of an identity merged with."""
EXAMPLES = """\
examples:
  warmup-plugin unpack tables.tar
  warmup-plugin unpack tables.tar --root /opt/tables --digest sha256:4be1...
  warmup-plugin unpack tables.tar --dry-run       check only
"""

Became = Literal["new", "the same", "merged"]


@dataclass(frozen=True)
class Placed:
    """One identity of the archive: where it lies and what became of it."""

    identity: str
    directory: str
    became: Became


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="an archive written by pack")
    parser.add_argument("--digest", metavar="SHA256", default="", help="refuse any other file")
    parser.add_argument("--dry-run", action="store_true", help="check, write nothing")
    tree.add_root_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, file: Path, digest: str, dry_run: bool, root: Path | None, engine_root: Path | None,
    json: bool,
) -> int:  # fmt: skip
    """Check everything, then put it in place."""
    settings = Settings.from_env()
    target = tree.find_roots(root, engine_root, settings, os.environ)[0]
    found = archive.read(file, settings.table_bytes, digest)
    try:
        placed = unpack(found, target, settings, dry_run=dry_run)
    except OSError as error:
        raise CommandError(f"{error.filename or target.path}: {error.strerror}") from None
    if json:
        rows = [asdict(each) for each in placed]
        output.print_json({"schema": 1, "dry_run": dry_run, "identities": rows})
        return 0
    out = output.console()
    for each in placed:
        output.print_path(out, Path(each.directory))
        output.print_rows(out, [(f"would be {each.became}" if dry_run else each.became,)])
    return 0


def unpack(
    files: Iterable[archive.Packed], target: tree.Root, settings: Settings, *, dry_run: bool
) -> list[Placed]:
    """Put an archive's files below a root.

    Raises:
        CommandError: a table would not be used by a start; nothing is written then.
        OSError: the disk refuses.
    """
    files = list(files)
    parent = Path(tempfile.gettempdir()) if dry_run else target.path
    stage = parent / f".unpack.{secrets.token_hex(8)}"
    try:
        for file in files:
            path = stage / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
        _check(stage, files, settings.table_bytes)
        homes = {Path(file.path).parent: _home(target, file) for file in files}
        for home in homes.values():
            if not is_inside(home, target.path):
                raise CommandError(f"{home}: a link that leads out of {target.path}")
        return [
            Placed(home.name, str(home), _place(stage / staged, home, settings, dry_run=dry_run))
            for staged, home in sorted(homes.items())
        ]
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _home(target: tree.Root, file: archive.Packed) -> Path:
    if target.kind == "override":
        return target.path / file.identity
    return target.path / LAYOUT / file.version / file.arch / file.identity


def _check(stage: Path, files: list[archive.Packed], limit: int) -> None:
    named = {file.path for file in files}
    for file in files:
        home, source = Path(file.path).parent, parse_table_name(file.name)
        if f"{home}/{IDENTITY_NAME}" not in named:
            raise CommandError(f"{home}: without its {IDENTITY_NAME}; nothing is unpacked")
        if source is not None and (found := verify.check(stage / file.path, limit)).faults:
            raise CommandError(f"{file.path}: {found.faults[0]}; nothing is unpacked")


def _place(staged: Path, home: Path, settings: Settings, *, dry_run: bool) -> Became:
    sources = sorted(filter(None, (parse_table_name(p.name) for p in staged.iterdir())))
    names = [name for p in staged.iterdir() if (name := p.name)]
    if all(_same(staged / name, home / name) for name in names):
        return "the same"
    if not home.exists():
        if not dry_run:
            home.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(home)
        return "new"
    theirs = [path for path in home.iterdir() if parse_table_name(path.name)]
    if dry_run:
        return "merged" if theirs else "new"
    for source in sources:
        _add(staged, home, source, settings)
    return "merged" if theirs else "new"


def _add(staged: Path, home: Path, source: tuple[int, int, int], settings: Settings) -> None:
    """Add one table to a directory that is there."""
    table = f"rank_tp{source[0]}_pp{source[1]}_dp{source[2]}.json"
    names = (table, manifest_name(*source))
    if all(_same(staged / name, home / name) for name in names):
        return
    if not (home / table).exists():
        with locked(home):
            if not (home / IDENTITY_NAME).exists():
                write_files({home / IDENTITY_NAME: (staged / IDENTITY_NAME).read_bytes()})
            write_files({home / name: (staged / name).read_bytes() for name in names})
        return
    limit = settings.table_bytes
    body = parse_table((staged / table).read_bytes(), limit=limit)
    manifest = parse_manifest((staged / names[1]).read_bytes(), limit=limit)
    assert isinstance(body, Table), "checked before"
    assert isinstance(manifest, Manifest), "checked before"
    done = Store(home, Settings(mode="on", table_bytes=limit)).publish(
        source, body, manifest, (staged / IDENTITY_NAME).read_bytes()
    )
    if isinstance(done, NotPublished):
        raise CommandError(f"{home}: {done.reason}")


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
