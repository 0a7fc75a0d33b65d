# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin pull`: tables out of an image in a registry, into a cache root.

Owns the order: the image is fetched whole and held against its digests, then all that `unpack` does
with an archive is done with it. Nothing is written to the root before all of it is checked.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from warmup_plugin.cli import archive, places, registry
from warmup_plugin.cli.commands import unpack
from warmup_plugin.cli.output import CommandError
from warmup_plugin.settings import Settings

HELP = "take tables out of an image in a registry, all checked, into a cache root"
DESCRIPTION = """\
Take tables out of an image that `push` has put into a registry, into the cache
root where the next start will look, as `unpack` does. An image named by its
digest is that one or none. The credentials are those of `docker login` or
`skopeo login`, or of the files that DOCKER_CONFIG and REGISTRY_AUTH_FILE name.
Needs oras: pip install 'warmup-plugin[oci]'."""
EXAMPLES = """\
examples:
  warmup-plugin pull oci://registry.example/team/tables:b200
  warmup-plugin pull oci://registry.example/team/tables:b200 --root /opt/tables
  warmup-plugin pull oci://localhost:5000/tables:v1 --plain-http --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    registry.add_arguments(parser)
    unpack.add_ways(parser)


def run(
    *, reference: str, limit: float, plain_http: bool, replace: bool, dry_run: bool,
    root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Fetch, check everything, then put it in place."""
    place = registry.parsed(reference, to_push=False)
    settings = Settings.from_env()
    target = places.target(places.find(root, engine_root, settings, os.environ))
    with tempfile.TemporaryDirectory(prefix="warmup-pull-") as folder:
        layout = Path(folder, "image")
        found = registry.ask("pull", place, layout, limit=limit, is_plain=plain_http,
                             table_bytes=settings.table_bytes)  # fmt: skip
        try:
            files = archive.read(layout, settings.table_bytes, found["digest"])
        except CommandError as error:
            raise CommandError(str(error).replace(str(layout), str(place))) from None
    said = {"reference": str(place), "digest": str(found["digest"])}
    unpack.put(files, target, settings, said, replace=replace, dry_run=dry_run, as_json=json)
    return 0
