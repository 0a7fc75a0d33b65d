# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin unpack`: tables out of such a file, into a cache root.

Owns the order: all of it is read and checked, put aside whole, checked again as a start would, and
only then written, each table with its manifest last. What is there already stays: the same bytes
are left alone, another table of the same identity takes the tasks that it lacks.
"""

from __future__ import annotations

import argparse
import errno
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec

from warmup_plugin.cache.archive import Packed
from warmup_plugin.cache.cached_table import CachedTable, NotPublished, Source
from warmup_plugin.cache.files import is_inside, make_directory, write_files
from warmup_plugin.cache.locks import locked
from warmup_plugin.cache.manifest import Manifest, parse_manifest
from warmup_plugin.cache.merge import give_way, merge
from warmup_plugin.cache.paths import (
    IDENTITY_NAME,
    LAYOUT,
    manifest_name,
    parse_table_name,
    table_name,
)
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Table, parse_table
from warmup_plugin.cli import archive, output, places
from warmup_plugin.cli.commands import verify
from warmup_plugin.cli.load import read_table
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.places import Root
from warmup_plugin.settings import Settings

HELP = "take tables out of such a file, all checked, into a cache root"
DESCRIPTION = """\
Take tables out of a file that `pack` has written, into the cache root where the
next start will look. Everything is checked before anything is written. What is
there already is kept: of another table of an identity only the tasks are taken
that it lacks, or all with --replace. FILE may be - for standard input, or the
folder of an image as `pack --oci` and skopeo write it."""
EXAMPLES = """\
examples:
  warmup-plugin unpack tables.tar
  warmup-plugin unpack tables.tar --root /opt/tables --digest sha256:4be1...
  warmup-plugin unpack -                          from standard input
  warmup-plugin unpack ./tables-image             of pack --oci
  warmup-plugin unpack tables.tar --dry-run       check only
"""

Became = Literal["new", "the same", "merged"]
#: What a file system says that has no rename.
NO_RENAME = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)


@dataclass(frozen=True)
class Placed:
    """One identity of the archive: where it lies and what became of it."""

    identity: str
    directory: str
    became: Became
    kept: int = 0

    def words(self) -> str:
        """Return what became of it; ``kept``: tasks that both have and answer otherwise."""
        if not self.kept:
            return self.became
        tasks = output.plural(self.kept, "task")
        return f"{self.became}; in {tasks} what was there is kept (--replace takes the archive's)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="an archive or an image written by pack"
    )
    parser.add_argument("--digest", metavar="SHA256", default="", help="refuse any other file")
    add_ways(parser)


def add_ways(parser: argparse.ArgumentParser) -> None:
    """Declare how, and where, tables are put in place."""
    parser.add_argument(
        "--replace", action="store_true", help="where tables differ, take the archive's winners"
    )
    parser.add_argument("--dry-run", action="store_true", help="check, write nothing")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, file: Path, digest: str, replace: bool, dry_run: bool, root: Path | None,
    engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Check everything, then put it in place."""
    settings = Settings.from_env()
    target = places.target(places.find(root, engine_root, settings, os.environ))
    found = archive.read(file, settings.table_bytes, digest)
    put(found, target, settings, {}, replace=replace, dry_run=dry_run, as_json=json)
    return 0


def put(
    found: list[Packed], target: Root, settings: Settings, said: Mapping[str, str], *,
    replace: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put an archive's files in place and print what became of them, after what is ``said``."""
    try:
        placed = unpack(found, target, settings, replace=replace, dry_run=dry_run)
    except OSError as error:
        raise CommandError(f"{error.filename or target.path}: {error.strerror}") from None
    if as_json:
        rows = [asdict(each) for each in placed]
        output.print_json(
            {"schema": 1, **said, "dry_run": dry_run, "root": str(target.path),
             "source": target.source, "identities": rows}
        )  # fmt: skip
        return
    out = output.console()
    for each in placed:
        output.print_path(out, Path(each.directory))
        output.print_rows(out, [(f"would be {each.words()}" if dry_run else each.words(),)])


def unpack(
    files: Iterable[Packed], target: Root, settings: Settings, *, replace: bool,
    dry_run: bool,
) -> list[Placed]:  # fmt: skip
    """Put an archive's files below a root.

    Raises:
        CommandError: a table would not be used by a start; nothing is written then.
        OSError: the disk refuses.
    """
    files = list(files)
    with tempfile.TemporaryDirectory(prefix="warmup-unpack-") as folder:
        stage = Path(folder)
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
            _place(stage / staged, home, settings, replace=replace, dry_run=dry_run)
            for staged, home in sorted(homes.items())
        ]


def _home(target: Root, file: Packed) -> Path:
    if target.kind == "override":
        return target.path / file.identity
    return target.path / LAYOUT / file.version / file.arch / file.identity


def _check(stage: Path, files: list[Packed], limit: int) -> None:
    named = {file.path for file in files}
    for file in files:
        home, source = Path(file.path).parent, parse_table_name(file.name)
        if f"{home}/{IDENTITY_NAME}" not in named:
            raise CommandError(f"{home}: without its {IDENTITY_NAME}; nothing is unpacked")
        if source is not None and (found := verify.check(stage / file.path, limit)).faults:
            raise CommandError(f"{file.path}: {found.faults[0]}; nothing is unpacked")


def _place(staged: Path, home: Path, settings: Settings, *, replace: bool, dry_run: bool) -> Placed:
    """Put one identity in place: nothing of it counts before its manifests, which come last."""
    names = [path.name for path in staged.iterdir()]
    if all(_same(staged / name, home / name) for name in names):
        return Placed(home.name, str(home), "the same")
    there, kept = _there(home, settings.table_bytes), 0
    if not dry_run:
        make_directory(home)
        _put(home, {IDENTITY_NAME: (staged / IDENTITY_NAME).read_bytes()})
    for source in sorted(filter(None, map(parse_table_name, names))):
        if there is not None:
            kept += _add(staged, home, source, there, settings, replace=replace, dry_run=dry_run)
        elif not dry_run:
            pair = (table_name(*source), manifest_name(*source))
            _put(home, {name: (staged / name).read_bytes() for name in pair})
    return Placed(home.name, str(home), "new" if there is None else "merged", kept)


def _add(
    staged: Path, home: Path, source: Source, there: CachedTable, settings: Settings,
    *, replace: bool, dry_run: bool,
) -> int:  # fmt: skip
    """Add one table to those that are there; return how many of its tasks gave way to them."""
    names = (table_name(*source), manifest_name(*source))
    if all(_same(staged / name, home / name) for name in names):
        return 0
    limit = settings.table_bytes
    body = parse_table((staged / names[0]).read_bytes(), limit=limit)
    manifest = parse_manifest((staged / names[1]).read_bytes(), limit=limit)
    assert isinstance(body, Table), "checked before"
    assert isinstance(manifest, Manifest), "checked before"
    part = CachedTable(body, manifest, source)
    lesser = part if replace else give_way(part, there.table.entries)
    new = lesser.manifest or manifest
    gave_way = manifest.tasks.keys() - new.tasks.keys()
    if not dry_run:
        known = there.manifest.tasks.keys() if there.manifest else frozenset[str]()
        new = msgspec.structs.replace(
            new, complete=manifest.complete and gave_way <= known,
            generation=max(manifest.generation, there.manifest.generation if there.manifest else 0),
        )  # fmt: skip
        done = Store(home, Settings(mode="on", table_bytes=limit)).publish(
            source, lesser.table, new, (staged / IDENTITY_NAME).read_bytes()
        )
        if isinstance(done, NotPublished):
            raise CommandError(f"{home}: {done.reason}")
    return len(gave_way)


def _there(home: Path, limit: int) -> CachedTable | None:
    """Return the union of the usable tables that are there, None where there is no table."""
    if not home.is_dir():
        return None
    sources = sorted(filter(None, (parse_table_name(path.name) for path in home.iterdir())))
    if not sources:
        return None
    found = ((source, read_table(home / table_name(*source), limit)) for source in sources)
    return merge(
        [
            CachedTable(
                file.table, file.manifest if isinstance(file.manifest, Manifest) else None, source
            )
            for source, file in found
            if isinstance(file.table, Table) and not file.has_fault
        ]
    )


def _put(home: Path, files: Mapping[str, bytes]) -> None:
    """Put files in place, in this order, each whole where the file system can rename.

    Where it cannot (object stores mounted as folders) each is written under its own name.
    """
    paths = {home / name: data for name, data in files.items()}
    if all(path.exists() and path.read_bytes() == data for path, data in paths.items()):
        return
    with locked(home):
        try:
            write_files(paths)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            for path, data in paths.items():
                path.write_bytes(data)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
