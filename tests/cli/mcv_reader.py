# SPDX-License-Identifier: Apache-2.0
"""The reader's side of MCV's compat image format, written from its specification alone.

The document is mcv/docs/spec-compat.md of redhat-et/GKM, as of 280f160a; its extract algorithm has
four steps: the cache's type by the config's labels, each layer by its media type, the cache and the
manifest out of the gzip tarball, and the number of bytes against a label.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPAT_LAYERS = (
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.oci.image.layer.v1.tar+gzip",
)
REQUIRED = ("entry-count", "summary", "cache-size-bytes", "format")


class NotCompatError(Exception):
    """What keeps an image from being extracted."""


@dataclass(frozen=True)
class Extracted:
    labels: dict[str, str]
    manifest: dict[str, Any]
    written: int


def extract(layout: Path, cache_dir: Path) -> Extracted:
    """Extract the one image of an OCI layout into a cache directory."""

    def blob(digest: str) -> bytes:
        algorithm, _, name = digest.partition(":")
        return (layout / "blobs" / algorithm / name).read_bytes()

    index = json.loads((layout / "index.json").read_text())
    (named,) = index["manifests"]
    image = json.loads(blob(named["digest"]))
    config = json.loads(blob(image["config"]["digest"]))
    labels: dict[str, str] = config["config"]["Labels"]
    kind = _kind(labels)
    for name in REQUIRED:
        if f"cache.{kind}.image/{name}" not in labels:
            raise NotCompatError(f"without the label {name}")
    written, manifest = 0, dict[str, Any]()
    for layer in image["layers"]:
        if layer["mediaType"] not in COMPAT_LAYERS:
            raise NotCompatError(layer["mediaType"])
        size, found = _extract_layer(blob(layer["digest"]), kind, cache_dir)
        written, manifest = written + size, found or manifest
    if written != int(labels[f"cache.{kind}.image/cache-size-bytes"]):
        raise NotCompatError(f"{written} bytes were written")
    return Extracted(labels, manifest, written)


def _kind(labels: dict[str, str]) -> str:
    for kind in ("triton", "vllm"):
        if f"cache.{kind}.image/summary" in labels:
            return kind
    raise NotCompatError("no label says of which type the cache is")


def _extract_layer(data: bytes, kind: str, cache_dir: Path) -> tuple[int, dict[str, Any]]:
    written, manifest = 0, dict[str, Any]()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data)), mode="r:") as layer:
        for member in layer:
            file = layer.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            if member.name == f"io.{kind}.manifest/manifest.json":
                manifest = json.load(file)
            elif member.name.startswith(f"io.{kind}.cache/"):
                target = cache_dir / member.name.partition("/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                written += target.write_bytes(file.read())
    return written, manifest
