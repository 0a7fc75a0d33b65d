# SPDX-License-Identifier: Apache-2.0
"""prune, rm and unpack on file systems that cannot do all: image layers, object stores, mounts.

The system's answers are put in the way of one call each, in `refusing`; where the machine lets us,
the same is done on a real overlay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.shelves import files_below, identity, put

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]


@contextlib.contextmanager
def refusing(call: str, code: int, *, when: Callable[[Path], bool]) -> Iterator[None]:
    """Let a call of the system fail for some paths, as a file system that lacks it answers."""
    own = getattr(os, call)

    def refuse(path: os.PathLike[str] | int, *rest: object, **named: object) -> object:
        if when(Path() if isinstance(path, int) else Path(path)):
            raise OSError(code, os.strerror(code), str(path))
        return own(path, *rest, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, call, refuse)
        yield


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EBUSY, errno.EPERM])
@pytest.mark.parametrize("verb", ["prune", "rm"])
def test_a_directory_that_cannot_be_renamed_is_deleted_in_place(
    cli: Cli, tmp_path: Path, code: int, verb: str
) -> None:
    """Within an image's lower layer it is EXDEV, on an object store ENOSYS."""
    directory = put(tmp_path, version="0.6.13")
    size = sum(path.stat().st_size for path in directory.iterdir())
    words = ("--version", "0.6.13") if verb == "prune" else (directory.name[:8],)
    with refusing("rename", code, when=Path.is_dir):
        ran = cli(verb, *words, "--root", tmp_path)
    assert ran.code == 0, ran.out
    assert "gone: 1 identity, " in ran.out
    assert ("bytes" in ran.out) or (f"{size / 1000:.1f} kB" in ran.out)
    assert not directory.exists()


@pytest.mark.parametrize("renames", [True, False])
def test_what_stays_is_named_and_not_counted(
    cli: Cli, tmp_path: Path, renames: bool  # noqa: FBT001  # the two ways
) -> None:  # fmt: skip
    """A mounted file (a ConfigMap's) cannot go; nothing is left under another name."""
    directory = put(tmp_path, version="0.6.13")
    manifest = directory / "rank_tp0_pp0_dp0.manifest.json"
    gone = sum(path.stat().st_size for path in directory.iterdir() if path.name != manifest.name)

    def is_mounted(path: Path) -> bool:
        return path.name == manifest.name

    with contextlib.ExitStack() as stack:
        stack.enter_context(refusing("unlink", errno.EBUSY, when=is_mounted))
        if not renames:
            stack.enter_context(refusing("rename", errno.EXDEV, when=Path.is_dir))
        ran = cli("prune", "--version", "0.6.13", "--root", tmp_path, width=400)
        left = sorted(path.name for path in directory.parent.iterdir())
    assert ran.code == 1
    assert f"{manifest}: Device or resource busy" in ran.out
    assert "gone: 0 identities, " in ran.out
    assert left == [directory.name]
    assert [path.name for path in directory.iterdir()] == [manifest.name]
    put(tmp_path, version="0.6.13")
    with refusing("unlink", errno.EBUSY, when=is_mounted):
        document = cli("rm", directory.name[:8], "--root", tmp_path, "--json").document
    (row,) = document["identities"]
    assert (row["gone"], row["bytes"]) == (False, gone)


def test_what_somebody_has_set_aside_and_cannot_go_is_told(cli: Cli, tmp_path: Path) -> None:
    """The sum is of what went."""
    directory = put(tmp_path)
    (directory / "foreign").mkdir()
    (directory / "foreign" / "x").write_text("12345")
    with refusing("unlink", errno.EROFS, when=lambda path: path.name == "x"):
        ran = cli("prune", "--set-aside", "--root", tmp_path, "--json")
    assert (ran.code, ran.document["bytes_gone"]) == (1, 0)
    assert ran.document["failed"] == [f"{directory}/foreign/x: Read-only file system"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP])
def test_unpack_needs_no_rename_of_directories_nor_of_files(
    cli: Cli, tmp_path: Path, code: int
) -> None:
    """What it puts there holds, and nothing else stays."""
    put(tmp_path / "made", identity(tp=4))
    put(tmp_path / "made", source=(1, 0, 0))
    cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "made")
    made = {name: data for name, data in files_below(tmp_path / "made").items() if "/." not in name}
    for call, when in (("rename", Path.is_dir), ("replace", Path.exists)):
        there = tmp_path / call
        with refusing(call, code, when=when):
            ran = cli("unpack", tmp_path / "t.tar", "--root", there)
        assert (ran.code, ran.err) == (0, "")
        assert files_below(there) == made
        assert cli("verify", "--root", there).code == 0


OVERLAY = """
set -e
mkdir -p "$1/mem"; mount -t tmpfs none "$1/mem"; mkdir "$1/mem/upper" "$1/mem/work" "$1/merged"
cd "$1/mem"
mount -t overlay none -o "lowerdir=../lower,upperdir=upper,workdir=work,userxattr" "$1/merged"
cd /
"$2" -m warmup_plugin prune --version 0.6.13 --root "$1/merged"
find "$1/merged" -type f
"""


def test_prune_in_a_real_image_layer(tmp_path: Path) -> None:
    """An overlay in a mount namespace of its own; without the right to make one, nothing to try."""
    put(tmp_path / "lower", version="0.6.13")
    may = subprocess.run(
        ["/usr/bin/unshare", "--mount", "--map-root-user", "true"], capture_output=True, check=False
    )  # fmt: skip
    if may.returncode:
        pytest.skip(f"no mount namespace to be had here: {may.stderr.decode().strip()}")
    done = subprocess.run(
        ["/usr/bin/unshare", "--mount", "--map-root-user", "/bin/bash", "-c", OVERLAY, "-",
         str(tmp_path),
         sys.executable],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if "mount:" in done.stderr:
        pytest.skip(f"no overlay to be had here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("  gone: 1 identity, ")


# -- doctor ----------------------------------------------------------------------------------------


def findings(cli: Cli, root: Path) -> dict[str, tuple[str, str]]:
    rows = cli("doctor", "--quick", "--root", root, "--json").document["findings"]
    assert all(row["fix"] for row in rows if row["state"] == "bad")
    return {row["what"]: (row["state"], row["words"] + row["fix"]) for row in rows}


def test_doctor_tries_what_a_start_needs(cli: Cli, tmp_path: Path) -> None:
    """A rename, a lock that locks, fsync; each refusal has a remedy, and nothing stays behind."""
    fine = findings(cli, tmp_path)
    assert [fine[name][0] for name in ("directory", "disk", "clock", "locks", "rename")] == [
        "good"
    ] * 5
    with refusing("replace", errno.ENOSYS, when=Path.exists):
        assert findings(cli, tmp_path)["rename"][0] == "bad"
    with refusing("fsync", errno.EIO, when=lambda _path: True):
        assert findings(cli, tmp_path)["write"][0] == "bad"
    assert list(tmp_path.iterdir()) == []


def test_doctor_does_not_trust_a_lock_that_everybody_gets(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounts exist whose `flock` says yes and does nothing."""
    monkeypatch.setattr("fcntl.flock", lambda *_args: None)
    assert findings(cli, tmp_path)["locks"][0] == "bad"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_doctor_sees_a_linked_layout(cli: Cli, tmp_path: Path, level: int) -> None:
    """Starts keep nothing behind such a link; the remedy is to make the root itself the link."""
    link = (tmp_path / "root").joinpath(*("flashinfer_autotune", "0.7.2.post1", "cpu")[: level + 1])
    link.parent.mkdir(parents=True)
    (tmp_path / "disk" / "0.7.2.post1" / "cpu").mkdir(parents=True)
    link.symlink_to(tmp_path / "disk")
    state, words = findings(cli, tmp_path / "root")["directory"]
    assert state == "bad"
    assert "make the root itself the link" in words
