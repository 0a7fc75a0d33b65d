# SPDX-License-Identifier: Apache-2.0
"""Tables as an OCI image: the same bytes each time, read by others, served, unpacked."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli import mcv_reader
from tests.cli.shelves import files_below, identity, put
from warmup_plugin.cache import image, image_layout
from warmup_plugin.cache.archive import ArchiveError, Packed
from warmup_plugin.engines.embedded import EngineConfig, launch

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]
LIMIT = 1 << 20
#: Of the image of `FIXED`, on every machine, in every version of Python, zlib and msgspec.
DIGEST = "sha256:f12c6f4808afd12e7f392ba17a47fa7a8b58196ffbb9258329acdab4f992a04b"
B200 = '{"backend":"cuda","arch":"sm_100","warp_size":32}'
FIXED = [
    Packed(f"flashinfer_autotune/0.7/{arch}/{'a' * 64}/{name}", name.encode() * 9000, "0.7", arch,
           "a" * 64, name)
    for arch in ("sm100", "cpu") for name in ("identity.json", "rank_tp0_pp0_dp0.json")
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache root with two identities, one with two nodes' tables."""
    root = tmp_path / "root"
    put(root)
    put(root, source=(1, 0, 0), keys=2)
    put(root, identity(tp=4))
    return root


@pytest.fixture
def layout(cli: Cli, root: Path, tmp_path: Path) -> Path:
    """Its tables as an image."""
    ran = cli("pack", "--oci", tmp_path / "image", "--root", root)
    assert ran.code == 0, ran.err
    return tmp_path / "image"


# -- what is written -------------------------------------------------------------------------------


def test_the_same_tables_give_the_same_digest(cli: Cli, root: Path, tmp_path: Path) -> None:
    """From another root, at another time; other tables give another one."""
    shutil.copytree(root, tmp_path / "copy")
    one, two = (
        cli("pack", "--oci", tmp_path / f"image {place}", "--root", tmp_path / place, "--json")
        for place in ("root", "copy")
    )
    assert one.document["digest"] == two.document["digest"]
    assert files_below(tmp_path / "image root") == files_below(tmp_path / "image copy")
    put(tmp_path / "copy", identity(tp=8))
    other = cli("pack", "--oci", tmp_path / "other", "--root", tmp_path / "copy", "--json")
    assert other.document["digest"] != one.document["digest"]


def test_the_bytes_are_those_of_every_machine() -> None:
    """Whatever the order of the files; the layer is in no compressor's hands."""
    assert image.render(FIXED, LIMIT).manifest.digest == DIGEST
    assert image.render(FIXED[::-1], LIMIT).manifest.digest == DIGEST


def test_a_layer_is_a_gzip_file_of_any_length() -> None:
    """Blocks end where they must: at no byte, in the middle, at a block's very end."""
    for size in (0, 1, 0xFFFE, 0xFFFF, 0x10000, 3 * 0xFFFF, 200_000):
        data = os.urandom(size)
        assert gzip.decompress(image._stored(data)) == data


def test_it_is_one_ordinary_image(layout: Path) -> None:
    """One name, one gzip layer of folders and files, no link, no owner, no custom media type."""
    (named,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert named["annotations"] == {"org.opencontainers.image.ref.name": "latest"}
    found = image_layout.read(layout, LIMIT)
    document = json.loads(found.manifest.data)
    types = [document["mediaType"], document["config"]["mediaType"]]
    types += [layer["mediaType"] for layer in document["layers"]]
    assert types == [
        "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ]  # fmt: skip
    config = json.loads(found.config.data)
    assert (config["os"], config["rootfs"]["type"]) == ("linux", "layers")
    with tarfile.open(fileobj=io.BytesIO(found.layer.data)) as members:
        seen: set[str] = {"."}
        for member in members:
            assert member.isreg() or member.isdir()
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            assert str(Path(member.name).parent) in seen, "its folder comes before a file"
            seen.add(member.name)


def test_a_folder_in_use_is_left_alone(cli: Cli, root: Path, layout: Path, tmp_path: Path) -> None:
    """A layout holds one name; an empty folder is taken, and nothing half done is left."""
    before = files_below(layout)
    ran = cli("pack", "--oci", layout, "--root", root)
    assert (ran.code, "is not empty" in ran.err) == (1, True)
    assert files_below(layout) == before
    (tmp_path / "empty").mkdir()
    assert cli("pack", "--oci", tmp_path / "empty", "--root", root).code == 0
    assert files_below(tmp_path / "empty") == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_is_written_that_is_too_large_to_be_read() -> None:
    """With the same limit, at least."""
    with pytest.raises(ArchiveError, match="more than the 80000 allowed"):
        image.render(FIXED, 5000)


@pytest.mark.parametrize("words", [[], ["-o", "t.tar", "--oci", "image"]], ids=["neither", "both"])
def test_one_form_is_asked_for(cli: Cli, words: list[str]) -> None:
    assert cli("pack", *words).code == 2


# -- who reads it ----------------------------------------------------------------------------------


def test_a_reader_of_mcvs_format_extracts_it(root: Path, layout: Path, tmp_path: Path) -> None:
    """To the byte; its labels say how much there is, of what, and for which GPU."""
    found = mcv_reader.extract(layout, tmp_path / "vllm")
    assert files_below(tmp_path / "vllm") == files_below(root)
    assert found.labels == {
        "cache.vllm.image/entry-count": "2",
        "cache.vllm.image/summary": f'{{"targets":[{B200}]}}',
        "cache.vllm.image/cache-size-bytes": str(sum(map(len, files_below(root).values()))),
        "cache.vllm.image/format": "flashinfer_autotune",
    }
    assert found.manifest["vllm"] == [], "no entry of a kind that MCV would look into"
    assert len(found.manifest["warmup_plugin"]["files"]) == len(files_below(root))


@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["copied", "mounted"])
def test_its_layer_serves_a_start_that_may_tune_nothing(
    cli: Cli, two_starts: TwoStarts, tmp_path: Path, how: str
) -> None:
    """Nothing is timed, nothing is written, and the certificate is that of the start that tuned."""
    assert cli("pack", "--oci", tmp_path / "image", "--root", two_starts.root).code == 0
    layer = tmp_path / "layer"
    _unpack_as_a_runtime(tmp_path / "image", layer)
    before = files_below(layer)
    all_reduce = two_starts.root / "all_reduce"
    served = (_served_by_copy if how == "copied" else _served_by_mount)(layer, tmp_path, all_reduce)
    (certificate,) = {rank.report.certificate for rank in two_starts.cold}
    assert served == [[0, 0, certificate]] * 4
    assert files_below(layer) == before


def _unpack_as_a_runtime(layout: Path, folder: Path) -> None:
    """Unpack the layer as it stands, folders and all."""
    whole = image_layout.read(layout, 1 << 24)
    with tarfile.open(fileobj=io.BytesIO(whole.layer.data)) as members:
        members.extractall(folder, filter="tar")


def _served_by_copy(layer: Path, tmp_path: Path, all_reduce: Path) -> list[list[Any]]:
    """As after `COPY --from`: the root file system has it."""
    found = launch(
        EngineConfig(tp=2, pp=2, all_reduce_dir=str(all_reduce)),
        root=tmp_path / "writable",
        env={"WARMUP_PLUGIN_MODE": "require-complete",
             "WARMUP_PLUGIN_LAYERS": str(layer / "io.vllm.cache")},
    )  # fmt: skip
    return [
        [rank.counts["profile_single_kernel"], rank.report.tactics_timed, rank.report.certificate]
        for rank in found
    ]


def _served_by_mount(layer: Path, tmp_path: Path, all_reduce: Path) -> list[list[Any]]:
    """As an image volume: the runtime mounts it, read-only."""
    child = Path(__file__).with_name("on_a_layer.py")
    (tmp_path / "mnt").mkdir()
    unshare = ["/usr/bin/unshare", "--mount"]
    if subprocess.run([*unshare, "/bin/true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespace of mounts can be made here")
    done = subprocess.run(
        [*unshare, sys.executable, str(child), str(layer), str(tmp_path / "mnt"),
         str(tmp_path / "writable"), str(all_reduce)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def test_unpacked_is_what_was_packed(cli: Cli, root: Path, layout: Path, tmp_path: Path) -> None:
    """To the byte; a second time nothing changes; another digest is refused."""
    digest = image_layout.read(layout, LIMIT).manifest.digest
    there = tmp_path / "there"
    ran = cli("unpack", layout, "--root", there, "--digest", digest, "--json")
    assert [row["became"] for row in ran.document["identities"]] == ["new", "new"]
    assert files_below(there) == files_below(root)
    again = cli("unpack", layout, "--root", there, "--json").document["identities"]
    assert [row["became"] for row in again] == ["the same", "the same"]
    ran = cli("unpack", layout, "--root", tmp_path / "other", "--digest", "0" * 64)
    assert (ran.code, "not the" in ran.err) == (1, True)
    assert not (tmp_path / "other").exists()
