# SPDX-License-Identifier: Apache-2.0
"""Tables that travel: packed to the same bytes, unpacked whole or not at all, served elsewhere."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.shelves import files_below, identity, put
from warmup_plugin.cache.archive import LISTING
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.runtime.safe_json import digest

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]


def tables_below(root: Path) -> dict[str, bytes]:
    """What a pack takes along: no receipts, nothing of the journal."""
    return {name: data for name, data in files_below(root).items() if "/reports/" not in name}


@pytest.fixture
def packed(cli: Cli, tmp_path: Path) -> Path:
    """An archive of two identities, one with two nodes' tables."""
    root = tmp_path / "packed-from"
    put(root)
    put(root, source=(1, 0, 0), keys=2)
    put(root, identity(tp=4))
    assert cli("pack", "-o", tmp_path / "t.tar", "--root", root).code == 0
    return tmp_path / "t.tar"


@pytest.mark.multiprocess
def test_a_packed_table_serves_in_replay_below_another_root(
    cli: Cli, two_starts: TwoStarts, tmp_path: Path
) -> None:
    """Nothing is timed and the certificate is that of the start that tuned; twice as a layer."""
    archive, again = tmp_path / "one.tar", tmp_path / "two.tar"
    first = cli("pack", "-o", archive, "--root", two_starts.root, "--json").document
    cli("pack", "-o", again, "--root", two_starts.root)
    assert archive.read_bytes() == again.read_bytes()
    assert first["digest"] == f"sha256:{digest(archive.read_bytes())}"

    there = tmp_path / "elsewhere"
    done = cli("unpack", archive, "--root", there, "--digest", first["digest"])
    assert done.code == 0, done.err
    before = files_below(there)
    (certificate,) = {rank.report.certificate for rank in two_starts.cold}
    # What its collective op keeps for itself is the engine's, and goes where the engine goes.
    config = EngineConfig(tp=2, pp=2, all_reduce_dir=str(two_starts.root / "all_reduce"))
    places: list[dict[str, Any]] = [
        {"root": there, "env": {"WARMUP_PLUGIN_MODE": "replay"}},
        {"root": there, "env": {"WARMUP_PLUGIN_MODE": "require-complete"}},
        {"root": tmp_path / "writable", "env": {"WARMUP_PLUGIN_LAYERS": str(there)}},
    ]
    for place in places:
        for rank in launch(config, **place):
            assert rank.counts["profile_single_kernel"] == 0
            assert rank.report.tactics_timed == 0
            assert rank.report.certificate == certificate
        assert files_below(there) == before
    # What a layer answers is not copied into the writable root.
    assert not tables_below(tmp_path / "writable")

    cli("pack", "-o", again, "--root", there)
    assert archive.read_bytes() == again.read_bytes()


def test_unpacked_is_what_was_packed(cli: Cli, packed: Path, tmp_path: Path) -> None:
    """To the byte, with nothing beside it; a second time nothing changes."""
    there = tmp_path / "there"
    became = cli("unpack", packed, "--root", there, "--json").document["identities"]
    assert [row["became"] for row in became] == ["new", "new"]
    assert files_below(there) == tables_below(tmp_path / "packed-from")
    again = cli("unpack", packed, "--root", there, "--json").document["identities"]
    assert [row["became"] for row in again] == ["the same", "the same"]
    assert files_below(there) == tables_below(tmp_path / "packed-from")


def test_what_is_there_is_merged_with(cli: Cli, packed: Path, tmp_path: Path) -> None:
    """Another table of the same identity stays, as by a start; receipts stay where they are."""
    there = tmp_path / "there"
    home = put(there, keys=1, tactic=9, source=(2, 0, 0))
    (home / "reports").mkdir()
    became = cli("unpack", packed, "--root", there, "--json").document["identities"]
    assert {row["identity"]: row["became"] for row in became}[home.name] == "merged"
    assert cli("verify", "--root", there).code == 0
    assert len(list(home.glob("rank_tp?_pp0_dp0.json"))) == 3


def test_dry_run_writes_nothing(cli: Cli, packed: Path, tmp_path: Path) -> None:
    ran = cli("unpack", packed, "--root", tmp_path / "there", "--dry-run")
    assert (ran.code, ran.out.count("would be new")) == (0, 2)
    assert not (tmp_path / "there").exists()


def test_an_override_is_packed_by_what_its_identity_says(cli: Cli, tmp_path: Path) -> None:
    """Its path has neither version nor architecture; the archive's has."""
    directory = put(tmp_path / "r", identity(gpu={"capability": "10.0"}))
    (tmp_path / "override").mkdir()
    directory.rename(tmp_path / "override" / directory.name)
    place = {"VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR": str(tmp_path / "override")}
    found = cli("pack", "-o", tmp_path / "o.tar", "--json", **place).document["identities"]
    assert [(row["flashinfer"], row["arch"]) for row in found] == [("0.7.2.post1", "sm100")]


def test_a_faulty_table_is_not_packed(cli: Cli, tmp_path: Path) -> None:
    directory = put(tmp_path)
    (directory / "rank_tp0_pp0_dp0.manifest.json").unlink()
    ran = cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path)
    assert (ran.code, "nothing is packed" in ran.err) == (1, True)
    assert not (tmp_path / "t.tar").exists()
    assert cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "none").code == 1


# -- hostile archives ------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(path: Path) -> Members:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        return [(m, archive.extractfile(m).read()) for m in members]  # type: ignore[union-attr]


def rewritten(path: Path, members: Members) -> Path:
    """Write members as they are told, the list of files made to fit."""
    rows = [{"path": m.name, "bytes": len(d), "sha256": digest(d)} for m, d in members[1:]]
    listing = json.dumps({"schema": 1, "files": rows}).encode()
    members = [(tarfile.TarInfo(LISTING), listing), *members[1:]]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _renamed(name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[1][0].name = name
        members[1:] = sorted(members[1:], key=lambda each: each[0].name)

    return change


def _typed(kind: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[1][0].type = kind
        members[1][0].linkname = "/etc/passwd"
        members[1] = (members[1][0], b"")

    return change


def _edited(members: Members) -> None:
    index = next(i for i, (m, _) in enumerate(members) if m.name.endswith("dp0.json"))
    member, data = members[index]
    members[index] = (member, data.replace(b"7", b"8", 1))


def _without_identity(members: Members) -> None:
    members[:] = [row for row in members if not row[0].name.endswith("identity.json")]


def _other_directory(members: Members) -> None:
    for member, _ in members[1:]:
        parts = member.name.split("/")
        parts[3] = "0" * 64 if parts[3] == identity().digest else parts[3]
        member.name = "/".join(parts)
    members[1:] = sorted(members[1:], key=lambda each: each[0].name)


BAD: dict[str, Callable[[Members], None]] = {
    "climbs": _renamed("flashinfer_autotune/../../../../tmp/x.json"),
    "absolute": _renamed("/etc/cron.d/x"),
    "another name": _renamed(f"flashinfer_autotune/0.7/sm100/{'a' * 64}/run.sh"),
    "symlink": _typed(tarfile.SYMTYPE),
    "hard link": _typed(tarfile.LNKTYPE),
    "device": _typed(tarfile.CHRTYPE),
    "pipe": _typed(tarfile.FIFOTYPE),
    "edited table": _edited,
    "no identity": _without_identity,
    "another identity's directory": _other_directory,
    "not in order": lambda members: members.insert(1, members.pop()),
    "twice": lambda members: members.append(members[-1]),
}  # fmt: skip


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_hostile_archive_writes_nothing(
    cli: Cli, packed: Path, tmp_path: Path, change: Callable[[Members], None]
) -> None:
    """Although its list of files says that all is in order."""
    members = members_of(packed)
    change(members)
    there = tmp_path / "there"
    ran = cli("unpack", rewritten(tmp_path / "bad.tar", members), "--root", there)
    assert ran.code == 1, ran.out
    assert ran.err.count("\n") == 1
    assert not files_below(there) if there.exists() else True


def test_no_link_is_followed_out_of_the_root(cli: Cli, packed: Path, tmp_path: Path) -> None:
    """Somebody has put one where an identity's directory would be, or above it."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    home = there / "flashinfer_autotune" / "0.7.2.post1" / "sm100" / identity().digest
    for link in (home, home.parent):
        elsewhere.mkdir()
        link.parent.mkdir(parents=True)
        link.symlink_to(elsewhere)
        ran = cli("unpack", packed, "--root", there)
        assert (ran.code, "a link that leads out of" in ran.err) == (1, True)
        assert list(elsewhere.iterdir()) == []
        shutil.rmtree(there)
        elsewhere.rmdir()


@pytest.mark.parametrize("cut", [0, 511, 512, 1024, 3000, -1], ids=str)
def test_a_cut_archive_writes_nothing(cli: Cli, packed: Path, tmp_path: Path, cut: int) -> None:
    """Wherever it is cut; at its very end there are only zeros, which say nothing."""
    bad = tmp_path / "cut.tar"
    whole = packed.read_bytes()
    bad.write_bytes(whole[:cut] if cut >= 0 else whole[: len(whole.rstrip(b"\0")) - 1])
    ran = cli("unpack", bad, "--root", tmp_path / "there")
    assert ran.code == 1
    assert not (tmp_path / "there").exists() or not files_below(tmp_path / "there")


def test_another_listing_another_digest_another_size(
    cli: Cli, packed: Path, tmp_path: Path
) -> None:
    """A byte changed anywhere, a digest that was pinned, a file above the limit."""
    there = tmp_path / "there"
    data = bytearray(packed.read_bytes())
    where = data.rindex(b"Runner")
    data[where] ^= 1
    bad = tmp_path / "bad.tar"
    bad.write_bytes(data)
    assert "other bytes than listed" in cli("unpack", bad, "--root", there).err
    pinned = cli("unpack", packed, "--root", there, "--digest", "0" * 64)
    assert (pinned.code, "not the" in pinned.err) == (1, True)
    small = cli("unpack", packed, "--root", there, WARMUP_PLUGIN_TABLE_BYTES="100")
    assert (small.code, "more than the 100 allowed" in small.err) == (1, True)
    assert not files_below(there) if there.exists() else True
