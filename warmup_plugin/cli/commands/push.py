# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin push`: tables as an image into a registry, as `pack --oci` would write it.

Owns what is said of it: the digest by which it is pinned, mounted and signed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from warmup_plugin.cli import places, registry
from warmup_plugin.cli.commands import pack
from warmup_plugin.settings import Settings

HELP = "put tables into a registry, as one OCI image"
DESCRIPTION = """\
Put tables into a registry as the image that `pack --oci` writes: all that is
kept, or the identities named by first digits. The same tables give the same
digest. The credentials are those of `docker login` or `skopeo login`, or of the
files that DOCKER_CONFIG and REGISTRY_AUTH_FILE name. Needs oras:
pip install 'warmup-plugin[oci]'."""
EXAMPLES = """\
examples:
  warmup-plugin push oci://registry.example/team/tables:b200
  warmup-plugin push oci://registry.example/team/tables:b200 ed16c9
  warmup-plugin push oci://localhost:5000/tables:v1 --plain-http
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    registry.add_arguments(parser)
    parser.add_argument("identity", metavar="HEX", nargs="*", help="first digits of identities")
    pack.add_filters(parser)


def run(
    *, reference: str, limit: float, plain_http: bool, identity: list[str], skip_faulty: bool,
    version: str | None, arch: str | None, root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Check, pack, push and print the digest."""
    place = registry.parsed(reference, to_push=True)
    settings = Settings.from_env()
    roots = places.find(root, engine_root, settings, os.environ)
    files = pack.gathered(identity, roots, settings, version, arch, skip_faulty=skip_faulty)
    with tempfile.TemporaryDirectory(prefix="warmup-push-") as folder:
        layout = Path(folder, "image")
        whole = pack.as_image(files, layout, settings.table_bytes)
        registry.ask("push", place, layout, limit=limit, is_plain=plain_http,
                     table_bytes=settings.table_bytes)  # fmt: skip
    pack.tell_image("reference", str(place), whole, files, as_json=json)
    return 0
