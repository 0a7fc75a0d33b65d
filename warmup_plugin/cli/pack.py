# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin pack`: tables into one file that travels, with a digest to pin it by.

Owns what goes in: tables that hold (`verify`), their manifests and identities; no receipts, nothing
that was set aside. Packed twice, the bytes are the same.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from warmup_plugin.cli import archive, output, tree, verify
from warmup_plugin.cli.output import CommandError
from warmup_plugin.settings import Settings

HELP = "put tables into one file, to take elsewhere or to bake into an image"
DESCRIPTION = """\
Put tables, manifests and identities into one file: all that is kept, or the
identities named by first digits. The same tables give the same bytes, so the
printed digest can be pinned. A table that does not hold is refused."""
EXAMPLES = """\
examples:
  warmup-plugin pack -o tables.tar                all tables
  warmup-plugin pack ed16c9 -o tables.tar         one identity
  warmup-plugin pack --arch sm100 --version 0.7.2.post1 -o b200.tar
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("identity", metavar="HEX", nargs="*", help="first digits of identities")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="the file to write"
    )
    parser.add_argument("--version", metavar="V", help="only this FlashInfer's")
    parser.add_argument("--arch", metavar="A", help="only this architecture's")
    tree.add_root_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, identity: list[str], output: Path, version: str | None, arch: str | None,
    root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Check, pack and print the digest."""
    settings = Settings.from_env()
    roots = tree.find_roots(root, engine_root, settings, os.environ)
    found = _chosen(identity, roots, version, arch)
    for kept in found:
        _refuse_faults(kept, settings.table_bytes)
    files = list(archive.files_of(found))
    data = archive.render(files)
    archive.write_whole(output, data)
    _say(output, data, files, as_json=json)
    return 0


def _chosen(
    names: list[str], roots: list[tree.Root], version: str | None, arch: str | None
) -> list[tree.Kept]:
    """Return the identities to pack; of one that is in several roots, the first."""
    if names:
        found = [k for name in names for k in tree.matching(roots, name, version, arch)]
    else:
        found = [
            kept
            for kept in tree.walk(roots)
            if version in (None, kept.version) and arch in (None, kept.arch)
        ]
    chosen: dict[tuple[str, str, str], tree.Kept] = {}
    for kept in found:
        if kept.tables:
            chosen.setdefault((kept.version, kept.arch, kept.identity), kept)
    if not chosen:
        raise CommandError("there is no table to pack")
    return list(chosen.values())


def _refuse_faults(kept: tree.Kept, limit: int) -> None:
    for name in kept.tables:
        found = verify.check(Path(kept.directory, name), limit)
        if found.faults:
            raise CommandError(f"{found.path}: {found.faults[0]}; nothing is packed")


def _say(path: Path, data: bytes, files: list[archive.Packed], *, as_json: bool) -> None:
    digest, identities = archive.digest_of(data), archive.summary(files)
    if as_json:
        output.print_json(
            {"schema": 1, "file": str(path), "bytes": len(data), "digest": digest,
             "identities": identities}
        )  # fmt: skip
        return
    out = output.console()
    output.print_path(out, path)
    rows = [(row["identity"][: output.SHORT], row["flashinfer"], row["arch"],
             output.plural(len(row["files"]), "file")) for row in identities]  # fmt: skip
    output.print_rows(out, rows)
    out.print(output.words(f"  {digest}"), soft_wrap=True)
