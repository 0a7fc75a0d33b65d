# SPDX-License-Identifier: Apache-2.0
"""One image as a folder, in the layout that OCI's tools read: skopeo, umoci, buildah, and `unpack`.

    oci-layout, index.json       which image there is, under which name
    blobs/sha256/<digest>        its manifest, config and layer

Owns the layout: one image, one name, in a folder of its own, since tools choose by chance among
several. Refuses a folder that is in use, links, and several images. Raises `ArchiveError`, and
`OSError` where the disk refuses.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.cache import image
from warmup_plugin.cache.archive import ArchiveError, decoded
from warmup_plugin.cache.files import read_file
from warmup_plugin.cache.image import Descriptor, Image

#: By which tools find the image: `skopeo copy oci:DIR:latest ...`.
NAME: Final = "latest"
_VERSION: Final = "1.0.0"
_NAMED: Final = "org.opencontainers.image.ref.name"


class _Layout(msgspec.Struct, rename={"version": "imageLayoutVersion"}):
    version: str


class _Index(msgspec.Struct, rename="camel"):
    manifests: list[Descriptor]


_LAYOUT: Final = msgspec.json.Decoder(_Layout)
_INDEX: Final = msgspec.json.Decoder(_Index)


def write(folder: Path, whole: Image) -> None:
    """Write an image into a folder that is not there yet, or is empty; all of it or nothing.

    Raises:
        ArchiveError: the folder holds files.
        OSError: the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"{folder} is not empty: a layout is written to a folder of its own")
    folder = folder.resolve()  # the current one has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        blobs = stage / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for each in (whole.manifest, whole.config, whole.layer):
            (blobs / each.digest.removeprefix("sha256:")).write_bytes(each.data)
        layout = {"imageLayoutVersion": _VERSION}
        (stage / "oci-layout").write_bytes(msgspec.json.encode(layout))
        (stage / "index.json").write_bytes(_index(whole))
        stage.rename(folder)  # over an empty one, too
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _index(whole: Image) -> bytes:
    manifest = whole.manifest
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": image.MANIFEST_TYPE, "digest": manifest.digest,
                    "size": len(manifest.data), "annotations": {_NAMED: NAME},
                }
            ],
        }
    )  # fmt: skip


def read(folder: Path, table_bytes: int) -> Image:
    """Return the one image of a layout; its blobs are those that their digests say.

    Raises:
        ArchiveError: it is no layout of one image, or a blob is not there or another one.
    """
    layout: _Layout = decoded(_LAYOUT, _file(folder, "oci-layout"), "oci-layout")
    index: _Index = decoded(_INDEX, _file(folder, "index.json"), "index.json")
    if layout.version != _VERSION:
        raise ArchiveError(f"an image layout of version {layout.version}, not {_VERSION}")
    if len(index.manifests) != 1:
        raise ArchiveError(f"a layout of {len(index.manifests)} images; one of tables has one")
    (named,) = index.manifests
    data = _blob(folder, named, image.DOCUMENT_BYTES)
    manifest = image.parse_manifest(data, table_bytes)
    return Image(
        image.Blob(named.digest, data),
        image.Blob(manifest.config.digest, _blob(folder, manifest.config, image.DOCUMENT_BYTES)),
        image.Blob(manifest.layers[0].digest,
                   _blob(folder, manifest.layers[0], image.most_bytes(table_bytes))),
    )  # fmt: skip


def _blob(folder: Path, named: Descriptor, limit: int) -> bytes:
    name = f"blobs/sha256/{named.digest.removeprefix('sha256:')}"
    data = _file(folder, name, min(limit, named.size))
    image.check(data, named)
    return data


def _file(folder: Path, name: str, limit: int = image.DOCUMENT_BYTES) -> bytes:
    content = read_file(folder / name, limit, folder).content
    if not isinstance(content, bytes):
        raise ArchiveError(f"{name}: {content.reason}")
    return content
