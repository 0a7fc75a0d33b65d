# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin pack`: tables into one file or one image that travels, with a digest to pin it by.

Owns what goes in: tables that hold (`verify`), their manifests and identities; no receipts, nothing
that was set aside. Packed twice, the bytes are the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from warmup_plugin.cache import image, image_layout
from warmup_plugin.cache.archive import ArchiveError, Packed, render
from warmup_plugin.cli import archive, inventory, named, output, places
from warmup_plugin.cli.commands import verify
from warmup_plugin.cli.output import CommandError, note
from warmup_plugin.settings import Settings

HELP = "put tables into one file or one OCI image, to take elsewhere or to bake in"
DESCRIPTION = """\
Put tables, manifests and identities into one file: all that is kept, or the
identities named by first digits. The same tables give the same bytes, so the
printed digest can be pinned. A table that fails `verify` is refused, or left
out with --skip-faulty. With -o - the archive goes to standard output. With
--oci it is an image in OCI's layout, in a folder of its own; `push` puts such
an image into a registry."""
EXAMPLES = """\
examples:
  warmup-plugin pack -o tables.tar                all tables
  warmup-plugin pack ed16c9 -o tables.tar         one identity
  warmup-plugin pack -o - | ssh host warmup-plugin unpack -
  warmup-plugin pack --arch sm100 --version 0.7.2.post1 -o b200.tar
  warmup-plugin pack --oci ./tables-image         an image, named latest there
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("identity", metavar="HEX", nargs="*", help="first digits of identities")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="the file to write, - for standard output"
    )
    form.add_argument(
        "--oci", metavar="DIR", type=Path, help="write an OCI image, to a folder that is not there"
    )
    add_filters(parser)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Declare which tables are meant, where they lie, and how it is said."""
    parser.add_argument(
        "--skip-faulty", action="store_true", help="leave out tables that fail `verify`"
    )
    parser.add_argument("--version", metavar="V", help="only this FlashInfer's")
    parser.add_argument("--arch", metavar="A", help="only this architecture's")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, identity: list[str], output: Path | None, oci: Path | None, skip_faulty: bool,
    version: str | None, arch: str | None, root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Check, pack and print the digest."""
    is_stream = str(output) == "-"
    if is_stream and (json or sys.stdout.isatty()):
        what = "--json goes there too" if json else "it is a terminal"
        message = f"-o - writes the archive to standard output: {what}"
        raise CommandError(message, code=CommandError.USAGE)
    settings = Settings.from_env()
    roots = places.find(root, engine_root, settings, os.environ)
    files = gathered(identity, roots, settings, version, arch, skip_faulty=skip_faulty)
    if output is None:
        assert oci is not None, "argparse asks for one of the two"
        whole = as_image(files, oci, settings.table_bytes)
        tell_image("layout", str(oci), whole, files, as_json=json)
        return 0
    data = render(files)
    if is_stream:
        sys.stdout.buffer.write(data)
    else:
        archive.write_whole(output, data)
    tell(output, data, files, as_json=json, err=is_stream)
    return 0


def gathered(
    names: list[str], roots: list[places.Root], settings: Settings, version: str | None,
    arch: str | None, *, skip_faulty: bool,
) -> list[Packed]:  # fmt: skip
    """Return the files to pack, of tables that hold.

    Raises:
        CommandError: there are none, or a table does not hold and is not to be left out.
    """
    found = chosen(names, roots, version, arch)
    whole = [kept for kept in found if holds(kept, settings.table_bytes, skip_faulty=skip_faulty)]
    if not whole:
        raise CommandError("there is no table to pack that holds")
    return list(archive.files_of(whole))


def as_image(files: list[Packed], folder: Path, limit: int) -> image.Image:
    """Write the image of these files as a layout, and return it.

    Raises:
        CommandError: it is too large, or the folder does not take it.
    """
    try:
        whole = image.render(files, limit)
        image_layout.write(folder, whole)
    except ArchiveError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{error.filename or folder}: {error.strerror}") from None
    return whole


def chosen(
    names: list[str], roots: list[places.Root], version: str | None, arch: str | None
) -> list[inventory.Kept]:
    """Return the identities to pack; of one that is in several roots, the first."""
    if names:
        found = [k for name in names for k in named.kept_as(name, roots, version, arch)]
    else:
        found = [
            kept
            for kept in inventory.walk(roots)
            if version in (None, kept.version) and arch in (None, kept.arch)
        ]
    chosen: dict[tuple[str, str, str], inventory.Kept] = {}
    for kept in found:
        if kept.tables:
            chosen.setdefault((kept.version, kept.arch, kept.identity), kept)
    if not chosen:
        raise CommandError("there is no table to pack")
    return list(chosen.values())


def holds(kept: inventory.Kept, limit: int, *, skip_faulty: bool) -> bool:
    """Return whether the tables of an identity hold; a note says why it is left out.

    Raises:
        CommandError: they do not, and nothing says to leave them out.
    """
    for name in kept.tables:
        found = verify.check(Path(kept.directory, name), limit)
        if found.faults:
            fault = f"{found.path}: {found.faults[0]}"
            if not skip_faulty:
                hint = "name the other identities, or leave it out with --skip-faulty"
                raise CommandError(f"{fault}; nothing is packed: {hint}")
            note(f"{fault}; left out")
            return False
    return True


def tell(path: Path, data: bytes, files: list[Packed], *, as_json: bool, err: bool) -> None:
    """Print what is in an archive, and its digest."""
    digest = archive.digest_of(data)
    said = {"file": str(path), "bytes": len(data), "digest": digest}
    _tell(said, str(path), digest, files, as_json=as_json, err=err)


def tell_image(
    kind: str, place: str, whole: image.Image, files: list[Packed], *, as_json: bool
) -> None:
    """Print what is in an image, and the digest by which it is pinned. ``kind``: of its place."""
    digest = whole.manifest.digest
    said = {kind: place, "bytes": len(whole.layer.data), "digest": digest}
    _tell(said, place, digest, files, as_json=as_json, err=False)


def _tell(
    said: Mapping[str, object], place: str, digest: str, files: list[Packed], *, as_json: bool,
    err: bool,
) -> None:  # fmt: skip
    identities = archive.summary(files)
    if as_json:
        output.print_json({"schema": 1, **said, "identities": identities})
        return
    out = output.console(err=err)
    if not err:
        out.print(output.words(place, "bold"), soft_wrap=True)
    rows = [(row["identity"][: output.SHORT], row["flashinfer"], row["arch"],
             output.plural(len(row["files"]), "file")) for row in identities]  # fmt: skip
    output.print_rows(out, rows)
    out.print(output.words(f"  {digest}"), soft_wrap=True)
