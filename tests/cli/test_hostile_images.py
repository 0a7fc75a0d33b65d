# SPDX-License-Identifier: Apache-2.0
"""Images that are none of ours, and layouts that are broken: one line each, and nothing written."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.shelves import files_below, put
from warmup_plugin.cache import image, image_layout
from warmup_plugin.cache.image import Blob, Image

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]
LIMIT = 1 << 20


@pytest.fixture
def layout(cli: Cli, tmp_path: Path) -> Path:
    """A small table as an image."""
    put(tmp_path / "root")
    ran = cli("pack", "--oci", tmp_path / "image", "--root", tmp_path / "root")
    assert ran.code == 0, ran.err
    return tmp_path / "image"


# -- images ----------------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]
SMALL = 200_000


def _renewed(layer: bytes, unpacked: bytes, **changed: Any) -> Image:
    """An image around this layer, all digests made to fit."""
    config = {"rootfs": {"type": "layers", "diff_ids": [image.blob(unpacked).digest]}}
    blobs = image.blob(json.dumps({**config, **changed.pop("config", {})}).encode())
    manifest = {
        "schemaVersion": 2, "mediaType": image.MANIFEST_TYPE,
        "config": {"mediaType": image.CONFIG_TYPE, "digest": blobs.digest, "size": len(blobs.data)},
        "layers": [{"mediaType": image.LAYER_TYPE, "digest": image.blob(layer).digest,
                    "size": len(layer)}], **changed,
    }  # fmt: skip
    return Image(image.blob(json.dumps(manifest).encode()), blobs, image.blob(layer))


def with_members(change: Callable[[Members], object]) -> Callable[[Image], Image]:
    """Rewrite the layer, member by member."""

    def changed(whole: Image) -> Image:
        with tarfile.open(fileobj=io.BytesIO(whole.layer.data)) as archive:
            members = [
                (m, archive.extractfile(m).read() if m.isreg() else b"")  # type: ignore[union-attr]  # a file
                for m in archive
            ]
        change(members)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for member, data in members:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return _renewed(gzip.compress(out.getvalue()), out.getvalue())

    return changed


def _table(members: Members) -> int:
    return next(i for i, (m, _) in enumerate(members) if m.name.endswith("dp0.json"))


def _linked(kind: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        member, _ = members[_table(members)]
        member.type, member.linkname = kind, "/etc/passwd"
        members[_table(members)] = (member, b"")

    return change


def _named(name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[_table(members)][0].name = name

    return change


def _more(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        member = tarfile.TarInfo(name)
        member.type = kind
        members.insert(_table(members), (member, b""))

    return change


def _edited(members: Members) -> None:
    at = _table(members)
    members[at] = (members[at][0], members[at][1].replace(b"7", b"8", 1))


def _unlisted(members: Members) -> None:
    members[1] = (members[1][0], b'{"vllm": []}')


def _bomb(whole: Image) -> Image:
    """Some 16 kB that unfold to 16 MB of zeros, after all that is expected."""
    unpacked = gzip.decompress(whole.layer.data) + bytes(16 * SMALL)
    return _renewed(gzip.compress(unpacked), unpacked)


def _layers(number: int) -> Callable[[Image], Image]:
    def change(whole: Image) -> Image:
        layers = json.loads(whole.manifest.data)["layers"] * number
        return _renewed(whole.layer.data, gzip.decompress(whole.layer.data), layers=layers)

    return change


def _typed(kind: str, size: int | None = None) -> Callable[[Image], Image]:
    def change(whole: Image) -> Image:
        (layer,) = json.loads(whole.manifest.data)["layers"]
        layer |= {"mediaType": kind, **({} if size is None else {"size": size})}
        return _renewed(whole.layer.data, gzip.decompress(whole.layer.data), layers=[layer])

    return change


def _packed(change: Callable[[bytes], bytes]) -> Callable[[Image], Image]:
    """Change the bytes of the layer as they lie there."""
    return lambda whole: _renewed(change(whole.layer.data), gzip.decompress(whole.layer.data))


GZIP = image.LAYER_TYPE
HOSTILE: dict[str, tuple[Callable[[Image], Image], str]] = {
    "symlink": (with_members(_linked(tarfile.SYMTYPE)), "not a plain file"),
    "hard link": (with_members(_linked(tarfile.LNKTYPE)), "not a plain file"),
    "device": (with_members(_linked(tarfile.CHRTYPE)), "not a plain file"),
    "climbs": (with_members(_named("io.vllm.cache/../../../../tmp/x.json")), "should come next"),
    "absolute": (with_members(_named("/etc/cron.d/x")), "should come next"),
    "another file": (with_members(_more("io.vllm.cache/run.sh")), "should come next"),
    "another folder": (with_members(_more("etc", tarfile.DIRTYPE)), "should come next"),
    "a link for a folder": (with_members(_more("io.vllm.cache", tarfile.SYMTYPE)), "come next"),
    "edited": (with_members(_edited), "other bytes than listed"),
    "no list": (with_members(_unlisted), "warmup_plugin"),
    "twice": (with_members(lambda members: members.append(members[-1])), "not in the list"),
    "bomb": (_bomb, f"unfolds to more than the {16 * SMALL} bytes"),
    "cut gzip": (_packed(lambda data: data[:-100]), "no whole gzip file"),
    "two gzips": (_packed(lambda data: data + data), "no whole gzip file"),
    "no gzip": (_packed(gzip.decompress), "no gzip file"),
    "no layer": (_layers(0), "0 layers"),
    "two layers": (_layers(2), "2 layers"),
    "a custom type": (_typed("application/cache.vllm.content.layer.v1+vllm"), "a layer of type"),
    "zstd": (_typed("application/vnd.oci.image.layer.v1.tar+zstd"), "a layer of type"),
    "too large": (_typed(GZIP, 1 << 40), "allowed"),
    "less than nothing": (_typed(GZIP, -1), "allowed"),
    "another layer": (lambda whole: _renewed(whole.layer.data, b"x"), "config names"),
    "an index": (
        lambda whole: replace(whole, manifest=image.blob(b'{"schemaVersion":2,"manifests":[]}')),
        "not the manifest of an image",
    ),
    "nested": (
        lambda whole: replace(whole, manifest=image.blob(b"[" * 100_000)), "not the manifest",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_image_writes_nothing(
    cli: Cli, layout: Path, tmp_path: Path, change: Callable[[Image], Image], says: str
) -> None:
    """One line that says what is wrong, although all its digests fit."""
    bad, there = tmp_path / "bad", tmp_path / "there"
    image_layout.write(bad, change(image_layout.read(layout, LIMIT)))
    ran = cli("unpack", bad, "--root", there, WARMUP_PLUGIN_TABLE_BYTES=str(SMALL))
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.out + ran.err
    assert says in ran.err
    assert not there.exists() or not files_below(there)


def test_the_control_is_taken(cli: Cli, layout: Path, tmp_path: Path) -> None:
    """An image that was taken apart and put together again by the helpers of these tests."""
    whole = with_members(lambda _members: None)(image_layout.read(layout, LIMIT))
    image_layout.write(tmp_path / "good", whole)
    ran = cli("unpack", tmp_path / "good", "--root", tmp_path / "there",
              WARMUP_PLUGIN_TABLE_BYTES=str(SMALL))  # fmt: skip
    assert ran.code == 0, ran.err


# -- layouts ---------------------------------------------------------------------------------------


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def changed(layout: Path) -> None:
        document = json.loads((layout / "index.json").read_text())
        change(document)
        (layout / "index.json").write_text(json.dumps(document))

    return changed


def _each_blob(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def changed(layout: Path) -> None:
        for path in (layout / "blobs" / "sha256").iterdir():
            change(path)

    return changed


def _linked_elsewhere(path: Path) -> None:
    path.rename(path.parents[3] / path.name)
    path.symlink_to(path.parents[3] / path.name)


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "two images": (_index(lambda d: d["manifests"].append(d["manifests"][0])), "2 images"),
    "no image": (_index(lambda d: d["manifests"].clear()), "0 images"),
    "a digest that climbs": (
        _index(lambda d: d["manifests"][0].update(digest="sha256:../../../etc/x")), "index.json",
    ),
    "another size": (_index(lambda d: d["manifests"][0].update(size=7)), "allowed"),
    "no index": (lambda layout: (layout / "index.json").unlink(), "no such file"),
    "another layout": (
        lambda layout: (layout / "oci-layout").write_text('{"imageLayoutVersion": "2"}'),
        "version 2",
    ),
    "cut off": (_each_blob(lambda path: path.write_bytes(path.read_bytes()[:-1])), "cut off?"),
    "other bytes": (
        _each_blob(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")), "other bytes",
    ),
    "gone": (_each_blob(lambda path: path.unlink()), "no such file"),
    "links": (_each_blob(_linked_elsewhere), "a link that leads out of"),
    "pipes": (_each_blob(_piped), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_broken_layout_writes_nothing(
    cli: Cli, layout: Path, tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    """One line that says what is wrong."""
    change(layout)
    ran = cli("unpack", layout, "--root", tmp_path / "there")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.out + ran.err
    assert says in ran.err
    assert not (tmp_path / "there").exists()


def test_a_blob_is_named_as_its_bytes_say() -> None:
    """The control of all tests here that make digests fit."""
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert image.blob(b"") == Blob(f"sha256:{digest}", b"")
