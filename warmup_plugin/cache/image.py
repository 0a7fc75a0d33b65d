# SPDX-License-Identifier: Apache-2.0
"""Tables as one ordinary OCI image, which registries, Kubernetes and image builders take as it is.

    io.vllm.manifest/manifest.json     every file: path, bytes, sha256
    io.vllm.cache/flashinfer_autotune/<version>/<arch>/<identity>/<file>

One gzip layer, a config with labels, a manifest; paths and labels are those of MCV's compat
format, so that its readers extract it. Owns the format. Equal tables give equal bytes on every
machine: the layer is stored in gzip, not compressed, since builds of zlib compress differently.
Refuses, when reading, what `archive` refuses, a layer that unfolds beyond its bound, and what is
not the image that its digests say. Raises `ArchiveError`. Touches no disk but for a temporary file.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, BinaryIO, Final, NamedTuple

import msgspec

from warmup_plugin.cache import archive
from warmup_plugin.cache.archive import ArchiveError, Listing, Packed, decoded
from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.runtime.safe_json import digest

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
#: The same documents in Docker's words, into which registries and copiers translate.
DOCKER_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_MANIFEST_TYPES: Final = (MANIFEST_TYPE, DOCKER_MANIFEST_TYPE)
_LAYER_TYPES: Final = (LAYER_TYPE, "application/vnd.docker.image.rootfs.diff.tar.gzip")

CACHE: Final = "io.vllm.cache"
#: The list of files, beside what MCV keeps there of caches that it knows.
MANIFEST_FILE: Final = "io.vllm.manifest/manifest.json"
_LABELS: Final = "cache.vllm.image"
#: What registries take at most of a manifest; a config is no longer.
DOCUMENT_BYTES: Final = 4 << 20
#: A stored block of gzip holds no more.
_BLOCK: Final = 0xFFFF
_PART: Final = 1 << 20


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """What a manifest says of a blob."""

    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
    size: int


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""


class _RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str]


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs


class _Documents(msgspec.Struct, frozen=True):
    """The file `manifest.json`: no cache of a kind that MCV knows, and our list."""

    warmup_plugin: Listing
    vllm: tuple[()] = ()


_MANIFEST: Final = msgspec.json.Decoder(Manifest)
_CONFIG: Final = msgspec.json.Decoder(_Config)
_DOCUMENTS: Final = msgspec.json.Decoder(_Documents)


class Blob(NamedTuple):
    digest: str
    data: bytes


@dataclass(frozen=True)
class Image:
    """An image as its three blobs."""

    manifest: Blob
    config: Blob
    layer: Blob


def blob(data: bytes) -> Blob:
    """Return bytes with the digest that names them."""
    return Blob(f"sha256:{digest(data)}", data)


def most_bytes(table_bytes: int) -> int:
    """Return the most bytes of an image's layer, packed and unpacked."""
    return 16 * table_bytes


def render(files: Iterable[Packed], table_bytes: int) -> Image:
    """Return the image of these files: the same bytes for the same files.

    Raises:
        ArchiveError: it is larger than what is read.
    """
    files = archive.in_order(files)
    listing = msgspec.json.encode(_Documents(archive.listing_of(files)))
    unpacked = archive.tar(*_members(msgspec.json.format(listing, indent=1), files))
    if len(unpacked) > most_bytes(table_bytes):
        raise ArchiveError(f"an image of {len(unpacked)} bytes, more than the "
                           f"{most_bytes(table_bytes)} allowed")  # fmt: skip
    layer, config = blob(_stored(unpacked)), blob(_config(files, unpacked))
    manifest = Manifest(
        2, Descriptor(CONFIG_TYPE, config.digest, len(config.data)),
        [Descriptor(LAYER_TYPE, layer.digest, len(layer.data))], MANIFEST_TYPE,
    )  # fmt: skip
    return Image(blob(msgspec.json.encode(manifest)), config, layer)


def _members(listing: bytes, files: list[Packed]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the layer's members: the list, then each file after the folders that it needs."""
    seen = set()
    for name, data in ((MANIFEST_FILE, listing), *((f"{CACHE}/{f.path}", f.data) for f in files)):
        for folder in list(PurePosixPath(name).parents)[-2::-1]:
            if folder not in seen:
                seen.add(folder)
                yield str(folder), None
        yield name, data


def _config(files: list[Packed], unpacked: bytes) -> bytes:
    """Return an image's config. Its platform is fixed: tables are for a GPU, not a processor."""
    return msgspec.json.encode(
        {
            "architecture": "amd64", "os": "linux", "config": {"Labels": labels(files)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(unpacked)}"]},
            "history": [{"created_by": "warmup-plugin"}],
        }
    )  # fmt: skip


def labels(files: list[Packed]) -> Mapping[str, str]:
    """Return what MCV's readers, and people, are told of an image: an entry is an identity."""
    targets = [_target(arch) for arch in sorted({file.arch for file in files})]
    return {
        f"{_LABELS}/entry-count": str(len({(f.version, f.arch, f.identity) for f in files})),
        f"{_LABELS}/summary": msgspec.json.encode({"targets": targets}).decode(),
        f"{_LABELS}/cache-size-bytes": str(sum(len(file.data) for file in files)),
        f"{_LABELS}/format": LAYOUT,
    }


def _target(arch: str) -> dict[str, object]:
    if arch == "cpu":
        return {"backend": "cpu", "arch": "cpu", "warp_size": 1}
    return {"backend": "cuda", "arch": f"sm_{arch.removeprefix('sm')}", "warp_size": 32}


def _stored(data: bytes) -> bytes:
    """Return a gzip file of stored blocks, which no two implementations write differently."""
    parts = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)] or [b""]
    out = io.BytesIO()
    out.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")  # gzip, deflate; no name, no time, no system
    for number, part in enumerate(parts, 1):
        size = len(part)
        out.write(struct.pack("<BHH", number == len(parts), size, size ^ _BLOCK) + part)
    out.write(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF))
    return out.getvalue()


def parse_manifest(data: bytes, table_bytes: int) -> Manifest:
    """Return an image's manifest.

    Raises:
        ArchiveError: it is none of an image of tables, or the image is too large.
    """
    found: Manifest = decoded(_MANIFEST, data, "not the manifest of an image")
    if found.media_type and found.media_type not in _MANIFEST_TYPES:
        raise ArchiveError(f"{found.media_type}: not the manifest of one image")
    if len(found.layers) != 1:
        raise ArchiveError(f"an image of {len(found.layers)} layers; one of tables has one")
    (layer,) = found.layers
    if layer.media_type not in _LAYER_TYPES:
        raise ArchiveError(f"a layer of type {layer.media_type}, not {LAYER_TYPE}")
    for part, limit in ((found.config, DOCUMENT_BYTES), (layer, most_bytes(table_bytes))):
        if not 0 <= part.size <= limit:
            raise ArchiveError(f"{part.digest}: {part.size} bytes, more than the {limit} allowed")
    return found


def check(data: bytes, named: Descriptor) -> None:
    """Refuse a blob that is not the one which was named.

    Raises:
        ArchiveError: it is another one.
    """
    if len(data) != named.size:
        raise ArchiveError(f"{named.digest}: {len(data)} bytes, not {named.size}: cut off?")
    if blob(data).digest != named.digest:
        raise ArchiveError(f"{named.digest}: other bytes than its digest says")


def read(image: Image, table_bytes: int) -> list[Packed]:
    """Return the files of an image, each checked; none is larger than ``table_bytes``.

    Raises:
        ArchiveError: it is not what `render` writes.
    """
    manifest = parse_manifest(image.manifest.data, table_bytes)
    for part, named in ((image.config, manifest.config), (image.layer, manifest.layers[0])):
        check(part.data, named)
    config: _Config = decoded(_CONFIG, image.config.data, "the image's config")
    with tempfile.TemporaryFile() as unpacked:
        found = _unpacked(image.layer.data, unpacked, most_bytes(table_bytes))
        if config.rootfs.diff_ids != [found]:
            raise ArchiveError("the layer is not the one that the image's config names")
        return _read_tar(unpacked, table_bytes)


def _unpacked(packed: bytes, out: BinaryIO, limit: int) -> str:
    """Write what a gzip file holds, and return its digest; ends at ``limit`` bytes."""
    stream, sha256, size = zlib.decompressobj(wbits=31), hashlib.sha256(), 0
    rest = packed
    try:
        while not stream.eof and (part := stream.decompress(rest, _PART)):
            rest, size = stream.unconsumed_tail, size + len(part)
            if size > limit:
                raise ArchiveError(f"the layer unfolds to more than the {limit} bytes allowed")
            sha256.update(part)
            out.write(part)
    except zlib.error as error:
        raise ArchiveError(f"the layer is no gzip file: {error}") from None
    if not stream.eof or stream.unused_data:
        raise ArchiveError("the layer is no whole gzip file")
    out.seek(0)
    return f"sha256:{sha256.hexdigest()}"


def _read_tar(unpacked: BinaryIO, table_bytes: int) -> list[Packed]:
    try:
        with tarfile.open(fileobj=unpacked, mode="r:") as members:
            data = archive.next_file(members, MANIFEST_FILE, table_bytes, may_have_folders=True)
            documents: _Documents = decoded(_DOCUMENTS, data, MANIFEST_FILE)
            return list(archive.listed_files(
                members, documents.warmup_plugin, table_bytes, below=f"{CACHE}/"
            ))  # fmt: skip
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArchiveError(f"the layer holds no tables: {error}") from None
